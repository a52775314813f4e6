"""How random rows are drawn: ids, bag sizes, dense numbers and labels."""

from __future__ import annotations

import zlib
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import ndtr, ndtri

from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen

Rows = dict[str, npt.NDArray[Any]]
"""`dense`, `sparse`, `label` and, where a feature is weighted, `weights`: what `PackedWriter.add` takes."""


WRITE_ROWS = 65_536
"""Rows drawn at a time where they are written."""


class IdLaw(Frozen):
    """How the ids of a table of n rows are distributed. Ids are drawn independently of one another.

    Attributes:
        kind: `"uniform"`; `"gaussian"`, a normal distribution cut off at both ends of the table; `"powerlaw"`, density
            falling as (id + 1)^-alpha.
        mu: Where the Gaussian peaks, as a share of the table's rows from 0 to 1. Defaults to 0.5.
        sigma: Its standard deviation before it is cut off, in the same unit. Defaults to 0.1.
        alpha: Exponent of the power law, above 0. Defaults to 1.2.
    """

    kind: Literal["uniform", "gaussian", "powerlaw"] = "uniform"
    mu: float = Field(default=0.5, ge=0, le=1)
    sigma: float = Field(default=0.1, gt=0)
    alpha: float = Field(default=1.2, gt=0)

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], rows: int) -> npt.NDArray[np.int64]:
        """Draw ids from 0 to `rows` - 1, int64."""
        if self.kind == "uniform":
            return random.integers(0, rows, shape)
        u = random.random(shape)
        place = self._gaussian(u) * rows if self.kind == "gaussian" else self._powerlaw(u, rows)
        # Every id has the numbers from itself to the next to itself, the ends too; rounding can reach just past them.
        return np.clip(place, 0, rows - 1).astype(np.int64)

    def _gaussian(self, u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Map uniform numbers to [0, 1]: the inverse of the distribution function between the two ends."""
        low, high = ndtr(-self.mu / self.sigma), ndtr((1 - self.mu) / self.sigma)
        return cast(npt.NDArray[np.float64], self.mu + self.sigma * ndtri(low + u * (high - low)))

    def _powerlaw(self, u: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.float64]:
        """Map uniform numbers to ids: the inverse of the distribution function of x^-alpha on [1, rows + 1)."""
        if abs(self.alpha - 1.0) < 1e-6:
            return (rows + 1.0) ** u - 1.0
        power = 1.0 - self.alpha
        return cast(npt.NDArray[np.float64], (((rows + 1.0) ** power - 1.0) * u + 1.0) ** (1.0 / power) - 1.0)


class RowLaw(Frozen):
    """How all but the ids is distributed.

    Attributes:
        bags: `"fixed"`, every bag has as many ids as its feature's hotness; `"variable"`, from 1 to that many, all
            equally likely. Ids of a bag may repeat.
        dense: `"uniform"` between 0 and 1, or standard `"normal"`.
        labels: `"bernoulli"`, 1 with probability `click_rate`, else 0; `"uniform"` between 0 and 1.
        click_rate: Defaults to 0.5: what rounding uniform numbers gives.
    """

    bags: Literal["fixed", "variable"] = "fixed"
    dense: Literal["uniform", "normal"] = "uniform"
    labels: Literal["bernoulli", "uniform"] = "bernoulli"
    click_rate: float = Field(default=0.5, ge=0, le=1)

    def sizes(self, random: np.random.Generator, rows: int, hotness: int) -> npt.NDArray[np.int64]:
        """Draw the sizes of bags, int64 `[rows]`."""
        if self.bags == "fixed" or hotness == 1:
            return np.full(rows, hotness, np.int64)
        return random.integers(1, hotness + 1, rows)

    def others(self, random: np.random.Generator, rows: int, spec: FeatureSpec) -> Rows:
        """Draw float32 `dense` `[rows, n_dense]`, `label` `[rows, 1]` and, if a feature has them, `weights`."""
        shape = (rows, spec.n_dense)
        draw = random.random if self.dense == "uniform" else random.standard_normal
        dense = draw(shape, np.float32)
        label = random.random((rows, 1), np.float32)
        if self.labels == "bernoulli":
            label = (label < np.float32(self.click_rate)).astype(np.float32)
        weights = {"weights": random.random((rows, spec.n_ids), np.float32)} if spec.has_weights else {}
        return {"dense": dense, "label": label, **weights}


def seed_of(seed: int, split: str, *numbers: int) -> tuple[int, ...]:
    """Return a seed of its own for a split and numbers, so that test rows are not the training rows over again.

    Raises:
        ConfigError: `seed` is below 0.
    """
    if seed < 0:
        raise ConfigError(f"`seed` must be at least 0. Received: {seed}.")
    return (seed, zlib.crc32(split.encode()), *numbers)
