"""What the parsers of all commands share: their name as typed, examples, and how they speak."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdlrm.pipelines.manner import Manner, speak

PROGRAM = "TFDLRM_PROGRAM"
"""Environment variable, set by the console script: what was typed in place of `python -m tfdlrm.pipelines`."""


class CommandParser(argparse.ArgumentParser):
    """The parser of a command: no abbreviations, examples under its help, and flags for how it speaks.

    Args:
        module: Name of the command's module.
        description: First line of its help.
        examples: What each example does, by its arguments.
    """

    def __init__(self, module: str, description: str | None, examples: Mapping[str, str]) -> None:
        super().__init__(
            typed(module),
            description=description,
            epilog=_epilog(typed(module), examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_manners(self)

    def add_subparsers(self, **settings: Any) -> Any:
        """Return what makes the parsers of subcommands; they speak as the command does."""
        return super().add_subparsers(**{"parser_class": _Subparser, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and let the process speak as it was asked to."""
        found, rest = super().parse_known_args(args, namespace)
        speak(Manner(**{name: bool(getattr(found, name, False)) for name in ("quiet", "verbose", "json_logs")}))
        return found, rest


class _Subparser(argparse.ArgumentParser):
    """The parser of a subcommand; `examples` are those of `CommandParser`."""

    def __init__(self, *, prog: str, examples: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(
            prog=prog,
            epilog=_epilog(prog, examples or {}),
            **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings},
        )
        add_manners(self)


def add_manners(parser: argparse.ArgumentParser) -> None:
    """Add the flags for how a command speaks, to a parser or to that of a subcommand."""
    group = parser.add_argument_group("output")
    how = group.add_mutually_exclusive_group()
    # Not set unless given: else a subcommand's default would hide what stood before its name.
    how.add_argument("--quiet", "-q", **_switch("only errors; results are in the files of the run"))
    how.add_argument("--verbose", "-v", **_switch("progress more often, libraries' notes, tracebacks"))
    group.add_argument("--json-logs", **_switch("lines are JSON objects: time, level, message"))


def _switch(text: str) -> dict[str, Any]:
    return {"action": "store_true", "default": argparse.SUPPRESS, "help": text}


def typed(module: str) -> str:
    """Return what is typed for a command: `tfdlrm criteo`, or `python -m tfdlrm.pipelines.criteo`."""
    if os.environ.get(PROGRAM):
        return f"{os.environ[PROGRAM]} {command_name(module)}"
    return f"python -m {module}"


def typed_again(module: str, arguments: Sequence[str]) -> str:
    """Return the whole line that starts a command again, as it can be pasted into a shell."""
    begin = typed(module) if os.environ.get(PROGRAM) else f"{python_command()} -m {module}"
    return f"{begin} {shlex.join(arguments)}".rstrip()


def command_name(module: str) -> str:
    """Return the name of a command under the console script."""
    return "serve" if module == "tfdlrm.serving" else module.rpartition(".")[2].replace("_", "-")


def python_command() -> str:
    """Return what to type for the Python that runs, as short as it may be."""
    found = shutil.which("python")
    if found is not None and os.path.samefile(found, sys.executable) and Path(found).parent == _bin():
        return "python"
    try:
        return shlex.quote(str(Path(sys.executable).relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(sys.executable)


def _bin() -> Path:
    return Path(sys.executable).parent


def _epilog(program: str, examples: Mapping[str, str]) -> str | None:
    if not examples:
        return None
    lines = [f"  {program} {arguments}".rstrip() for arguments in examples]
    widest = max(map(len, lines))
    if widest > 70:  # what an example does stands above it, where it does not fit beside it
        parts = [f"  # {what}\n{line}" for line, what in zip(lines, examples.values(), strict=True)]
    else:
        parts = [f"{line:<{widest}}  # {what}" for line, what in zip(lines, examples.values(), strict=True)]
    return "examples:\n" + "\n".join(parts)
