"""README.md held against what it describes: the options, the messages, the commands, the files it names."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trades_exporter
from fake_okx import BTC, ETH
from harness import KEYS, ROOT, SCRIPT, day_path

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
    """Return the cells of the tables whose first column has this title, without the code marks around a cell."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == title)
        if inside and cells[0] not in (title, "---"):
            rows.append(cells)
    assert rows, f"there is no table {title!r}"
    return rows


TITLES = ("message", "the log says", "it says")
QUOTED = [text for title in TITLES for row in table(title) for text in row[0].split("`, `")]  # a cell may quote several
TREE = ast.parse(SCRIPT.read_text("utf-8"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, Function)]
CALLS = [  # each with the function that it is in
    (node, function) for function in FUNCTIONS for node in ast.walk(function) if isinstance(node, ast.Call)
]
SAYS = {"BuildFailError": 0, "VaultError": 0, "log.warning": 0, "log.error": 0, "log.critical": 0, "log.log": 1}


def text_of(node: ast.expr) -> str:
    """Return a string of the script as README writes it; nothing for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else VARIES for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


DOCSTRINGS = [node.value for node in ast.walk(TREE) if isinstance(node, ast.Expr)]
STRINGS = {
    text_of(node)
    for node in ast.walk(TREE)
    if isinstance(node, ast.JoinedStr | ast.Constant) and node not in DOCSTRINGS
} - {"", VARIES}


def passed_texts(name: str, function: Function) -> set[str]:
    """Return what the script's calls hand to a parameter of a function, where that is a text."""
    names = [argument.arg for argument in function.args.args]
    if name not in names:
        return set()
    at = names.index(name) - (names[0] == "self")
    return {
        text
        for call, caller in CALLS
        if ast.unparse(call.func).rpartition(".")[2] == function.name and len(call.args) > at >= 0
        for text in texts_of(call.args[at], caller)
    }


def texts_of(node: ast.expr, function: Function) -> set[str]:
    """Return the texts that an expression of a function may have, as README writes them; none where that is unknown."""
    if isinstance(node, ast.IfExp):
        return texts_of(node.body, function) | texts_of(node.orelse, function)
    if isinstance(node, ast.Call):
        called = [other for other in FUNCTIONS if other.name == ast.unparse(node.func)]
        returned = [(part.value, other) for other in called for part in ast.walk(other) if isinstance(part, ast.Return)]
        return {text for value, other in returned if value for text in texts_of(value, other)}
    if isinstance(node, ast.Name):
        values = [
            part.value
            for part in ast.walk(function)
            if isinstance(part, ast.Assign) and [ast.unparse(target) for target in part.targets] == [node.id]
        ]
        return {text for value in values for text in texts_of(value, function)} or passed_texts(node.id, function)
    text = text_of(node)
    first = node.values[0] if isinstance(node, ast.JoinedStr) else None
    if isinstance(first, ast.FormattedValue) and isinstance(first.value, ast.Name):
        beginnings = passed_texts(first.value.id, function)
        return {beginning + text.removeprefix(VARIES) for beginning in beginnings} or {text}
    return {text} if text else set()


def messages_of_trouble() -> set[str]:
    """Return every message of the script that warns, or ends it."""
    found = set()
    for call, function in CALLS:
        for called, at in SAYS.items():
            if called in ast.unparse(call.func) and len(call.args) > at:
                found |= texts_of(call.args[at], function)
    return found


def says(message: str, quoted: str) -> bool:
    """Whether what README quotes is the message, an example of it, or its beginning."""
    if message.startswith(quoted):
        return True
    literal = [re.escape(part) for part in message.split(VARIES)]
    return len("".join(literal)) >= 6 and re.fullmatch(".*".join(literal), quoted) is not None


def test_the_messages_of_the_script_are_found() -> None:
    """Also where they are a variable, come from another function, or begin with what a caller says."""
    expected = ["Gap found", "Gap on record", "Can't write to the Vault", "Missing required trade", "Trade ids fell"]
    expected += ["Not connected to OKX", "REST request failed", "An unknown event", "Stats: ", "Audit: "]
    messages = messages_of_trouble()
    assert not [text for text in expected if not any(message.startswith(text) for message in messages)]


def test_the_table_of_options_is_what_help_says() -> None:
    env = os.environ | {"COLUMNS": "400", "NO_COLOR": "1"}
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, env=env, check=True)
    options = run.stdout.partition("\noptions:\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^  (-.*?)(?:  +|\n +)(.*)$", options, re.MULTILINE)
    assert len(rows) > 5, run.stdout
    assert table("option") == [list(row) for row in rows]
    codes = re.findall(r"(\d) ([^;.]+)[;.]", run.stdout.partition("\nExit codes: ")[2])
    assert len(codes) == 5, run.stdout
    assert [row[:2] for row in table("exit code")] == [list(code) for code in codes]


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


