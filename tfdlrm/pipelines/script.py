"""`tfdlrm`: every command of the package by its name."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

import tfdlrm
from tfdlrm.pipelines.parsers import PROGRAM
from tfdlrm.spec.errors import did_you_mean

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "from rows to a served model": {
        "criteo": ("tfdlrm.pipelines.criteo", "rows in Criteo's format to a served model; alone: a demo"),
        "tabular": ("tfdlrm.pipelines.tabular", "the same for any CSV or TSV that a recipe describes"),
        "serve": ("tfdlrm.serving", "serve models over REST and gRPC, as TensorFlow Serving does"),
        "score": ("tfdlrm.pipelines.score", "probabilities for files of raw rows"),
    },
    "data": {
        "prepare": ("tfdlrm.pipelines.prepare", "raw logs to TFRecord; recipes explained and compared"),
        "inspect": ("tfdlrm.pipelines.inspect", "what prepared rows hold, and whether they are whole"),
        "generate": ("tfdlrm.pipelines.generate", "random rows, traces, planted click logs"),
    },
    "models": {
        "compare": ("tfdlrm.pipelines.compare", "models side by side at equal size"),
        "sweep": ("tfdlrm.pipelines.sweep", "search the settings of a recipe"),
        "explain": ("tfdlrm.pipelines.explain", "what a trained model listens to"),
        "budget": ("tfdlrm.pipelines.budget", "tables that fit into a number of bytes"),
        "quantize": ("tfdlrm.pipelines.quantize", "what smaller tables save and cost"),
        "onnx": ("tfdlrm.pipelines.onnx", "an exported model as ONNX"),
        "import-torch": ("tfdlrm.pipelines.import_torch", "weights of facebookresearch/dlrm"),
    },
    "machines": {
        "cluster": ("tfdlrm.pipelines.cluster", "plan and run parameter servers and workers"),
        "benchmark": ("tfdlrm.pipelines.benchmark", "how fast this machine trains, reads, prepares, serves"),
    },
}
EXIT_CODES = """exit codes:
  0    done
  1    a check failed: the exported model does not answer what it should
  2    the input, the configuration or a file cannot be used; one line says which
  130  Ctrl-C; what is done is kept, and the last line says how to go on
  143  SIGTERM in training, answered with a checkpoint; the same command goes on"""
SHELLS = ("bash", "zsh", "tcsh")


def commands() -> dict[str, str]:
    """Return the module of each command, by its name."""
    return {name: module for group in GROUPS.values() for name, (module, _) in group.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before the name of a command."""
    parser = argparse.ArgumentParser(
        "tfdlrm",
        usage="tfdlrm COMMAND [arguments]\n       tfdlrm COMMAND --help",
        description="DLRM in Keras and TensorFlow: raw click logs in, a served model out.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tfdlrm {tfdlrm.__version__}")
    parser.add_argument("command", metavar="COMMAND", help="see below; `completion` prints shell completion")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command as `python -m` would, under its short name."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not given:
        parser.print_help()
        return 2
    args = parser.parse_args(given)
    if args.command == "completion":
        return _completion(args.arguments)
    module = commands().get(args.command)
    if module is None:
        known = [*commands(), "completion"]
        print(
            f"tfdlrm: no command {args.command!r}.{did_you_mean(args.command, known)} See tfdlrm --help.",
            file=sys.stderr,
        )
        return 2
    os.environ[PROGRAM] = "tfdlrm"
    sys.argv = ["tfdlrm", *args.arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _completion(arguments: Sequence[str]) -> int:
    """Print completion for a shell."""
    parser = argparse.ArgumentParser(
        "tfdlrm completion",
        description='Print shell completion, for example: eval "$(tfdlrm completion bash)" in ~/.bashrc.',
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    from tfdlrm.pipelines.completion import completion

    print(completion(shell))
    return 0


def _overview() -> str:
    lines = []
    for group, members in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<13} {what}" for name, (_, what) in members.items()), ""]
    lines += ["examples:", "  tfdlrm criteo                                # a demo on planted rows, about a minute"]
    lines += ["  tfdlrm criteo --raw train.txt --dry-run      # what would run, with sizes and times"]
    lines += ["  tfdlrm tabular --config shop.toml            # your own CSV", "", EXIT_CODES]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
