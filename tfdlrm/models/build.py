"""From a name, a spec and a configuration to a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras as keras

from tfdlrm.models.lookup import MODELS, find_model, register
from tfdlrm.spec.errors import ConfigError, did_you_mean
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.model_spec import model_spec
from tfdlrm.spec.storage import Storage

__all__ = ["MODELS", "build", "register"]


def build(
    name: str,
    spec: FeatureSpec,
    config: ModelConfig | Mapping[str, Any] | None = None,
    precision: str = "float32",
    seed: int | None = None,
    prepare: Callable[[keras.Model], None] | None = None,
) -> keras.Model:
    """Return a model with its weights created.

    Args:
        name: One of `MODELS`, the name of an entry point in the group `tfdlrm.models`, or `"module:Class"`.
        spec: Features and tables; `tfdlrm.spec.model_spec` gives them the width and the table settings of `config`.
        config: The `[model]` section, or some of its keys; its own `name` counts for nothing. Defaults to the defaults.
        precision: Dtype policy of the dense part. Defaults to `"float32"`.
        seed: Seed of the initial weights. Defaults to `None`.
        prepare: Called with the model before its weights are created, to put layers of its own in the place of others.
            Defaults to `None`.

    Raises:
        ConfigError: the name or a key is unknown, a class cannot be imported, or the widths do not fit.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> small = {"embedding_dim": 4, "bottom_units": [8, 4], "top_units": [8, 1]}
        >>> model = build("dlrm", criteo_spec([10] * 26, 4), small)
        >>> model.table_parameters, model.dense_parameters
        (1040, 3005)
    """
    model_class = find_model(name)
    if not isinstance(config, ModelConfig):
        config = ModelConfig(**(config or {}))
    spec = model_spec(spec, config, storage=storage_of(name, config))
    try:
        model = model_class(
            spec,
            seed=seed,
            dtype=keras.mixed_precision.Policy(precision),
            **_arguments(name, model_class, config),
        )
    except ValueError as error:
        raise ConfigError(f"in `model`: {error}") from None
    if prepare is not None:
        prepare(model)
    model.build()
    return model


def storage_of(name: str, config: ModelConfig) -> Storage:
    """Return what a model keeps of the tables of a spec; its class says so.

    Raises:
        ConfigError: the name or an option is unknown.
    """
    model_class = find_model(name)
    said = getattr(model_class, "storage", None)
    return Storage() if said is None else said(_arguments(name, model_class, config))


def network_settings(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that make the network, as JSON values.

    They are what names its class, its width, bags with learned weights, and the arguments of its constructor: no
    settings that the class has no use for, and nothing of how tables are stored.

    Raises:
        ConfigError: as `build`, for the name and for `options`.
    """
    model_class = find_model(config.name)
    known = next((name for name, model in MODELS.items() if model is model_class), None)
    settings = config.model_dump(mode="json")
    arguments = _arguments(config.name, model_class, config)
    return {
        "name": known or config.name,
        "embedding_dim": config.embedding_dim,
        "learned_weights": sorted(config.learned_weights),
        **{key: settings[key] for key in arguments if key in settings},
        **config.options,
    }


def _arguments(name: str, model_class: Callable[..., Any], config: ModelConfig) -> dict[str, Any]:
    """Return those settings that the constructor has arguments for, and all of `options`."""
    taken = set(inspect.signature(model_class).parameters) - {"self", "spec", "seed", "name", "dtype", "kwargs"}
    for option in config.options:
        if option not in taken:
            raise ConfigError(
                f"`model.options` must hold arguments of the model `{name}`, {sorted(taken)}. "
                f"Received: `{option}`.{did_you_mean(option, taken)}"
            )
    settings = {key: value for key, value in dict(config).items() if key in taken and key != "options"}
    return {**settings, **config.options}
