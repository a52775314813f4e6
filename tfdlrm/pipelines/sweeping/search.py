"""A sweep from its settings to its results; what an earlier call finished is not done again."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tfdlrm.pipelines.cli import recipe as recipe_path
from tfdlrm.pipelines.console import Console, is_watched
from tfdlrm.pipelines.manner import manner, say
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.sweeping.outputs import best_config, trial_line, write_outputs
from tfdlrm.pipelines.sweeping.runner import TrialRunner, check, is_spent
from tfdlrm.pipelines.sweeping.tasks import ID, TAKEN, role_of, run_tasks, wait_for_settings
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.errors import ConfigError, did_you_mean
from tfdlrm.tuning.results import TrialResult, best_of, frame
from tfdlrm.tuning.space import Space
from tfdlrm.tuning.sweep_config import SweepConfig, load_sweep, sweep_config


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found.

    Attributes:
        work_dir: Its files: `trials.csv`, `index.html`, `best.toml`, `tensorboard/`.
        trials: One row a trial; see `tfdlrm.tuning.results.frame`.
        best: The best trial; `None` where none has completed.
        best_config: The recipe with its values; it is what `best.toml` holds.
    """

    work_dir: Path
    trials: pl.DataFrame
    best: TrialResult | None
    best_config: RunConfig | None


def search(
    sweep: str | Path | Mapping[str, Any] | SweepConfig,
    *,
    recipe: RunConfig | None = None,
    work_dir: str | Path | None = None,
    trials: int | None = None,
    workers: int = 1,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
) -> SweepResult:
    """Search for better settings of a recipe; goes on where an equal call was broken off.

    Each trial is trained in a process of its own and judged on validation rows; the test rows are not looked at.

    Args:
        sweep: A TOML file, or what it would hold: see `tfdlrm.tuning.sweep_config.SweepConfig`.
        recipe: The recipe, in place of the one that `sweep` names. Defaults to that one.
        work_dir: Where the sweep keeps its files. Defaults to `runs/<name>`.
        trials: How many, in place of `sweep.trials`.
        workers: Trials at a time, on this machine. Defaults to 1.
        overrides: `section.key=value` texts that change the recipe.
        overwrite: Start afresh in a work dir that holds a sweep; prepared rows are kept. Defaults to `False`.
        quiet: Print nothing. Defaults to `False`.

    Raises:
        SpecError: `sweep` is no sweep, or a key in it is unknown.
        ConfigError: a value does not fit the recipe or the model, or the work dir holds something else.
        DataError: rows cannot be prepared, or there are none to validate on.

    Example:
        ```python
        result = tfdlrm.tuning.search(
            {
                "config": "demo",
                "trials": 20,
                "space": {"train.embedding.learning_rate": {"low": 0.001, "high": 0.2, "sampling": "log"}},
            }
        )
        result.best_config, result.trials
        ```
    """
    config, base = loaded(sweep, recipe, trials, overrides)
    folder = SweepFolder(Path(work_dir) if work_dir is not None else Path("runs") / config.name)
    space = Space(config.space, base)
    with folder.taken(config, base, overwrite):
        _run(folder, config, space, workers, quiet)
        return _found(folder, config, space)


def take_part(work_dir: Path, sweep: Path | None, trials: int | None, overrides: Sequence[str]) -> None:
    """Be the chief or a worker of a sweep, as the environment says.

    Args:
        work_dir: The sweep's folder, the same for all: on a disk that they share.
        sweep: Its file; only a chief that begins one needs it.
        trials: As in `search`.
        overrides: As in `search`.

    Raises:
        UserError: as `search`.
    """
    _refuse_without_keras_tuner()
    folder = SweepFolder(work_dir)
    if role_of() == "worker":
        wait_for_settings(folder)
        config, base = folder.settings()
        space = Space(config.space, base)
        _propose(folder, config, space, os.environ[ID], lambda result: say(trial_line(result, config)))
        return
    config, base = folder.settings() if sweep is None else loaded(sweep, None, trials, overrides)
    space = Space(config.space, base)
    with nullcontext() if TAKEN in os.environ else folder.taken(config, base):
        check(folder)
        _propose(folder, config, space, os.environ[ID], lambda result: None)
        folder.drop_trainings()
        write_outputs(folder, config, space)


