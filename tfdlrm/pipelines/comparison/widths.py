"""Equal budgets: hidden widths by which a model has as many dense weights as another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tf_keras as keras
from scipy.optimize import brentq

from tfdlrm.models.build import build
from tfdlrm.models.lookup import find_model
from tfdlrm.spec.config import ModelConfig
from tfdlrm.spec.features import FeatureSpec

CLOSE = 0.02
"""Share by which dense weights may differ and still count as equal."""


@dataclass(frozen=True)
class Fitted:
    """A model as it is trained.

    Attributes:
        config: Its `[model]` section.
        dense: Weights outside of tables.
        note: What was done about its size, in a few words.
    """

    config: ModelConfig
    dense: int
    note: str = ""


def dense_weights(spec: FeatureSpec, config: ModelConfig) -> int:
    """Return how many weights a model has outside of its tables.

    Args:
        spec: Features and tables. The number of rows of a table counts for nothing, so that few are enough.
        config: The `[model]` section.

    Raises:
        ConfigError: the model does not fit the features.
    """
    model = build(config.name, spec, config)
    dense: int = model.count_params() - model.table_parameters
    keras.backend.clear_session()
    return dense


def fit(spec: FeatureSpec, config: ModelConfig, target: int | None) -> Fitted:
    """Return a model whose hidden top widths are scaled so that it has `target` dense weights, or nearly so.

    Args:
        spec: As in `dense_weights`.
        config: The model as asked for.
        target: Number of dense weights to come to; `None` leaves the widths alone.

    Raises:
        ConfigError: the model does not fit the features.
    """
    own = dense_weights(spec, config)
    if target is None:
        return Fitted(config, own)
    *hidden, last = config.top_units
    if "top_units" not in inspect.signature(find_model(config.name)).parameters or not hidden:
        return Fitted(config, own, "no MLP to scale")

    def count(widths: tuple[int, ...]) -> int:
        return dense_weights(spec, config.model_copy(update={"top_units": (*widths, last)}))

    widths, dense = scaled_widths(hidden, target, count)
    off = dense / target - 1
    note = "equal" if abs(off) <= CLOSE else f"{off:+.1%}, as near as widths come"
    return Fitted(config.model_copy(update={"top_units": (*widths, last)}), dense, note)


def scaled_widths(
    hidden: Sequence[int], target: int, count: Callable[[tuple[int, ...]], int]
) -> tuple[tuple[int, ...], int]:
    """Return hidden widths in the proportions given whose count comes nearest to a target, and that count.

    Args:
        hidden: Widths whose proportions are kept, up to rounding; each stays at least 1.
        target: Count to come to.
        count: Number of weights at given widths; grows with each width.

    Example:
        >>> scaled_widths([20, 10], 1000, lambda widths: 5 * widths[0] + widths[0] * widths[1])
        ((40, 20), 1000)
    """
    counted: dict[tuple[int, ...], int] = {}

    def excess(scale: float) -> int:
        widths = tuple(max(1, round(width * scale)) for width in hidden)
        if widths not in counted:
            counted[widths] = count(widths)
        return counted[widths] - target

    high = 1.0
    while excess(high) < 0:
        high *= 2
    if excess(0.0) < 0 < excess(high):
        # To less than a unit of the widest layer: both sides of the target are counted.
        brentq(excess, 0.0, high, xtol=0.25 / max(hidden))
    best = min(counted, key=lambda widths: abs(counted[widths] - target))
    # Narrower steps than those of the scale: the widest layer by one.
    widest = best.index(max(best))
    for step in (-1, 1):
        near = tuple(max(1, width + step * (index == widest)) for index, width in enumerate(best))
        counted.setdefault(near, count(near))
    best = min(counted, key=lambda widths: abs(counted[widths] - target))
    return best, counted[best]
