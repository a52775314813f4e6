"""The command's way to Apache Beam: which arguments are whose, one line for a mistake, no traceback."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest

from tfdlrm.data.planted import write_planted
from tfdlrm.pipelines.beam import add_beam_arguments, refuse_idle_options, run_with_beam, split_beam_options
from tfdlrm.pipelines.cli import EXIT_USER_ERROR, run_command
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError


def test_options_after_two_dashes_are_beams():
    parser = argparse.ArgumentParser()
    parser.add_argument("--raw", nargs="+")
    add_beam_arguments(parser)
    own, beams = split_beam_options(["--engine", "beam", "--raw", "a", "b", "--", "--runner=FlinkRunner", "--", "x"])
    args = parser.parse_args(own)
    assert (args.engine, args.raw, beams) == ("beam", ["a", "b"], ["--runner=FlinkRunner", "--", "x"])
    assert split_beam_options(["--raw", "a"]) == (["--raw", "a"], [])
    assert parser.parse_args([]).engine == "local"


def test_options_without_beam_are_refused():
    refuse_idle_options("local", [])
    refuse_idle_options("beam", ["--runner=FlinkRunner"])
    with pytest.raises(ConfigError, match="must come with --engine beam. Received: --runner=FlinkRunner"):
        refuse_idle_options("local", ["--runner=FlinkRunner"])


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason='no apache-beam (extra "beam")')
def test_a_mistake_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.txt"
    write_planted(path, 1000)
    data = DataConfig(coding=TableCoding(kind="hash", buckets=100))

    def body() -> int:
        seen: list[str] = []

        def bar(name: str, rows: int):
            seen.append(name)
            return lambda done: None

        run_with_beam(data, [str(path)], str(tmp_path / "data"), 8, [], overwrite=False, progress=bar)
        assert seen == ["count", "vocabulary", "encode"]
        return 0

    assert run_command(body) == 0
    capfd.readouterr()
    with path.open("a") as file:
        file.write("no row\n")
    (tmp_path / "data").rename(tmp_path / "other")
    assert run_command(body) == EXIT_USER_ERROR
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.startswith(f"tfdlrm: {path}:1001: ")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "data").exists()
