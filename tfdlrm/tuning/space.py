"""The search space of a sweep: which keys of a recipe vary, within what, and under which condition."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import tomli_w
from pydantic import StrictFloat, StrictInt, field_validator, model_validator

from tfdlrm.spec.config import RunConfig, checked_config, stated_values
from tfdlrm.spec.errors import ConfigError, SpecError, did_you_mean
from tfdlrm.spec.frozen import Frozen

Values = Mapping[str, Any]
"""What a trial sets: values as the recipe has them, by dotted key."""

# Trials are compared on one set of held-out rows, by seeds of the sweep's own; the others change nothing in training.
_FIXED = {
    "name": "names the recipe",
    "seed": "is varied by `seeds`",
    "data.raw": "says which rows are held out",
    "data.planted": "says which rows are held out",
    "data.format": "says which rows are held out",
    "data.split": "says which rows are held out",
    "data.drop_negatives": "says which rows are held out",
    "data.drop_seed": "says which rows are held out",
    "data.growth": "says which rows are held out",
    "train.max_steps": "is set by the budget of a trial",
    "train.monitor": "follows from `objective`",
    "distribute": "changes nothing that is learned",
    "evaluate": "changes nothing that is learned",
    "export": "changes nothing that is learned",
}


class Parameter(Frozen):
    """How one key varies: over a range, from `low` to `high`, or over the values of `choice`.

    Attributes:
        low, high: Ends of the range, both included; whole numbers where both are.
        step: Distance of neighbouring values; with `sampling = "log"`, their ratio. `None` for any value between.
        sampling: Whether values are drawn evenly, or their logarithms.
        choice: The values, one of them at a time. A table changes several keys of the section that it is given for.
        when: The condition, one key of the space and its values: elsewhere the recipe's own value stands. What that key
            depends on is asked for, too.
    """

    low: StrictInt | StrictFloat | None = None
    high: StrictInt | StrictFloat | None = None
    step: StrictInt | StrictFloat | None = None
    sampling: Literal["linear", "log", "reverse_log"] = "linear"
    choice: tuple[Any, ...] | None = None
    when: dict[str, tuple[Any, ...]] = {}

    @field_validator("choice", mode="before")
    @classmethod
    def _as_in_a_file(cls, choice: Any) -> Any:
        # Tuples become lists, as a file has them, or values would not be known again.
        try:
            if not isinstance(choice, list | tuple):
                return choice  # refused by its type
            tomli_w.dumps({"choice": choice})
            return json.loads(json.dumps(choice))
        except (TypeError, ValueError):
            raise SpecError(f"`choice` must hold values as TOML has them. Received: {choice!r}.") from None

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        if len(self.when) > 1:
            raise SpecError(
                f"`when` must name one key; what that one depends on holds as well. Received: {', '.join(self.when)}."
            )
        if self.choice is not None:
            if self.model_fields_set - {"choice", "when"}:
                raise SpecError("`choice` must come alone or with `when`. Received: a range beside it.")
            if not self.choice or len(self._choices) < len(self.choice):
                raise SpecError(f"`choice` must hold values that differ. Received: {list(self.choice)}.")
            return self
        if self.low is None or self.high is None:
            raise SpecError("`low` and `high`, or `choice`, must be given. Received: neither.")
        if not self.low < self.high:
            raise SpecError(f"`low` must be below `high`. Received: {self.low} and {self.high}.")
        if self.sampling != "linear" and self.low <= 0:
            raise SpecError(f"`low` must be above 0 where `sampling` is {self.sampling!r}. Received: {self.low}.")
        if self.step is not None and self.step <= (0 if self.sampling == "linear" else 1):
            least = "above 0" if self.sampling == "linear" else f"above 1 where `sampling` is {self.sampling!r}"
            raise SpecError(f"`step` must be {least}. Received: {self.step}.")
        if self.step is not None and self.whole and not isinstance(self.step, int):
            raise SpecError(f"`step` must be whole where `low` and `high` are. Received: {self.step}.")
        return self

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ordered(self) -> bool:
        """Whether it is a choice of numbers, of which near ones are alike."""
        return self.choice is not None and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in self.choice
        )

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all: both ends of a range, or every choice."""
        return (self.low, self.high) if self.choice is None else self.choice

    @property
    def _choices(self) -> dict[str, Any]:
        return {_text(value): value for value in self.choice or ()}

    def encoded(self, value: Any) -> int | float | str:
        """Return a value as the tuner has it: its place among numbers, its JSON among other choices, itself in a range.

        The tuner sends numbers between processes in single precision, in which 0.1 is no longer 0.1.
        """
        if self.choice is None:
            return float(value) if not self.whole else int(value)
        return self.choice.index(value) if self.ordered else _text(value)

    def decoded(self, value: Any) -> Any:
        """Return the value that `encoded` made this of, within the range."""
        if self.choice is not None:
            return self.choice[int(value)] if self.ordered else self._choices[value]
        assert self.low is not None and self.high is not None
        return min(max(value, self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of those that are tried; steps of a range are not looked at."""
        if self.choice is not None:
            return value in self.choice
        assert self.low is not None and self.high is not None
        number = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high


class Space:
    """Keys that vary, checked against the recipe that they are keys of.

    Args:
        parameters: By dotted key; a section may be varied as a whole, by tables of its keys.
        base: The recipe.

    Attributes:
        parameters: The same, every key after the one that it depends on.
        base: The recipe.

    Raises:
        ConfigError: a key is not one of the recipe or must stay as it is, a condition cannot hold, or a value is not
            one that the key takes.
    """

    def __init__(self, parameters: Mapping[str, Parameter], base: RunConfig) -> None:
        if not parameters:
            raise ConfigError("`space` must have at least one key. Received: none.")
        self.base = base
        for key, parameter in parameters.items():
            for own in (key, *(inner for value in parameter.choice or () for inner in _keys(key, value))):
                _refuse_fixed(own)
            _refuse_overlap(key, parameters)
        self.parameters = _parents_first(parameters)
        for key, parameter in self.parameters.items():
            self._refuse_condition(key, parameter)
        for key, value, values in self._corners():
            try:
                self.apply(values)
            except ConfigError as error:
                raise ConfigError(f"`space`, `{key}` = {json.dumps(value)}: {error}") from None

    def conditions(self, key: str) -> list[tuple[str, tuple[Any, ...]]]:
        """Return what a key depends on, with the values asked for, the outermost first."""
        found: list[tuple[str, tuple[Any, ...]]] = []
        when = self.parameters[key].when
        while when:
            parent, values = next(iter(when.items()))
            found.insert(0, (parent, values))
            when = self.parameters[parent].when
        return found

    def decode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial sets, of the tuner's values; what is none of the space is left out."""
        return {key: p.decoded(values[key]) for key, p in self.parameters.items() if key in values}

    def encode(self, values: Values) -> dict[str, int | float | str]:
        """Return the tuner's values of what a trial sets."""
        return {key: self.parameters[key].encoded(value) for key, value in values.items()}

    def apply(self, values: Values) -> RunConfig:
        """Return the recipe with some keys set.

        Raises:
            ConfigError: the values contradict each other or the recipe.
        """
        overrides = [text for key, value in values.items() for text in _assignments(key, value)]
        return checked_config(stated_values(self.base), overrides)

    def of_base(self) -> dict[str, Any] | None:
        """Return the recipe's own values; `None` where they do not lie in the space."""
        stated, found = stated_values(self.base), dict[str, Any]()
        for key, parameter in self.parameters.items():
            if any(found.get(parent) not in values for parent, values in self.conditions(key)):
                continue
            value = _value_of(stated, key, parameter)
            if value is None or not parameter.holds(value):
                return None
            found[key] = value
        return found

    def corners(self) -> Iterator[Values]:
        """Yield settings in which every value that stands for others occurs, one at a time."""
        return (values for _, _, values in self._corners())

    def _corners(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        for key, parameter in self.parameters.items():
            asked = {parent: values[0] for parent, values in self.conditions(key)}
            for value in parameter.ends:
                yield key, value, {**asked, key: value}

    def _refuse_condition(self, key: str, parameter: Parameter) -> None:
        for parent, values in parameter.when.items():
            allowed = self.parameters[parent].choice
            if allowed is None:
                raise ConfigError(f"`space.{key}.when` must name a key with a `choice`. Received: `{parent}`.")
            for value in values:
                if value not in allowed:
                    hint = did_you_mean(str(value), [str(one) for one in allowed])
                    raise ConfigError(
                        f"`space.{key}.when` must name values of `{parent}`, {list(allowed)}. "
                        f"Received: {value!r}.{hint}"
                    )
            if not values:
                raise ConfigError(f"`space.{key}.when` must name values of `{parent}`. Received: none.")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _keys(key: str, value: Any) -> Iterator[str]:
    """Yield the key itself, or those that a table given for it sets."""
    if not isinstance(value, dict):
        yield key
        return
    for name, inner in value.items():
        yield from _keys(f"{key}.{name}", inner)


def _refuse_fixed(key: str) -> None:
    for fixed, why in _FIXED.items():
        if key == fixed or key.startswith(fixed + "."):
            raise ConfigError(f"`space` must not vary `{key}`: `{fixed}` {why}.")


def _refuse_overlap(key: str, parameters: Mapping[str, Parameter]) -> None:
    """Raise where a section and one of its keys would both be set; which is set last would be chance."""
    for section, parameter in parameters.items():
        if not key.startswith(section + "."):
            continue
        inner = key.removeprefix(section + ".").split(".")[0]
        if any(not isinstance(value, dict) or inner in value for value in parameter.choice or ({},)):
            raise ConfigError(f"`space` must not set `{key}` twice. Received: `{section}` and `{key}`.")


def _parents_first(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    ordered: dict[str, Parameter] = {}
    left = dict(parameters)
    while left:
        ready = [key for key, parameter in left.items() if parameter.when.keys() <= ordered.keys()]
        if not ready:
            key, parameter = next(iter(left.items()))
            parent = next(iter(parameter.when))
            if parent not in parameters:
                hint = did_you_mean(parent, parameters)
                raise ConfigError(f"`space.{key}.when` must name a key of `space`. Received: `{parent}`.{hint}")
            raise ConfigError(f"`space.{key}.when` must not lead back to itself. Received: `{parent}`.")
        for key in ready:
            ordered[key] = left.pop(key)
    return ordered


def _assignments(key: str, value: Any) -> Iterator[str]:
    """Yield `section.key=value` texts, one for each key of a table."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _assignments(f"{key}.{name}", inner)
        return
    yield f"{key}={tomli_w.dumps({'v': value}).removeprefix('v = ').strip()}"


def _value_of(stated: Mapping[str, Any], key: str, parameter: Parameter) -> Any:
    """Return what the recipe has for a key; of a section, the choice that it agrees with in every key."""
    value: Any = stated
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        return value
    agreeing = [one for one in parameter.choice or () if isinstance(one, dict) and one.items() <= value.items()]
    return agreeing[0] if agreeing else None
