"""The run directory: `data/ checkpoints/ logs/ report/ metrics.json config.toml`, and `raw/` for generated rows."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from tfdlrm import __version__
from tfdlrm.data.files import write_atomic
from tfdlrm.data.settings_diff import differences
from tfdlrm.spec.config import RunConfig, load_config, stated_values
from tfdlrm.spec.errors import ConfigError, DataError

# Nothing that an earlier stage made depends on these: they may change between calls.
_FREE_SECTIONS = ("distribute", "evaluate", "export", "report")
# Nor prepared rows on these.
_FREE_BEFORE_TRAINING = ("model", "train", "seed")


class WorkDir:
    """Paths of a run, its configuration and its metrics.

    Args:
        path: The directory; made by `open`.
        rows_of: The work dir whose raw and prepared rows this one uses. Defaults to its own.
    """

    def __init__(self, path: Path, rows_of: WorkDir | None = None) -> None:
        self.path = path
        self.raw: Path = path / "raw" if rows_of is None else rows_of.raw
        self.data: Path = path / "data" if rows_of is None else rows_of.data
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.report = path / "report"
        self.metrics_file = path / "metrics.json"
        self.config_file = path / "config.toml"

    @contextmanager
    def open(
        self, config: RunConfig, overwrite: bool = False, check: Callable[[], None] = lambda: None
    ) -> Iterator[WorkDir]:
        """Take the directory for a run, alone.

        Args:
            config: The run's configuration, written to `config.toml`.
            overwrite: Drop what an earlier run left. Prepared rows stay; `prepare` decides whether they are of use.
            check: Raises where the configuration cannot be run. Called before it is written and before anything is
                dropped.

        Yields:
            This object.

        Raises:
            ConfigError: the directory holds a run of another configuration, something else, or is in use.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`--work-dir` must be a directory. Received: {self.path}, a file.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign()
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.path}: another run is using this work dir.") from None
            if not overwrite and self._has_results():
                self._refuse_unless_same(config)
            check()
            if overwrite:
                self._clear()
            write_atomic(self.config_file, config_toml(config))
            yield self

    def metrics(self) -> dict[str, Any]:
        """Return what `metrics.json` holds, or an empty frame.

        Raises:
            DataError: the file is not JSON.
        """
        try:
            metrics: dict[str, Any] = json.loads(self.metrics_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DataError(f"{self.metrics_file}: cannot be read: {error}.") from None
        return metrics

    def stage(self, name: str) -> dict[str, Any] | None:
        """Return what a finished stage noted, or `None`."""
        found: dict[str, Any] | None = self.metrics().get("stages", {}).get(name)
        return found

    def note_stage(self, run_name: str, stage: str, values: Mapping[str, Any]) -> None:
        """Put the results of a stage into `metrics.json`."""
        metrics = {"name": run_name, "tfdlrm": __version__, "stages": {}, **self.metrics()}
        metrics["stages"][stage] = dict(values)
        self.write_metrics(metrics)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`; nan, which JSON does not have, becomes null."""
        write_atomic(self.metrics_file, json_text(metrics))

    def _refuse_foreign(self) -> None:
        """Raise where files lie that no run made: a run replaces and `overwrite` deletes names such as `logs`."""
        if (self.path / ".lock").exists() or not any(self.path.iterdir()):
            return
        if self.config_file.is_file():
            load_config(self.config_file)
            return
        raise ConfigError(
            f"`--work-dir` must be new, empty or a run's own. Received: {self.path}, which holds other files."
        )

    def _has_results(self) -> bool:
        made = [self.metrics_file, self.data / "manifest.json", *self.checkpoints.glob("step-*")]
        return self.config_file.is_file() and any(path.exists() for path in made)

    def _refuse_unless_same(self, config: RunConfig) -> None:
        trained = any(self.checkpoints.glob("step-*")) or "train" in self.metrics().get("stages", {})
        free = {*_FREE_SECTIONS} if trained else {*_FREE_SECTIONS, *_FREE_BEFORE_TRAINING}
        here = load_config(self.config_file).model_dump(mode="json", exclude=free)
        asked = config.model_dump(mode="json", exclude=free)
        change = next(differences(here, asked), None)
        if change is not None:
            raise ConfigError(
                f"{self.path}: holds a run of another configuration: `{change.key}` is {change.a!r} there and "
                f"{change.b!r} now. "
                "Give another --work-dir, or --overwrite to start afresh."
            )

    def _clear(self) -> None:
        for path in (self.checkpoints, self.report, self.logs):
            shutil.rmtree(path, ignore_errors=True)
        self.metrics_file.unlink(missing_ok=True)


def existing_run(path: Path) -> tuple[WorkDir, RunConfig]:
    """Return a run's work dir and configuration, for a command that reads what the run has made.

    Raises:
        ConfigError: no run has made the directory, or its configuration cannot be read.
    """
    work_dir = WorkDir(path)
    if not work_dir.config_file.is_file():
        raise ConfigError(f"`--work-dir` must be that of a run. Received: {path}, without a config.toml.")
    return work_dir, load_config(work_dir.config_file)


def config_toml(config: RunConfig) -> str:
    """Return a configuration with every default as TOML that `load_config` reads back."""
    return tomli_w.dumps(stated_values(config))


def json_text(values: Mapping[str, Any]) -> str:
    """Return values as JSON; nan, which JSON does not have, becomes null."""
    return json.dumps(plain(values), indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, NumPy scalars as numbers, nan and infinity as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
