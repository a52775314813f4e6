"""`[model]`: the network and how its tables are stored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tfdlrm.spec.byte_sizes import parse_bytes
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.mixed_dimensions import MixedDimensions
from tfdlrm.spec.table_settings import CompressionRule


class ModelConfig(Frozen):
    """`[model]`: the network.

    A model takes the keys it has a use for and leaves the others alone, so that `--set model.name=deepfm` is enough to
    try another model in any recipe.

    Attributes:
        name: Which model; see `tfdlrm.models.build`.
        embedding_dim: Width d of every table; `bottom_units` must end with it.
        bottom_units: Widths of the bottom MLP, last = `embedding_dim`. DLRM only.
        top_units: Widths of the top (deep) MLP, last = 1.
        interaction: `"dot"` (pairwise dot products) or `"cat"` (concatenation).
        interaction_itself: Whether dot products of a vector with itself are kept.
        dropout: Share of hidden top-MLP units dropped in training.
        embedding_l2: Weight of the mean over the batch of the squared norm of looked-up vectors, added to the loss.
        cross_layers: Number of cross layers of the Deep & Cross models.
        cross_rank: Rank of their kernels; `None` for full rank.
        structure: Whether cross network and MLP follow one another (`"stacked"`) or stand side by side (`"parallel"`).
        cin_units: Feature maps of each layer of xDeepFM's compressed interaction network.
        pair: The two sparse features that matrix factorization multiplies, such as user and item.
        crosses: Combinations of sparse features that Wide & Deep gives weights of their own, hashed.
        cross_rows: Rows of the table that holds the weights of one such combination.
        embedding_budget: Bytes that all tables must fit into, such as `"512MB"`: `tfdlrm.fit_budget` chooses how.
        compression: How tables above a size are stored.
        mixed_dimensions: Gives large tables narrower rows.
        tables: How single tables are stored, by name, whatever the other settings say.
        learned_weights: Sparse features whose ids have learned weights in their bags.
        options: Arguments of a model that this package does not know, passed on as they are.
    """

    name: str = "dlrm"
    embedding_dim: int = Field(default=16, ge=1)
    bottom_units: tuple[int, ...] = (512, 256, 64, 16)
    top_units: tuple[int, ...] = (512, 256, 1)
    interaction: Literal["dot", "cat"] = "dot"
    interaction_itself: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    embedding_l2: float = Field(default=0.0, ge=0)
    cross_layers: int = Field(default=3, ge=1)
    cross_rank: int | None = Field(default=None, ge=1)
    structure: Literal["stacked", "parallel"] = "stacked"
    cin_units: tuple[int, ...] = (128, 128)
    pair: tuple[str, str] | None = None
    crosses: tuple[tuple[str, ...], ...] = ()
    cross_rows: int = Field(default=100_000, ge=1)
    embedding_budget: str | int | None = None
    compression: CompressionRule | None = None
    mixed_dimensions: MixedDimensions | None = None
    tables: dict[str, Compression] = {}
    learned_weights: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_plan(self) -> ModelConfig:
        if self.embedding_budget is not None:
            parse_bytes(self.embedding_budget, "embedding_budget")
            if self.compression or self.mixed_dimensions:
                other = "compression" if self.compression else "mixed_dimensions"
                raise SpecError(
                    f"`embedding_budget` must not come with `{other}`: it chooses for every table that `tables` does "
                    "not name. Received: both."
                )
        if self.mixed_dimensions and self.compression and self.compression.dim is not None:
            raise SpecError("`compression.dim` must not come with `mixed_dimensions`: both are widths. Received: both.")
        return self

    @property
    def narrow_rows(self) -> str | None:
        """The name of the first setting that gives tables narrower rows; `None` without one."""
        if self.mixed_dimensions:
            return "mixed_dimensions"
        if self.compression and self.compression.dim is not None:
            return "compression.dim"
        return next((f"tables.{name}.dim" for name, table in self.tables.items() if table.dim is not None), None)
