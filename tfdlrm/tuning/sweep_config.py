"""Configuration of a sweep: the recipe, what varies, how values are proposed, and what may be spent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tfdlrm.spec.byte_sizes import parse_bytes
from tfdlrm.spec.errors import ConfigError, SpecError, did_you_mean
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.toml_file import read_toml
from tfdlrm.tuning.space import Parameter

Objective = Literal["log_loss", "auc", "normalized_entropy"]
Algorithm = Literal["random", "bayesian", "hyperband"]
_TRIALS = 20
_PARAMETER_KEYS = frozenset(Parameter.model_fields)


class SweepBudget(Frozen):
    """`[budget]`: what may be spent; `None` for no bound.

    Attributes:
        rows_per_trial: Samples that one training of a trial sees, at most: rounded up to a whole batch.
        seconds_per_trial: Seconds that one training may take, however often it is broken off; it is judged as it is
            then. What is found so depends on the machine.
        bytes_per_trial: Bytes of all weights and of their optimizers' slots, such as `"512MB"`. A trial that takes more
            is refused before it trains.
        rows: Samples that all trials together may see: no trial begins beyond.
        seconds: Seconds that all trials together may take: no trial begins beyond.
    """

    rows_per_trial: int | None = Field(default=None, ge=1)
    seconds_per_trial: float | None = Field(default=None, gt=0)
    bytes_per_trial: str | int | None = None
    rows: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _readable(self) -> SweepBudget:
        if self.bytes_per_trial is not None:
            parse_bytes(self.bytes_per_trial, "bytes_per_trial")
        return self

    @property
    def most_bytes(self) -> int | None:
        """`bytes_per_trial` as a number."""
        return None if self.bytes_per_trial is None else parse_bytes(self.bytes_per_trial, "bytes_per_trial")


class EarlyStopping(Frozen):
    """`[early_stopping]`: when a training is given up; in rows, so that it means the same for every batch size.

    Attributes:
        check_rows: Samples between two validations.
        patience_rows: Samples without a better validation after which training ends, at the next validation; in whole
            batches, as `check_rows` is.
    """

    check_rows: int = Field(ge=1)
    patience_rows: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> EarlyStopping:
        if self.patience_rows < self.check_rows:
            raise SpecError(
                f"`patience_rows` must be at least `check_rows`. Received: {self.patience_rows} and {self.check_rows}."
            )
        return self


class HyperbandSettings(Frozen):
    """`[hyperband]`: how trials are halved.

    Attributes:
        shares: Into how many equal shares the rows of a trial are cut: trials begin with few, the best of them go on to
            all.
        factor: By how much more each further round sees, and how many fewer trials it has.
        iterations: How often the whole algorithm is run.
    """

    shares: int = Field(default=9, ge=2)
    factor: int = Field(default=3, ge=2)
    iterations: int = Field(default=1, ge=1)


class SweepConfig(Frozen):
    """A sweep.

    Attributes:
        name: Names the sweep.
        config: The recipe: a path, relative to the sweep's file, or the name of one that comes with the project.
        set: `section.key=value` texts that change the recipe.
        raw: Raw files in place of the recipe's.
        algorithm: How values are proposed.
        objective: What is compared, on validation rows.
        trials: How many. Defaults to 20; of Hyperband, to as many as it has.
        seeds: Trainings of a trial, each with seeds of its own; their metrics are averaged.
        seed: Seed of what is proposed.
        initial_points: Trials with random values before Bayesian optimization learns from them. Defaults to a third.
        recipe_first: Whether the first trial has the recipe's own values, where they lie in the space. Not of
            Hyperband.
        budget: What may be spent.
        early_stopping: When a training is given up; `None`, the default, for the recipe's own rule.
        hyperband: How trials are halved.
        space: What varies, by dotted key.
    """

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    config: str = "demo"
    set: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()
    algorithm: Algorithm = "bayesian"
    objective: Objective = "log_loss"
    trials: int | None = Field(default=None, ge=1)
    seeds: int = Field(default=1, ge=1)
    seed: int = Field(default=1, ge=1, lt=2**31)
    initial_points: int | None = Field(default=None, ge=1)
    recipe_first: bool = True
    budget: SweepBudget = SweepBudget()
    early_stopping: EarlyStopping | None = None
    hyperband: HyperbandSettings = HyperbandSettings()
    space: dict[str, Parameter]

    @property
    def most_trials(self) -> int | None:
        """How many trials there are at most; `None` where the algorithm says it."""
        return self.trials if self.trials or self.algorithm == "hyperband" else _TRIALS

    @property
    def direction(self) -> Literal["min", "max"]:
        """Whether less of the objective is better, or more."""
        return "max" if self.objective == "auc" else "min"

    def selection(self, batch_size: int) -> dict[str, Any]:
        """Return the keys of `[train]` that say which weights of a training are the best, and when it is given up.

        Args:
            batch_size: Of the training; the sweep counts rows.
        """
        keys: dict[str, Any] = {"monitor": "auc" if self.objective == "auc" else "log_loss"}
        if self.early_stopping is not None:
            check, patience = self.early_stopping.check_rows, self.early_stopping.patience_rows
            steps = max(1, check // batch_size)
            keys |= {
                "eval_every_steps": steps,
                "early_stopping": 0,
                "early_stopping_steps": -(-steps * patience // check),
            }
        return keys

    def better(self, one: float, other: float) -> bool:
        """Return whether one value of the objective is better than another."""
        return one > other if self.direction == "max" else one < other


def load_sweep(path: str | Path) -> SweepConfig:
    """Read the configuration of a sweep.

    Args:
        path: TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (with the nearest valid one), or a value has the
            wrong type or range.
    """
    values = read_toml(path)
    try:
        return sweep_config(values)
    except SpecError as error:
        raise ConfigError(f"{path}: {error}") from None


def sweep_config(values: Mapping[str, Any]) -> SweepConfig:
    """Return the sweep that values, as TOML has them, describe.

    Raises:
        SpecError: a key is unknown, or a value cannot be used.

    Example:
        >>> sweep = sweep_config({"config": "demo", "space": {"train.batch_size": {"choice": [128, 256]}}})
        >>> sweep.objective, sweep.most_trials, sweep.space["train.batch_size"].choice
        ('log_loss', 20, (128, 256))
    """
    for key in values:
        if key not in SweepConfig.model_fields:
            raise SpecError(f"unknown key `{key}`.{did_you_mean(key, SweepConfig.model_fields)}")
    checked = dict(values)
    sections: dict[str, type[Frozen]] = {
        "budget": SweepBudget,
        "early_stopping": EarlyStopping,
        "hyperband": HyperbandSettings,
    }
    for name, section in sections.items():
        if isinstance(checked.get(name), dict):
            checked[name] = _within(name, section, checked[name])
    if isinstance(checked.get("space"), dict):
        checked["space"] = {
            key: _within(f"space.{key}", Parameter, value) for key, value in _flat(checked["space"]).items()
        }
    return SweepConfig(**checked)


def _within(name: str, section: type[Frozen], values: Any) -> Any:
    """Return a part of the configuration; what is wrong in it is told with its place."""
    if isinstance(values, section):
        return values
    if not isinstance(values, dict):
        raise SpecError(f"`{name}` must be a table, such as {{ choice = [1, 2] }}. Received: {values!r}.")
    try:
        return section(**values)
    except SpecError as error:
        raise SpecError(f"in `{name}`: {error}") from None


def _flat(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the space with dotted keys, of one that is written in sections: `[space.train.embedding]`."""
    flat: dict[str, Any] = {}
    for key, value in space.items():
        in_sections = "." not in key and isinstance(value, dict) and not _PARAMETER_KEYS & value.keys()
        if in_sections and all(isinstance(inner, dict) for inner in value.values()) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
