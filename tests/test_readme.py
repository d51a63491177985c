"""README.md held against what it describes: the options, the messages, the commands, the files it names."""

import ast
import os
import re
import subprocess
import sys

import pytest

import trades_exporter
from harness import KEYS, ROOT, SCRIPT

README = ROOT.joinpath("README.md").read_text("utf-8")
FOR_TESTERS = ROOT.joinpath("tests/README.md").read_text("utf-8")
WORKFLOW = ROOT.joinpath(".github/workflows/tests.yml").read_text("utf-8")
RUN = (
    "python3 -m venv .venv && .venv/bin/python -m pip install -r requirements.txt"
    " && .venv/bin/python trades_exporter.py"
)
TEST = (
    "python3 -m venv .venv && .venv/bin/python -m pip install -r tests/requirements.txt && .venv/bin/python -m pytest"
)
TEST_ON_WINDOWS = (
    r"python -m venv .venv && .venv\Scripts\python -m pip install -r tests\requirements.txt"
    r" && .venv\Scripts\python -m pytest"
)
VARIES = "\N{HORIZONTAL ELLIPSIS}"  # stands for what varies in a message


def table(title: str, text: str = README) -> list[list[str]]:
    """Return the cells of the tables whose first column has this title, without the code marks."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == title)
        if inside and cells[0] not in (title, "---"):
            rows.append(cells)
    assert rows, f"there is no table {title!r}"
    return rows


QUOTED = [row[0] for title in ("message", "the log says") for row in table(title)]


def text_of(node: ast.expr) -> str:
    """Return a string of the script as README writes it; nothing for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else VARIES for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


TREE = ast.parse(SCRIPT.read_text("utf-8"))
STRINGS = {text_of(node) for node in ast.walk(TREE) if isinstance(node, ast.JoinedStr | ast.Constant)} - {"", VARIES}


def says(message: str, quoted: str) -> bool:
    """Whether what README quotes is the message, an example of it, or its beginning."""
    if message.startswith(quoted):
        return True
    literal = [re.escape(part) for part in message.split(VARIES)]
    return len("".join(literal)) >= 6 and re.fullmatch(".+".join(literal), quoted) is not None


def messages_of_trouble() -> set[str]:
    """Return every message of the script that warns, or ends it."""
    found = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            if called in ("VaultError", "BuildFailError") or re.search(r"log\.(warning|error|critical)", called):
                found.add(text_of(node.args[0]))
    return {message for message in found if re.search("[A-Za-z]{3}", message)}


def test_the_table_of_options_is_what_help_says() -> None:
    env = os.environ | {"COLUMNS": "400", "NO_COLOR": "1"}
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, env=env, check=True)
    options = run.stdout.partition("\noptions:\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^  (-.*?)(?:  +|\n +)(.*)$", options, re.MULTILINE)
    assert len(rows) > 5, run.stdout
    assert table("option") == [list(row) for row in rows]


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_script(quoted: str) -> None:
    if quoted.startswith("BUILD_FAIL: "):
        assert f"BUILD_FAIL: {VARIES}" in STRINGS
        quoted = quoted.removeprefix("BUILD_FAIL: ")
    assert [text for text in STRINGS if says(text, quoted)], f"the script does not say {quoted!r}"


@pytest.mark.parametrize("message", sorted(messages_of_trouble()))
def test_a_message_of_trouble_is_explained(message: str) -> None:
    assert [q for q in QUOTED if says(message, q.removeprefix("BUILD_FAIL: "))], (
        f"README.md does not explain {message!r}"
    )


def test_the_commands_are_there_as_one_line_each() -> None:
    lines = [line.strip() for line in README.splitlines()]
    for command in (RUN, TEST, TEST_ON_WINDOWS):
        assert lines.count(command) == 1, command
    assert "double-click `start_trades.bat`" in README


def test_the_workflow_runs_the_commands_of_readme() -> None:
    for command in (TEST, TEST_ON_WINDOWS):
        assert command in WORKFLOW
    assert all(system in WORKFLOW for system in ("ubuntu", "windows", "macos"))
    assert all(f'"3.{minor}"' in WORKFLOW for minor in range(11, 15))


@pytest.mark.parametrize("path", ["README.md", "tests/README.md"])
def test_the_files_it_names_are_there(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    named = re.findall(r"(?<![\w/.*-])(?:tests/)?[\w.]+\.(?:py|bat|txt|md|yml)\b", text)
    missing = {name for name in named if not (ROOT / name).exists() and not (ROOT / "tests" / name).exists()}
    linked = {link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not ((ROOT / path).parent / link).exists()}
    assert len(named) > 5
    assert not missing | linked


def test_the_table_of_test_files_is_the_folder() -> None:
    """In both directions, and each file once."""
    named = re.findall(r"\w+\.py", " ".join(cell for row in table("files", FOR_TESTERS) for cell in row))
    assert sorted(named) == sorted(path.name for path in ROOT.joinpath("tests").glob("*.py"))


def test_the_table_of_sections_is_the_script_s_banners() -> None:
    banners = re.findall("^# -{20,} (.+)$", SCRIPT.read_text("utf-8"), re.MULTILINE)
    assert [name.strip() for row in table("section", FOR_TESTERS) for name in row[0].split(",")] == banners


def test_the_record_is_one_that_the_script_writes() -> None:
    (record,) = [line.strip() for line in README.splitlines() if line.strip().startswith('{"timestamp_utc"')]
    assert trades_exporter.RECORD.fullmatch(record.encode() + b"\n")
    assert re.findall(r'"(\w+)":', record) == list(KEYS)


def test_the_reasons_of_gaps_are_those_of_the_script() -> None:
    reasons = [row[0] for row in table("reason")]
    assert set(reasons) == {"start", "absent", "unrepaired", "horizon", "id_reset"}
    assert set(reasons) <= STRINGS


def test_the_top_level_holds_what_the_contract_says() -> None:
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    program = {"trades_exporter.py", "requirements.txt", "start_trades.bat", "README.md", "tests", "Vault"}
    assert program <= names <= program | {"__pycache__", "trades_exporter.log"}


def test_the_script_reads_from_top_to_bottom() -> None:
    """Each of its functions and classes uses only what stands above it, or in it."""
    defined_at: dict[str, int] = {}
    for part in TREE.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined_at[part.name] = part.lineno
        elif isinstance(part, ast.Assign):
            defined_at |= {target.id: part.lineno for target in part.targets if isinstance(target, ast.Name)}
    assert len(defined_at) > 100
    for part in TREE.body:
        names = [node for node in ast.walk(part) if isinstance(node, ast.Name)]
        bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}  # its own variables and arguments
        bound |= {node.arg for node in ast.walk(part) if isinstance(node, ast.arg)}
        upward = {node.id for node in names if defined_at.get(node.id, 0) > (part.end_lineno or 0)} - bound
        assert not upward, f"line {part.lineno} uses what stands below it"


@pytest.mark.parametrize(("kind", "most"), [("function", 40), ("class", 150)])
def test_nothing_in_the_script_is_too_long_to_be_read_at_once(kind: str, most: int) -> None:
    kinds = ast.ClassDef if kind == "class" else ast.FunctionDef | ast.AsyncFunctionDef
    lengths = {
        f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(TREE)
        if isinstance(node, kinds)
    }
    assert len(lengths) > 30
    assert not {name: lines for name, lines in lengths.items() if lines > most}
