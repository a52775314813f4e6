"""Raw rows to packed rows of ids by a named or a written recipe; a recipe in words; two recipes compared."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdlrm.pipelines.beam import add_beam_arguments, refuse_idle_options, run_with_beam, split_beam_options
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.console import NewBar, Stopwatch, progress_bars
from tfdlrm.pipelines.day_notes import day_notes
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser, typed_again
from tfdlrm.pipelines.recipe_text import diff_lines, explanation_lines
from tfdlrm.spec.arguments import positive
from tfdlrm.spec.config import DataConfig, load_config
from tfdlrm.spec.errors import ConfigError, DataError, DiskFullError
from tfdlrm.spec.published import DATASETS, RECIPES
from tfdlrm.spec.recipe_words import explain_recipe

if TYPE_CHECKING:
    from tfdlrm.data.manifest import Manifest

_WIDTH = 16  # of the tables in the manifest; prepared rows do not depend on it
_EXAMPLES = {
    "run --recipe tfdlrm --raw train.txt --out data/kaggle": "prepare",
    "explain nvidia": "a published preparation in words",
    "diff fb tfdlrm --raw train.txt": "rows, ids and splits that differ",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.prepare", __doc__, _EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    names = ", ".join(RECIPES)

    run = commands.add_parser("run", help="prepare raw files", allow_abbrev=False)
    what = run.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="NAME", help=f"one of {names}")
    what.add_argument("--config", type=Path, metavar="FILE", help="recipe (TOML)")
    run.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe; repeatable"
    )
    run.add_argument("--raw", nargs="+", default=[], metavar="PATH", help="raw files in order, in place of `data.raw`")
    run.add_argument("--out", required=True, metavar="DIR", help="where the prepared data go; a URL with --engine beam")
    run.add_argument(
        "--embedding-dim", type=int, metavar="D", help=f"width of the tables (default: the recipe's, or {_WIDTH})"
    )
    run.add_argument(
        "--memory",
        type=positive,
        default=256,
        metavar="MIB",
        help="for counts and for looking values up; beyond it sorted files serve (default: %(default)s)",
    )
    run.add_argument("--overwrite", action="store_true", help="replace what another recipe prepared there")
    add_beam_arguments(run)
    run.set_defaults(body=_run)

    explain = commands.add_parser("explain", help="say a recipe in words", allow_abbrev=False)
    explain.add_argument("recipe", metavar="RECIPE", help=f"one of {names}, or a TOML file")
    explain.add_argument("--json", action="store_true", help="as JSON, with all settings")
    explain.set_defaults(body=_explain)

    diff = commands.add_parser("diff", help="compare what two recipes make of raw files", allow_abbrev=False)
    diff.add_argument("a", metavar="A", help=f"one of {names}, or a TOML file")
    diff.add_argument("b", metavar="B", help="the other recipe")
    diff.add_argument("--raw", nargs="+", required=True, metavar="PATH", help="raw files in order, plain or .gz")
    diff.add_argument("--json", type=Path, metavar="FILE", help="write all that was found to this file, too")
    diff.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where what is prepared lies in between, some 500 bytes a row of Criteo (default: the system's folder)",
    )
    diff.set_defaults(body=_diff)

    for command in (run, explain, diff):
        command.add_argument(
            "--dataset", metavar="NAME", help=f"for a named recipe: {' or '.join(DATASETS)} (default: {DATASETS[0]})"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and do what they say."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, beam_options = split_beam_options(arguments)
    args = build_parser().parse_args(own, argparse.Namespace(beam_options=beam_options))
    keeps = args.command == "run" and args.engine == "local"
    again = typed_again("tfdlrm.pipelines.prepare", arguments)
    return run_command(lambda: args.body(args), again if keeps else None)


def _run(args: argparse.Namespace) -> int:
    named = [] if args.recipe is None else [f"data.recipe={json.dumps(args.recipe)}"]
    config = load_config(args.config, [*named, *_dataset(args), *args.set])
    raw = args.raw or list(config.data.raw)
    if not raw:
        raise ConfigError("`--raw` must name the raw files, as the recipe names none. Received: none.")
    width = args.embedding_dim
    if width is None:
        width = _WIDTH if args.config is None else config.model.embedding_dim
    if width < 1:
        raise ConfigError(f"`--embedding-dim` must be at least 1. Received: {width}.")
    refuse_idle_options(args.engine, args.beam_options)
    for line in day_notes(config.data.split, raw):
        say(line)
    load_tensorflow()
    watch = Stopwatch()
    with progress_bars() as bar:
        manifest = _prepared(args, config.data, raw, width, bar)
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items() if split.rows)
    bad = sum(manifest.statistics["bad_rows"].values())
    say(
        f"{args.out}: {rows} rows; {manifest.spec.table_rows:,} table rows"
        + (f"; {bad:,} bad rows set aside" if bad else "")
        + f" ({watch.seconds:,.1f} s)"
    )
    return 0


def _prepared(args: argparse.Namespace, data: DataConfig, raw: Sequence[str], width: int, bar: NewBar) -> Manifest:
    """Prepare by the engine that was asked for."""
    if args.engine == "beam":
        return run_with_beam(data, raw, args.out, width, args.beam_options, overwrite=args.overwrite, progress=bar)
    from tfdlrm.data.partial import partial_folder
    from tfdlrm.data.prepare import prepare

    out, memory = Path(args.out), args.memory << 20
    left = partial_folder(out)
    if left.exists():
        say(f"{left}: an earlier run was broken off; it is gone on from if its settings and raw files are the same.")
    return prepare(data, raw, out, width, overwrite=args.overwrite, progress=bar, memory_bytes=memory)


def _explain(args: argparse.Namespace) -> int:
    data = _data(args.recipe, args)
    explanation = explain_recipe(data)
    known = RECIPES.get(args.recipe)
    if args.json:
        about: dict[str, Any] = {"recipe": args.recipe}
        if known is not None:
            about |= {"title": known.title, "source": known.source, "notes": list(known.notes)}
        settings = data.model_dump(mode="json", exclude={"raw", "planted"})
        about |= {"topics": explanation.topics, "warnings": list(explanation.warnings), "settings": settings}
        print(json.dumps(about, indent=1))
        return 0
    for line in explanation_lines(args.recipe, known, explanation):
        print(line)
    return 0


def _diff(args: argparse.Namespace) -> int:
    refuse_directories(args.json)
    if args.folder is not None and not args.folder.is_dir():
        raise ConfigError(f"`--folder` must be a directory. Received: {args.folder}.")
    recipes = [_data(name, args) for name in (args.a, args.b)]
    names = (args.a, args.b) if args.a != args.b else (f"{args.a} (A)", f"{args.b} (B)")
    load_tensorflow()
    from tfdlrm.data.files import write_atomic
    from tfdlrm.data.recipe_diff import diff_recipes

    with tempfile.TemporaryDirectory(prefix="tfdlrm-diff-", dir=args.folder) as folder, progress_bars() as bar:
        try:
            found = diff_recipes((names[0], recipes[0]), (names[1], recipes[1]), args.raw, Path(folder), bar)
        except DiskFullError as error:
            raise DataError(
                f"{Path(folder).parent}: the disk is full. Nothing is kept: free some space, or name a folder on "
                "another disk with --folder."
            ) from error
    for line in diff_lines(found):
        print(line)
    if args.json is not None:
        write_atomic(args.json, json.dumps(found.as_dict(), indent=1) + "\n")
    return 0


def _data(recipe: str, args: argparse.Namespace) -> DataConfig:
    """Return the recipe of a name or of a TOML file."""
    if recipe.endswith(".toml") or Path(recipe).is_file():
        return load_config(Path(recipe), _dataset(args) if args.command != "diff" else ()).data
    return load_config(None, [f"data.recipe={json.dumps(recipe)}", *_dataset(args)]).data


def _dataset(args: argparse.Namespace) -> list[str]:
    return [] if args.dataset is None else [f"data.dataset={json.dumps(args.dataset)}"]


if __name__ == "__main__":
    sys.exit(main())
