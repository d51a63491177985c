@echo off
rem Double-click this file to record OKX trades. It needs Python 3.11 or newer and, on its first start, the internet.
rem It makes a Python environment (.venv) beside itself, installs requirements.txt into it, and runs trades_exporter.py
rem with its own arguments and exit code. Ctrl+C stops it; answer Y if Windows then asks "Terminate batch job (Y/N)?".
rem A capture that crashed, or could not use its Vault, is started again for ever; --verify and the like are not.
rem TRADES_NO_PAUSE=1 in the environment: never wait for a key.

setlocal EnableExtensions DisableDelayedExpansion
title OKX trades

rem Settings that are meant for another Python must not reach this one. Python is started with -I: it ignores all PYTHON*
rem variables and the current folder. Of the PIP_* variables those stay that say how packages are fetched (forget_pip).
rem A variable ERRORLEVEL would hide the exit codes; PY_PYTHON3 chooses what "py -3" starts. "set PIP_" finds at least the
rem variable set here, and so never complains.
set "ERRORLEVEL="
set "PY_PYTHON3="
set "VIRTUAL_ENV="
set "__PYVENV_LAUNCHER__="
set "PIP_DISABLE_PIP_VERSION_CHECK=1"
for /f "delims==" %%V in ('set PIP_') do call :forget_pip %%V

set "HERE=%~dp0"
set "VENV_PYTHON=%HERE%.venv\Scripts\python.exe"
set "REQUIREMENTS=%HERE%requirements.txt"
set "INSTALLED=%HERE%.venv\requirements-installed.txt"
set "STARTED=%HERE%.venv\started.txt"
set "RC=1"
if not exist "%HERE%trades_exporter.py" goto incomplete
if not exist "%REQUIREMENTS%" goto incomplete

rem Only a capture is restarted. "shift" leaves %%* alone; comparing %%1 in brackets tells an empty argument from the end.
set "CAPTURE=yes"
set "DELAY=1"
:next_argument
if [%1]==[] goto environment
if "%~1"=="--verify" set "CAPTURE="
if "%~1"=="--audit" set "CAPTURE="
if "%~1"=="--version" set "CAPTURE="
if "%~1"=="--help" set "CAPTURE="
if "%~1"=="-h" set "CAPTURE="
shift /1
goto next_argument

rem An environment that does not run, has no pip or whose Python is too old is made anew.
:environment
"%VENV_PYTHON%" -I -c "import pip, sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if "%ERRORLEVEL%"=="0" goto packages
set "PYTHON="
set "TOO_OLD="
call :try_python py -3
call :try_python python
if defined PYTHON goto make_environment
if defined TOO_OLD goto python_too_old
goto no_python

:make_environment
echo Making a Python environment in .venv ...
pushd "%HERE%"
call %PYTHON% -I -m venv --clear .venv
set "FAILED=%ERRORLEVEL%"
popd
if "%FAILED%"=="0" goto packages
echo.
echo Could not make the Python environment "%HERE%.venv"; the reason stands above.
echo Close all programs that use that folder, see to it that this one may be written and the disk is not full,
echo and start again.
goto failed

rem The copy of requirements.txt is written when pip has succeeded and the exporter can import everything: an interrupted
rem or outdated install is mended here. Only ready-made packages are installed: most PCs have no compiler.
:packages
"%VENV_PYTHON%" -I -c "import filecmp, sys; sys.exit(not filecmp.cmp(*sys.argv[1:], False))" "%REQUIREMENTS%" "%INSTALLED%" >nul 2>&1
if "%ERRORLEVEL%"=="0" goto run
echo Installing the packages of requirements.txt ...
if exist "%INSTALLED%" del "%INSTALLED%"
"%VENV_PYTHON%" -I -X utf8 -m pip install --only-binary :all: -r "%REQUIREMENTS%"
if not "%ERRORLEVEL%"=="0" goto pip_failed
"%VENV_PYTHON%" -I -X utf8 "%HERE%trades_exporter.py" --version >nul
if not "%ERRORLEVEL%"=="0" goto pip_failed
copy /y "%REQUIREMENTS%" "%INSTALLED%" >nul

