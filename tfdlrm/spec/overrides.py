"""What comes before a configuration is checked: recipes by name, and `--set section.key=value`."""

from __future__ import annotations

import tomllib
from typing import Any

from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.published import DATASETS, merged, published


def resolve_recipe(values: dict[str, Any]) -> None:
    """Put the settings of the recipe that `[data]` names under those it states.

    Raises:
        ConfigError: there is no such recipe or data set, or a data set without a recipe.
    """
    data = values.get("data")
    if not isinstance(data, dict) or not {"recipe", "dataset"} & data.keys():
        return
    name, dataset = data.get("recipe"), data.get("dataset", DATASETS[0])
    if name is None:
        raise ConfigError("`data.dataset` must go with `data.recipe`. Received: no recipe.")
    stated = {key: value for key, value in data.items() if key not in ("recipe", "dataset")}
    values["data"] = merged(published(name).settings(dataset), stated)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one key; its value is read as TOML where it can be, else as text.

    Args:
        values: The configuration, changed in place.
        override: `section.key=value`.

    Raises:
        ConfigError: it is not of that form, or names a key inside of what is no section.
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"`--set` must be section.key=value. Received: {override!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"`--set` must name a key inside a section. Received: {override!r}.")
    values[parts[-1]] = value