def test_what_the_launcher_says_is_quoted_as_it_says_it() -> None:
    said = re.findall(r"^\| `([A-Z][^|]*)` \|", README.partition("| what you see |")[2], re.MULTILINE)
    quoted = [text for cell in said for text in cell.split("`, `")]
    launcher = ROOT.joinpath("start_trades.bat").read_text("utf-8")
    assert len(quoted) == 4
    assert not [text for text in quoted if f"echo {text}" not in launcher]


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
    saved = set(re.findall(r"^# Vault/(\w+\.py)$", text, re.MULTILINE))  # by whoever reads it
    missing = {name for name in named if not (ROOT / name).exists() and not (ROOT / "tests" / name).exists()} - saved
    linked = {link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not ((ROOT / path).parent / link).exists()}
    assert len(named) > 5
    assert not missing | linked


def test_the_table_of_test_files_is_the_folder() -> None:
    """In both directions, and each file once."""
    named = re.findall(r"\w+\.py", " ".join(cell for row in table("files", FOR_TESTERS) for cell in row))
    assert sorted(named) == sorted(path.name for path in ROOT.joinpath("tests").glob("*.py"))


def test_the_record_is_one_that_the_script_writes() -> None:
    (record,) = [line.strip() for line in README.splitlines() if line.strip().startswith('{"timestamp_utc"')]
    assert trades_exporter.RECORD.fullmatch(record.encode() + b"\n")
    assert re.findall(r'"(\w+)":', record) == list(KEYS)


def test_the_quick_look_shows_what_was_traded(tmp_path: Path) -> None:
    """Of the record that README shows, a sale of another instrument, and a line that is being written."""
    (record,) = [line.strip() for line in README.splitlines() if line.strip().startswith('{"timestamp_utc"')]
    other = record.replace("BTC", "ETH").replace('"buy"', '"sell"').replace('"0.01"', '"0.1"')
    later = other.replace("1234567890", "10000000000").replace("101250.5", "101250.4")  # in the same millisecond
    for inst_id, lines in ((BTC, f"{record}\n{record[:50]}"), (ETH, f"{other}\n{later}\n")):
        path = day_path(tmp_path / "Vault", "2025-12-14", inst_id)
        path.parent.mkdir(parents=True)
        path.write_text(lines, "utf-8")
    code = README.partition("\n## A quick look\n")[2].partition("```python\n")[2].partition("```")[0]
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [re.findall(r"[\w.-]+", line) for line in run.stdout.splitlines() if "2025-12-14" in line]
    assert rows == [
        [BTC, "2025-12-14", "1", "101250.5", "0.45000000", "NULL"],
        [ETH, "2025-12-14", "2", "101250.4", "NULL", "9.00000000"],
    ]


def test_the_reasons_of_gaps_are_those_of_the_script() -> None:
    (known,) = re.findall(r'"reason":"\(([a-z|]+)\)"', SCRIPT.read_text("utf-8"))
    assert {row[0] for row in table("reason")} == set(known.split("|"))


def test_it_knows_the_version_and_how_far_back_it_goes() -> None:
    assert f"\n- **{trades_exporter.VERSION}** " in README.partition("\n## What changed\n")[2]
    assert f"The earliest is {trades_exporter.FIRST_DAY}" in " ".join(README.split())
    assert trades_exporter.HISTORY_FREE_BYTES == 2 << 30
    assert "Below 2 GB of free space history stops" in " ".join(README.split())


def test_the_top_level_holds_what_the_contract_says() -> None:
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    program = {"trades_exporter.py", "requirements.txt", "start_trades.bat", "README.md", "tests", "Vault"}
    assert program <= names <= program | {"__pycache__", "trades_exporter.log"}


def test_the_pages_name_the_sections_of_the_script_in_order() -> None:
    """Its docstring does, and the table of tests/README.md."""
    sections = re.findall("^# -{20,} (.+)$", SCRIPT.read_text("utf-8"), re.MULTILINE)
    listed = (ast.get_docstring(TREE) or "").partition("stands above it: ")[2].partition(".")[0]
    assert len(sections) > 10
    assert listed.replace("\n", " ").split(", ") == sections
    assert [name.strip() for row in table("section", FOR_TESTERS) for name in row[0].split(",")] == sections


def test_the_script_reads_from_top_to_bottom() -> None:
    """Each of its functions and classes uses only what stands above it, or in it."""
    defined_at: dict[str, int] = {}
    for part in TREE.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined_at[part.name] = part.lineno
        elif isinstance(part, ast.Assign):
            defined_at |= {target.id: part.lineno for target in part.targets if isinstance(target, ast.Name)}
    assert len(defined_at) > 100
    early = []
    for part in TREE.body:
        nodes = list(ast.walk(part))
        own = {node.arg for node in nodes if isinstance(node, ast.arg)}  # names of its own may be those of functions
        own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        used = [node for node in nodes if isinstance(node, ast.Name) and node.id not in own]
        early += [f"{n.id} in line {n.lineno}" for n in used if defined_at.get(n.id, 0) > (part.end_lineno or 0)]
    assert not early


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