:run
if defined CAPTURE type nul >"%STARTED%"
"%VENV_PYTHON%" -I -X utf8 "%HERE%trades_exporter.py" %*
set "RC=%ERRORLEVEL%"
if "%RC%"=="0" exit /b 0
rem Ctrl+C before the exporter could take care of it (0xC000013A)
if "%RC%"=="-1073741510" exit /b %RC%
if not defined CAPTURE goto ended
if "%RC%"=="2" goto ended
if "%RC%"=="3" goto ended
echo.
if "%RC%"=="4" goto vault_unusable
rem The pause doubles with each crash, up to a minute, and begins anew after a run of 10 minutes (600 s).
"%VENV_PYTHON%" -I -c "import os, sys, time; sys.exit(time.time() - os.stat(sys.argv[1]).st_mtime < 600)" "%STARTED%" >nul 2>&1
if "%ERRORLEVEL%"=="0" set "DELAY=1"
set /a DELAY*=2
if %DELAY% GTR 60 set "DELAY=60"
set /a PINGS=DELAY+1
echo The exporter crashed (exit code %RC%). Starting it again in %DELAY% seconds. Ctrl+C stops.
goto wait

:vault_unusable
set "PINGS=61"
echo The Vault or the log file cannot be used (exit code 4); the reason stands above.
echo Starting again in 60 seconds. Ctrl+C stops.

:wait
ping -n %PINGS% 127.0.0.1 >nul
goto run

:ended
echo.
echo The exporter ended with exit code %RC%; the reason stands above.
goto failed

:incomplete
echo trades_exporter.py and requirements.txt must lie beside this file, in
echo "%HERE%"
echo If it was opened inside a ZIP file: extract the whole ZIP file first.
goto failed

:no_python
echo No Python was found. Install Python 3.11 or newer from https://www.python.org/downloads/windows/ with
echo "Add python.exe to PATH" ticked, and start again.
goto failed

:python_too_old
echo The Python on this PC is too old:
call %TOO_OLD% --version
echo Install Python 3.11 or newer from https://www.python.org/downloads/windows/ with
echo "Add python.exe to PATH" ticked, and start again.
goto failed

:pip_failed
echo.
echo Could not install the packages; the reason stands above. The two usual causes:
echo 1. No way to the internet. Check the connection, the firewall and the proxy, and start again.
echo 2. The Python of the environment, named here, is too new: there are no ready-made packages for it yet.
"%VENV_PYTHON%" --version
echo    3.11 to 3.14 are known to work. Install one of them from https://www.python.org/downloads/windows/, run
echo        py -3.14 -m venv --clear "%HERE%.venv"
echo    with its number in place of 3.14, and start again.
goto failed

:failed
if not defined TRADES_NO_PAUSE pause
exit /b %RC%

rem Sets PYTHON to the command given if that is a Python new enough. It is run to find out, since Windows has a "python"
rem that only advertises the Microsoft Store. "call", since some Pythons are batch files; it would spoil a ^ in a path.
:try_python
if defined PYTHON exit /b 0
call %* -I -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if "%ERRORLEVEL%"=="0" set "PYTHON=%*"
if defined PYTHON exit /b 0
call %* -I -c "pass" >nul 2>&1
if "%ERRORLEVEL%"=="0" set "TOO_OLD=%*"
exit /b 0

rem Removes a PIP_* variable, unless it says where and how packages are fetched.
:forget_pip
for %%K in (INDEX_URL EXTRA_INDEX_URL NO_INDEX FIND_LINKS CONFIG_FILE PROXY) do if /i "%1"=="PIP_%%K" exit /b 0
for %%K in (CERT CLIENT_CERT TRUSTED_HOST KEYRING_PROVIDER USE_FEATURE) do if /i "%1"=="PIP_%%K" exit /b 0
for %%K in (USE_DEPRECATED TIMEOUT DEFAULT_TIMEOUT RETRIES CACHE_DIR) do if /i "%1"=="PIP_%%K" exit /b 0
if /i "%1"=="PIP_DISABLE_PIP_VERSION_CHECK" exit /b 0
set "%1="
exit /b 0
