"""The console script: names of commands, help, completion, and the ways to speak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tfdlrm
from tests.pipelines.small_runs import Outcome, call
from tfdlrm.pipelines import benchmark, budget, inspect, script
from tfdlrm.pipelines.cli import run_command
from tfdlrm.pipelines.completion import completion
from tfdlrm.pipelines.console import Console, progress_bars
from tfdlrm.pipelines.manner import Manner, speak
from tfdlrm.pipelines.table import say_tables
from tfdlrm.report.html import Table
from tfdlrm.spec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manner():
    yield speak
    speak(Manner())


def ended(*arguments: str) -> Outcome:
    """Call the script in this process; it may leave it."""

    def main(argv: list[str]) -> int:
        try:
            return script.main(argv)
        except SystemExit as end:
            return int(end.code or 0)

    return call(main, *arguments)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tfdlrm.pipelines.script", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_command_is_there_and_told() -> None:
    shown = ended("--help").out
    for name, module in script.commands().items():
        assert f"  {name} " in shown
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file() or module == "tfdlrm.serving"
    commands = {
        path.stem
        for path in (ROOT / "tfdlrm" / "pipelines").glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    known = {module.rpartition(".")[2] for module in script.commands().values()}
    assert commands - known == {"script"}
    for code in (0, 1, 2, 130, 143):
        assert f"\n  {code} " in shown


def test_version_and_wrong_names() -> None:
    assert ended("--version").out == f"tfdlrm {tfdlrm.__version__}\n"
    wrong = ended("critoe")
    assert (wrong.code, wrong.err) == (2, "tfdlrm: no command 'critoe'. Did you mean `criteo`? See tfdlrm --help.\n")
    nothing = ended()
    assert nothing.code == 2 and "tfdlrm COMMAND" in nothing.out


def test_commands_are_called_as_they_are_typed(tmp_path: Path) -> None:
    done = run("budget", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: tfdlrm budget ")
    assert "examples:\n  tfdlrm budget --dataset kaggle --budget 512MB  # " in done.stdout
    refused = run("inspect", str(tmp_path))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr
    logged = run("inspect", str(tmp_path), "--json-logs")
    told = json.loads(logged.stderr)
    assert told["level"] == "error" and told["exit_code"] == 2 and told["message"] == refused.stderr.strip()


@pytest.mark.parametrize("shell", script.SHELLS)
def test_completion_knows_commands_and_flags(shell: str) -> None:
    text = completion(shell)
    for word in (*script.commands(), "--work-dir", "--model_base_path", "--json-logs"):
        assert word.lstrip("-") in text


def test_completion_is_valid_for_bash(tmp_path: Path) -> None:
    file = tmp_path / "completion.bash"
    file.write_text(completion("bash"))
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    done = subprocess.run(
        ["bash", "-c", f"source {file}; COMP_WORDS=(tfdlrm qu); COMP_CWORD=1; _shtab_tfdlrm; echo ${{COMPREPLY[@]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["quantize"]


@pytest.mark.parametrize("command", [benchmark, budget, inspect])
def test_help_has_examples_that_parse(command) -> None:
    parser = command.build_parser()
    for arguments in command._EXAMPLES:
        parser.parse_args(arguments.split())
    assert "examples:" in parser.format_help()


def test_quiet_tells_errors_alone(manner, capsys) -> None:
    manner(Manner(quiet=True))
    Console().say("a line")
    say_tables(Table("t", ["a"], [["1"]]))
    with progress_bars(False, first_line=0.0, next_lines=0.001) as bar:
        bar("rows", 5)(5)
    assert run_command(_refused) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "tfdlrm: it must not.\n")


def test_brackets_in_tables_are_text(capsys) -> None:
    say_tables(Table("[bold] caption", ["a[/b]"], [["[true, false]"], ["x[/b]"]]))
    shown = capsys.readouterr().out
    for text in ("[bold] caption", "a[/b]", "[true, false]", "x[/b]"):
        assert text in shown


def test_rows_done_before_are_no_rate(capsys) -> None:
    with progress_bars(False, first_line=0.3, next_lines=60.0) as bar:
        advance = bar("train", 2_000_000)
        advance(1_000_000)  # of an earlier process
        advance(30)
        time.sleep(0.6)
    (line,) = capsys.readouterr().err.splitlines()
    rate = int(line.rpartition(", ")[2].removesuffix(" rows/s").replace(",", ""))
    assert "1,000,030 of 2,000,000 rows" in line and 0 < rate <= 110


def test_json_lines(manner, capsys) -> None:
    manner(Manner(json_logs=True))
    Console().say("train:     a line")
    say_tables(Table("two", ["a", "b"], [["1", "x"]]), None)
    assert run_command(_refused) == 2
    shown = capsys.readouterr()
    line, table = map(json.loads, shown.out.splitlines())
    assert line["message"] == "train:     a line" and line["level"] == "info" and line["time"].endswith("+00:00")
    assert table["table"] == [{"a": "1", "b": "x"}]
    assert json.loads(shown.err) | {"time": ""} == {
        **{"time": "", "level": "error", "message": "tfdlrm: it must not.", "exit_code": 2}
    }


def test_verbose_shows_the_traceback_of_a_slip(manner, capsys) -> None:
    manner(Manner(verbose=True))
    assert run_command(_refused) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("tfdlrm: it must not.\n")


def test_flags_stand_before_and_after_a_subcommand(manner) -> None:
    from tfdlrm.pipelines.manner import manner as now

    parser = benchmark.build_parser()
    for arguments in (["--quiet", "input"], ["input", "--quiet"]):
        parser.parse_args(arguments)
        assert now() == Manner(quiet=True)
    parser.parse_args(["input"])
    assert now() == Manner()
    with pytest.raises(SystemExit):
        parser.parse_args(["input", "--quiet", "--verbose"])


def _refused() -> int:
    raise ConfigError("it must not.")
