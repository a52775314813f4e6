"""From a name, a spec and a configuration to a model; models of other packages register here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tf_keras as keras

from tfdlrm.models.click_model import ClickModel
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.config import ModelConfig
from tfdlrm.spec.errors import ConfigError, did_you_mean
from tfdlrm.spec.features import FeatureSpec

MODELS: dict[str, Callable[..., ClickModel]] = {"dlrm": DLRM}
"""Every model by the name that `[model] name` gives it."""

T = TypeVar("T", bound=Callable[..., ClickModel])


def register(name: str) -> Callable[[T], T]:
    """Return a class decorator that makes a model known under a name.

    The constructor takes `spec`, `seed` and `dtype`, and those keys of `ModelConfig` that it names; what else it names
    comes from `[model.options]`.

    Args:
        name: What `[model] name` calls it. A name that is taken may be taken again by the same class only.

    Raises:
        ValueError: another model has the name.

    Example:
        >>> @register("always_the_same")
        ... class Constant(DLRM):
        ...     pass
        >>> MODELS["always_the_same"].__name__
        'Constant'
    """

    def decorate(model: T) -> T:
        known = MODELS.get(name)
        if known is not None and _home(known) != _home(model):
            raise ValueError(f"`name` must not be taken by another model. Received: {name!r}, which is {_home(known)}.")
        MODELS[name] = model
        return model

    return decorate


def build(
    name: str,
    spec: FeatureSpec,
    config: ModelConfig | Mapping[str, Any] | None = None,
    precision: str = "float32",
    seed: int | None = None,
) -> keras.Model:
    """Return a model with its weights created.

    Args:
        name: One of `MODELS`.
        spec: Features and tables; its tables take `config.embedding_dim`.
        config: The `[model]` section, or some of its keys; its own `name` counts for nothing. Defaults to the defaults.
        precision: Dtype policy of the dense part. Defaults to `"float32"`.
        seed: Seed of the initial weights. Defaults to `None`.

    Raises:
        ConfigError: the name or a key is unknown, or the widths do not fit.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> small = {"embedding_dim": 4, "bottom_units": [8, 4], "top_units": [8, 1]}
        >>> build("dlrm", criteo_spec([10] * 26, 4), small).count_params()
        2453
    """
    if name not in MODELS:
        raise ConfigError(
            f"`model.name` must be one of {sorted(MODELS)}. Received: `{name}`.{did_you_mean(name, MODELS)}"
        )
    if not isinstance(config, ModelConfig):
        config = ModelConfig(**(config or {}))
    try:
        model = MODELS[name](
            spec.with_embedding_dim(config.embedding_dim),
            seed=seed,
            dtype=keras.mixed_precision.Policy(precision),
            **_arguments(name, config),
        )
    except ValueError as error:
        raise ConfigError(f"in `model`: {error}") from None
    model.build()
    return model


def _arguments(name: str, config: ModelConfig) -> dict[str, Any]:
    """Return those settings that the constructor has arguments for, and all of `options`."""
    taken = set(inspect.signature(MODELS[name]).parameters) - {"self", "spec", "seed", "name", "dtype", "kwargs"}
    for option in config.options:
        if option not in taken:
            raise ConfigError(
                f"`model.options` must hold arguments of the model `{name}`, {sorted(taken)}. "
                f"Received: `{option}`.{did_you_mean(option, taken)}"
            )
    settings = {key: value for key, value in dict(config).items() if key in taken and key != "options"}
    return {**settings, **config.options}


def _home(model: Callable[..., Any]) -> str:
    return f"{model.__module__}.{getattr(model, '__qualname__', model)}"
