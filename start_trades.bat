@echo off
rem Double-click this file to record OKX trades. It needs Python 3.11 or newer and, on its first start, the internet.
rem It makes a Python environment (.venv) beside itself, installs requirements.txt into it, and runs trades_exporter.py
rem with its own arguments and exit code. Ctrl+C stops; where Windows then asks "Terminate batch job (Y/N)?", both will do.
rem A crash of a capture is started again for ever. TRADES_NO_PAUSE=1 in the environment: never wait for a key.

setlocal EnableExtensions DisableDelayedExpansion
set "HERE=%~dp0"
set "VENV_PYTHON=%HERE%.venv\Scripts\python.exe"
set "REQUIREMENTS=%HERE%requirements.txt"
set "INSTALLED=%HERE%.venv\requirements-installed.txt"
set "PYTHONUTF8=1"
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
"%VENV_PYTHON%" -c "import pip, sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
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
call %PYTHON% -m venv --clear .venv
set "FAILED=%ERRORLEVEL%"
popd
if "%FAILED%"=="0" goto packages
echo.
echo Could not make the Python environment "%HERE%.venv"; the reason stands above.
echo Close all programs that use that folder, see to it that this one may be written and the disk is not full,
echo and start again.
goto failed

rem The copy of requirements.txt is written when pip has succeeded: an interrupted or outdated install is mended here.
:packages
"%VENV_PYTHON%" -c "import filecmp, sys; sys.exit(not filecmp.cmp(*sys.argv[1:], False))" "%REQUIREMENTS%" "%INSTALLED%" >nul 2>&1
if "%ERRORLEVEL%"=="0" goto run
echo Installing the packages of requirements.txt ...
if exist "%INSTALLED%" del "%INSTALLED%"
"%VENV_PYTHON%" -m pip install --disable-pip-version-check -r "%REQUIREMENTS%"
if not "%ERRORLEVEL%"=="0" goto pip_failed
copy /y "%REQUIREMENTS%" "%INSTALLED%" >nul

:run
"%VENV_PYTHON%" "%HERE%trades_exporter.py" %*
set "RC=%ERRORLEVEL%"
if "%RC%"=="0" exit /b 0
if not defined CAPTURE goto ended
if "%RC%"=="2" goto ended
if "%RC%"=="3" goto ended
if "%RC%"=="4" goto ended
set /a DELAY*=2
if %DELAY% GTR 60 set "DELAY=60"
set /a PINGS=DELAY+1
echo.
echo The exporter crashed (exit code %RC%). Starting it again in %DELAY% seconds. Ctrl+C stops.
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
echo Could not install the packages; the reason stands above. Check the internet connection (firewall, proxy) and
echo start again: the install goes on from there.
goto failed

:failed
if not defined TRADES_NO_PAUSE pause
exit /b %RC%

rem Sets PYTHON to the command given if that is a Python new enough. It is run to find out, since Windows has a "python"
rem that only advertises the Microsoft Store. "call", since some Pythons are batch files; it would spoil a ^ in a path.
:try_python
if defined PYTHON exit /b 0
call %* -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if "%ERRORLEVEL%"=="0" set "PYTHON=%*"
if defined PYTHON exit /b 0
call %* -c "pass" >nul 2>&1
if "%ERRORLEVEL%"=="0" set "TOO_OLD=%*"
exit /b 0
