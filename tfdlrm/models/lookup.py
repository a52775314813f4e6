"""From the name of a model to its class: of this package, registered, installed, or merely importable."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from tfdlrm.models.click_model import ClickModel
from tfdlrm.models.dcn import DCN
from tfdlrm.models.dcn_v2 import DCNv2
from tfdlrm.models.deepfm import DeepFM
from tfdlrm.models.dlrm import DLRM
from tfdlrm.models.dlrm_dcnv2 import DLRMDCNv2
from tfdlrm.models.factorization_machine import FactorizationMachine
from tfdlrm.models.logistic_regression import LogisticRegression
from tfdlrm.models.matrix_factorization import MatrixFactorization
from tfdlrm.models.wide_deep import WideDeep
from tfdlrm.models.xdeepfm import XDeepFM
from tfdlrm.spec.errors import ConfigError, did_you_mean

MODELS: dict[str, Callable[..., ClickModel]] = {
    "logistic_regression": LogisticRegression,
    "matrix_factorization": MatrixFactorization,
    "factorization_machine": FactorizationMachine,
    "wide_deep": WideDeep,
    "dcn": DCN,
    "dcn_v2": DCNv2,
    "deepfm": DeepFM,
    "xdeepfm": XDeepFM,
    "dlrm": DLRM,
    "dlrm_dcnv2": DLRMDCNv2,
}
"""Every model by the name that `[model] name` gives it."""

ENTRY_POINTS = "tfdlrm.models"
"""Group of entry points by which an installed package offers its models."""

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


def find_model(name: str) -> Callable[..., ClickModel]:
    """Return what makes the model called `name`.

    Args:
        name: One of `MODELS`, the name of an entry point in the group `tfdlrm.models`, or `"module:Class"`.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is no `ClickModel`.
    """
    if name in MODELS:
        return MODELS[name]
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return _loaded(installed[name])
    if ":" in name:
        return _loaded(EntryPoint(name, name, ENTRY_POINTS))
    known = sorted({*MODELS, *installed})
    raise ConfigError(
        f"`model.name` must be one of {known}, or module:Class. Received: `{name}`.{did_you_mean(name, known)}"
    )


def _loaded(entry: EntryPoint) -> Callable[..., ClickModel]:
    module, _, attribute = entry.value.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the module is someone else's: whatever stops it is said in one line
        raise ConfigError(
            f"`model.name` `{entry.name}` must name a module that can be imported. "
            f"Received: {module}: {type(error).__name__}: {error}."
        ) from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, ClickModel)):
        what = "nothing of this name" if found is None else repr(found)
        raise ConfigError(f"`model.name` must name a ClickModel. Received: {entry.value}, which is {what}.")
    return found


def _home(model: Callable[..., Any]) -> str:
    return f"{model.__module__}.{getattr(model, '__qualname__', model)}"
