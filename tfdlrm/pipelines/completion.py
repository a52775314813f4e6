"""Completion of the console script's commands and flags, for shells."""

from __future__ import annotations

import argparse
import importlib

import shtab

from tfdlrm.pipelines.script import SHELLS, commands


def completion(shell: str) -> str:
    """Return a script that completes `tfdlrm` in a shell.

    Args:
        shell: One of `SHELLS`.
    """
    parser = argparse.ArgumentParser("tfdlrm")
    parser.add_argument("--version", action="store_true", help="the version")
    subparsers = parser.add_subparsers()
    for name, module in commands().items():
        own = importlib.import_module("tfdlrm.serving.__main__" if name == "serve" else module).build_parser()
        subparsers.add_parser(name, parents=[own], add_help=False, conflict_handler="resolve", help=own.description)
    shells = subparsers.add_parser("completion", help="print completion for a shell")
    shells.add_argument("shell", choices=SHELLS)
    script: str = shtab.complete(parser, shell)
    return script
