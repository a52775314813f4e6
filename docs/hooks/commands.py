"""The commands of the package and their parsers, for the page that lists them and for the tests of code blocks."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import tfdlrm

# In the order in which one meets them; a command that is not named here comes after these.
_FIRST = """
criteo tabular prepare generate inspect explain compare sweep score quantize onnx import_torch budget cluster benchmark
"""
_ORDER = _FIRST.split()
_PIPELINES = Path(tfdlrm.__file__).parent / "pipelines"


def command_modules() -> list[str]:
    """Return the modules that `python -m` takes as commands."""
    programs = (path for path in _PIPELINES.glob("*.py") if path.stem != "script")  # which only starts the others
    names = [path.stem for path in programs if '__name__ == "__main__"' in path.read_text("utf-8")]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return [f"tfdlrm.pipelines.{name}" for name in names] + ["tfdlrm.serving"]


def parser_of(module: str) -> argparse.ArgumentParser:
    """Return the parser of a command, as wide as a page.

    Args:
        module: What follows `python -m`.
    """
    os.environ["COLUMNS"] = "100"
    program = importlib.import_module("tfdlrm.serving.__main__" if module == "tfdlrm.serving" else module)
    if hasattr(program, "build_parser"):
        return program.build_parser()
    from tfdlrm.pipelines.cli import pipeline_parser

    return pipeline_parser(module, program.__doc__ or "")


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield name and parser of each subcommand, if there are any."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()