def loaded(
    sweep: str | Path | Mapping[str, Any] | SweepConfig,
    recipe: RunConfig | None = None,
    trials: int | None = None,
    overrides: Sequence[str] = (),
) -> tuple[SweepConfig, RunConfig]:
    """Return a sweep and its recipe.

    Raises:
        SpecError, ConfigError: as `search`.
    """
    beside = Path()
    if isinstance(sweep, SweepConfig):
        config = sweep
    elif isinstance(sweep, Mapping):
        config = sweep_config(sweep)
    else:
        config, beside = load_sweep(sweep), Path(sweep).resolve().parent
    if trials is not None:
        config = SweepConfig(**{**_given(config), "trials": trials})
    if recipe is not None and (overrides or config.set or config.raw):
        raise ConfigError(
            "`recipe` must not come with `overrides`, `set` or `raw`, which change a file's. Received: both."
        )
    if recipe is not None:
        return config, recipe
    path = beside / config.config
    if not path.is_file() and "/" not in config.config:
        known = {own.stem: own for own in recipe_path("sweep").parent.glob("*.toml")}
        name = config.config.removesuffix(".toml")
        if name not in known:
            raise ConfigError(
                f"`config` must be a recipe: {path.absolute()} is none, nor has the project one of that name. "
                f"Received: {config.config}.{did_you_mean(name, known)}"
            )
        path = known[name]
    base = load_config(path, (*config.set, *overrides))
    if config.raw:
        base = base.model_copy(update={"data": base.data.model_copy(update={"raw": config.raw})})
    return config, base


def _given(config: SweepConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def _run(folder: SweepFolder, config: SweepConfig, space: Space, workers: int, quiet: bool) -> None:
    """Run all trials that are missing, telling of each."""
    _refuse_without_keras_tuner()
    console = Console(folder.root / "logs" / "sweep.log", quiet=quiet)
    before = folder.results()
    _begin(console, folder, config, len(before))
    check(folder)
    progress = Progress(
        TextColumn("trials"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.fields[of]}"),
        TextColumn("{task.fields[best]}"),
        TimeElapsedColumn(),
        console=RichConsole(stderr=True),
        transient=True,
        # Where a bar is shown, lines go to the same terminal, and are put above it.
        disable=quiet or manner().quiet or manner().json_logs or not is_watched(),
    )
    task = progress.add_task("", total=config.most_trials, completed=len(before), of=config.most_trials or "?", best="")
    told = {result.trial for result in before}

    def tell(result: TrialResult) -> None:
        told.add(result.trial)
        best = best_of(folder.results(), config)
        of = f" of {config.most_trials}" if config.most_trials else ""
        console.say(f"{len(told)}{of}: {trial_line(result, config)}")
        shown = "" if best is None else f"best {config.objective} {best.mean(config.objective):.5f}"
        progress.update(task, completed=len(told), best=shown)

    def look() -> None:
        for result in folder.results():
            if result.trial not in told:
                tell(result)

    try:
        with progress:
            if workers > 1:
                run_tasks(folder, workers, look)
            else:
                _propose(folder, config, space, "tuner0", tell)
        folder.drop_trainings()  # no round is left that could go on from one
    finally:
        write_outputs(folder, config, space)


def _propose(
    folder: SweepFolder, config: SweepConfig, space: Space, name: str, ended: Callable[[TrialResult], None]
) -> None:
    # KerasTuner takes seconds to load, and the process that only watches others does without.
    from tfdlrm.pipelines.cli import load_tensorflow

    load_tensorflow()
    from tfdlrm.tuning import tuners

    runner = TrialRunner(folder, name, ended)
    tuners.search(
        config,
        space,
        folder.root,
        runner,
        is_spent=lambda: is_spent(folder, config),
        has_result=lambda trial: folder.result(trial) is not None,
    )


def _refuse_without_keras_tuner() -> None:
    if importlib.util.find_spec("keras_tuner") is None:
        raise ConfigError('a sweep needs KerasTuner, of the extra `tune`: pip install "tfdlrm[tune]".')


def _begin(console: Console, folder: SweepFolder, config: SweepConfig, done: int) -> None:
    trials = f"{config.most_trials} trials" if config.most_trials else "trials"
    seeds = f" of {config.seeds} seeds" if config.seeds > 1 else ""
    console.say(
        f"{config.name}: {trials}{seeds} by {config.algorithm} search over {len(config.space)} keys in {folder.root}"
        + (f", {done} done before" if done else "")
    )


def _found(folder: SweepFolder, config: SweepConfig, space: Space) -> SweepResult:
    results = folder.results()
    best = best_of(results, config)
    found = None if best is None else best_config(config, space, best)
    return SweepResult(folder.root, frame(results, list(space.parameters)), best, found)
