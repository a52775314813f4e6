"""Equal budgets: widths by which a model has as many dense weights as another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tf_keras as keras
from scipy.optimize import brentq

from tfdlrm.models.build import build, storage_of
from tfdlrm.models.lookup import find_model
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.model_spec import refuse_unfit, without_compression

CLOSE = 0.02
"""Share by which dense weights may differ and still count as equal."""


@dataclass(frozen=True)
class Fitted:
    """A model as it is trained.

    Attributes:
        config: Its `[model]` section.
        dense: Weights outside of tables.
        widths: Its hidden widths in words.
        note: What was done about its size, in a few words.
    """

    config: ModelConfig
    dense: int
    widths: str = ""
    note: str = ""


def dense_weights(spec: FeatureSpec, config: ModelConfig) -> int:
    """Return how many weights a model has outside of its tables, as whole ones need no projections.

    Args:
        spec: Features and tables. The number of rows of a table counts for nothing, so that few are enough.
        config: The `[model]` section.

    Raises:
        ConfigError: the model does not fit the features.
    """
    refuse_unfit(spec, config, storage_of(config.name, config))
    # Tables of a row are too little to compress.
    model = build(config.name, spec, without_compression(config))
    dense: int = model.dense_parameters
    keras.backend.clear_session()
    return dense


def fit(spec: FeatureSpec, config: ModelConfig, target: int | None) -> Fitted:
    """Return a model that is scaled so that it has `target` dense weights, or nearly so.

    The hidden widths of `top_units` are scaled, and with them the other widths the model has: `cin_units`, and
    `cross_rank` where it is given.

    Args:
        spec: As in `dense_weights`.
        config: The model as asked for.
        target: Number of dense weights to come to; `None` leaves the widths alone.

    Raises:
        ConfigError: the model does not fit the features.
    """
    own = dense_weights(spec, config)
    taken = inspect.signature(find_model(config.name)).parameters
    hidden = config.top_units[:-1] if "top_units" in taken else ()
    maps = config.cin_units if "cin_units" in taken else ()
    rank = (config.cross_rank,) if "cross_rank" in taken and config.cross_rank else ()
    if target is None or not hidden:
        return Fitted(config, own, _words(hidden, maps, rank), "" if target is None else "no MLP to scale")
    first, second = len(hidden), len(hidden) + len(maps)

    def changes(widths: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {"top_units": (*widths[:first], config.top_units[-1])}
        if maps:
            found["cin_units"] = widths[first:second]
        if rank:
            found["cross_rank"] = widths[second]
        return found

    widths, dense = scaled_widths(
        (*hidden, *maps, *rank), target, lambda tried: dense_weights(spec, config.model_copy(update=changes(tried)))
    )
    off = dense / target - 1
    note = "equal" if abs(off) <= CLOSE else f"{off:+.1%}, as near as widths come"
    words = _words(widths[:first], widths[first:second], widths[second:])
    return Fitted(config.model_copy(update=changes(widths)), dense, words, note)


def _words(hidden: Sequence[int], maps: Sequence[int], rank: Sequence[int]) -> str:
    parts = {"": hidden, "CIN ": maps, "rank ": rank}
    return "; ".join(name + ", ".join(map(str, widths)) for name, widths in parts.items() if widths)


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
        if near not in counted:
            counted[near] = count(near)
    best = min(counted, key=lambda widths: abs(counted[widths] - target))
    return best, counted[best]
