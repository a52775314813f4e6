"""`python -m tfdlrm.pipelines.sweep`: better settings of a recipe, searched for trial by trial."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.pipelines.cli import recipe, resumable_main
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser, typed_again
from tfdlrm.pipelines.sweeping.outputs import LABELS
from tfdlrm.pipelines.sweeping.search import loaded, search, take_part
from tfdlrm.pipelines.sweeping.tasks import ADDRESS, role_of
from tfdlrm.pipelines.table import print_tables, say_tables
from tfdlrm.report.html import Table
from tfdlrm.spec.arguments import positive
from tfdlrm.spec.errors import ConfigError
from tfdlrm.tuning.space import Parameter, Space
from tfdlrm.tuning.sweep_config import SweepConfig

_MODULE = "tfdlrm.pipelines.sweep"
_EXAMPLES = {
    "": "20 trials on planted rows",
    "--config sweep.toml --dry-run": "the space and the budget",
    "--config sweep.toml --trials 50 --workers 2": "two trials at a time",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(_MODULE, __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="sweep (TOML; default: one over the demo's planted rows)")
    add("--work-dir", type=Path, metavar="DIR", help="where it keeps its files (default: runs/<name>)")
    add("--trials", type=positive, metavar="N", help="how many (default: the sweep's)")
    add("--workers", type=positive, metavar="N", help="trials at a time (default: 1)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe; repeatable")
    add("--overwrite", action="store_true", help="start afresh in a work dir that holds a sweep; rows are kept")
    add("--dry-run", action="store_true", help="check the sweep, print its space and its budget, stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep, or take part in one."""
    return resumable_main(_MODULE, build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    path: Path = args.config or recipe("sweep")
    if args.dry_run:
        config, base = loaded(path, None, args.trials, args.set)
        _print_plan(config, Space(config.space, base))
        return 0
    if role_of() != "alone":
        for name, given in (("--overwrite", args.overwrite), ("--workers", args.workers is not None)):
            if given:
                raise ConfigError(f"`{name}` must not be given to a {role_of()}, which `{ADDRESS}` makes this.")
        if args.work_dir is None:
            raise ConfigError("`--work-dir` must be given to chief and workers, the same to all. Received: none.")
        take_part(args.work_dir, args.config, args.trials, args.set)
        return 0
    result = search(
        path,
        work_dir=args.work_dir,
        trials=args.trials,
        workers=args.workers or 1,
        overrides=args.set,
        overwrite=args.overwrite,
    )
    if result.best is None:
        say(f"no trial completed; why: {result.work_dir / 'trials.csv'}")
        return 1
    best = result.best
    say_tables(
        Table(
            f"best of {result.trials.height} trials: trial {best.trial}",
            ["", "validation"],
            [[label, f"{best.mean(metric):.5f}"] for metric, label in LABELS.items()],
        ),
        Table("its values", ["key", "value"], [[key, json.dumps(value)] for key, value in best.values.items()]),
    )
    say(f"report:  {result.work_dir / 'index.html'}")
    say(f"trials:  {result.work_dir / 'trials.csv'}")
    say("Train it, and judge it on test rows:")
    say("  " + typed_again("tfdlrm.pipelines.criteo", ["--config", str(result.work_dir / "best.toml")]))
    return 0


def _print_plan(config: SweepConfig, space: Space) -> None:
    rows = [[key, *_in_words(parameter)] for key, parameter in space.parameters.items()]
    trials = f"{config.most_trials} trials" if config.most_trials else "as many trials as it has"
    caption = f"{config.name}: {config.algorithm}, {trials}, {config.seeds} seed(s), by {LABELS[config.objective]}"
    print_tables(Table(caption, ["key", "values", "when"], rows))
    spent = config.budget.model_dump(exclude_none=True)
    print("budget:  " + (", ".join(f"{key} {value}" for key, value in spent.items()) or "no bound"))


def _in_words(parameter: Parameter) -> tuple[str, str]:
    when = "; ".join(f"{key} in {json.dumps(list(values))}" for key, values in parameter.when.items())
    if parameter.choice is not None:
        return json.dumps(list(parameter.choice)), when
    step = "" if parameter.step is None else f", step {parameter.step}"
    return f"{parameter.low} to {parameter.high}, {parameter.sampling}{step}", when


if __name__ == "__main__":
    sys.exit(main())
