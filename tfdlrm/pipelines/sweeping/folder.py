"""The work dir of a sweep: its settings, prepared rows, trials, and what is made of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.data.settings_diff import differences
from tfdlrm.pipelines.work_dir import WorkDir, config_toml
from tfdlrm.spec.config import DataConfig, RunConfig, load_config
from tfdlrm.spec.errors import ConfigError, DataError, SpecError
from tfdlrm.tuning.results import Proposal, TrialResult
from tfdlrm.tuning.space import Space
from tfdlrm.tuning.sweep_config import SweepConfig

_OWN = ("tuner", "trials", "tensorboard", "logs", "checked.json", "trials.csv", "index.html", "best.toml")
# A sweep that goes on may do more, but not something else.
_FREE: dict[str, Any] = {"trials": True, "config": True, "set": True, "raw": True, "budget": {"rows", "seconds"}}


@dataclass(frozen=True)
class SweepFolder:
    """Paths of a sweep.

    Attributes:
        root: Its work dir.
    """

    root: Path

    @property
    def sweep_file(self) -> Path:
        """The sweep's settings, JSON."""
        return self.root / "sweep.json"

    @property
    def recipe_file(self) -> Path:
        """The recipe, all defaults stated."""
        return self.root / "recipe.toml"

    @property
    def checked_file(self) -> Path:
        """Written once every value of the space has been seen to fit, and the rows are prepared."""
        return self.root / "checked.json"

    def trial(self, name: str) -> Path:
        """Return the folder of a trial."""
        return self.root / "trials" / name

    def training(self, trial: str, seed: int, data: DataConfig) -> WorkDir:
        """Return the work dir of one training of a trial."""
        return WorkDir(self.trial(trial) / f"seed-{seed}", rows_of=self.rows(data))

    def rows(self, data: DataConfig) -> WorkDir:
        """Return the work dir in which rows are prepared: one for each distinct `[data]`."""
        text = json.dumps(data.model_dump(mode="json"), sort_keys=True)
        return WorkDir(self.root / "rows" / hashlib.sha256(text.encode()).hexdigest()[:12])

    def settings(self) -> tuple[SweepConfig, RunConfig]:
        """Return sweep and recipe as they were noted.

        Raises:
            DataError: the folder is not that of a sweep.
        """
        try:
            sweep = SweepConfig.from_json(self.sweep_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"`--work-dir` must be that of a sweep. Received: {self.root}.") from None
        except SpecError as error:
            raise DataError(f"{self.sweep_file}: {error}") from None
        return sweep, load_config(self.recipe_file)

    def space(self) -> Space:
        """Return the space of the sweep as it was noted."""
        sweep, recipe = self.settings()
        return Space(sweep.space, recipe)

    def propose(self, proposal: Proposal) -> None:
        """Note what a trial is to try; what another proposal of that name left is deleted."""
        folder = self.trial(proposal.trial)
        text = json.dumps(proposal._asdict())
        note = folder / "proposal.json"
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            write_atomic(note, text)

    def proposal(self, trial: str) -> Proposal:
        """Return what a trial is to try."""
        return Proposal(**json.loads((self.trial(trial) / "proposal.json").read_text(encoding="utf-8")))

    def outcome(self, trial: str) -> TrialResult | None:
        """Return what the process of a trial wrote; `None` where it has written nothing."""
        return _read(self.trial(trial) / "outcome.json")

    def note_outcome(self, result: TrialResult) -> None:
        """Write what came of a trial, by the process that ran it."""
        write_atomic(self.trial(result.trial) / "outcome.json", result.model_dump_json(indent=1) + "\n")

    def note_result(self, result: TrialResult) -> None:
        """Write what came of a trial, once it has ended."""
        write_atomic(self.trial(result.trial) / "result.json", result.model_dump_json(indent=1) + "\n")

    def result(self, trial: str) -> TrialResult | None:
        """Return a trial that has ended; `None` where it has not."""
        return _read(self.trial(trial) / "result.json")

    def drop_trainings(self, trial: str = "*") -> None:
        """Delete the checkpoints of a trial, of all by default; what came of them stays."""
        for path in self.trial(trial).parent.glob(f"{trial}/seed-*"):
            shutil.rmtree(path, ignore_errors=True)

    def results(self) -> list[TrialResult]:
        """Return all trials that have ended, in the order of proposal."""
        found = [_read(path) for path in (self.root / "trials").glob("*/result.json")]
        return sorted((result for result in found if result is not None), key=lambda result: int(result.trial))

    @contextmanager
    def taken(self, sweep: SweepConfig, recipe: RunConfig, overwrite: bool = False) -> Iterator[None]:
        """Take the folder for a sweep, alone, and note its settings.

        Raises:
            ConfigError: it holds another sweep, something else, or is in use.
        """
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"`--work-dir` must be a directory. Received: {self.root}, a file.")
        self.root.mkdir(parents=True, exist_ok=True)
        if any(self.root.iterdir()) and not (self.root / ".sweep.lock").exists():
            raise ConfigError(f"`--work-dir` must be new, empty or a sweep's own. Received: {self.root}.")
        with (self.root / ".sweep.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.root}: another sweep is using this work dir.") from None
            if overwrite:
                self._clear()
            self.note_settings(sweep, recipe)
            yield

    def note_settings(self, sweep: SweepConfig, recipe: RunConfig) -> None:
        """Write sweep and recipe.

        Raises:
            ConfigError: trials of another sweep or recipe are here.
        """
        if self.sweep_file.is_file() and self.recipe_file.is_file():
            there, base = self.settings()
            before = {**there.model_dump(mode="json", exclude=_FREE), "recipe": base.model_dump(mode="json")}
            now = {**sweep.model_dump(mode="json", exclude=_FREE), "recipe": recipe.model_dump(mode="json")}
            change = next(differences(before, now), None)
            if change is not None:
                raise ConfigError(
                    f"{self.root}: holds another sweep: `{change.key}` is {change.a!r} there and {change.b!r} now. "
                    "Give another --work-dir, or --overwrite to start afresh."
                )
        write_atomic(self.recipe_file, config_toml(recipe))
        write_atomic(self.sweep_file, sweep.model_dump_json(indent=1, exclude_unset=True) + "\n")

    def _clear(self) -> None:
        for name in (*_OWN, self.sweep_file.name, self.recipe_file.name):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _read(path: Path) -> TrialResult | None:
    try:
        return TrialResult.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except SpecError as error:
        raise DataError(f"{path}: {error} Delete it to run the trial again.") from None
