"""Wide & Deep (arXiv 1606.07792)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdlrm.layers.crossing import crossed_ids, crossed_weights
from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, build_layer
from tfdlrm.models.parts import LinearModel, flat_features, flat_width, logit_mlp, logit_units, look_up, refuse_unknown
from tfdlrm.spec.compression import BYTES
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.storage import Storage


@serializable
class WideDeep(LinearModel):
    """A linear model with crossed features beside an MLP (Cheng et al. 2016, figure 1, equation 3).

    ::

        wide:  dense, sparse -> linear terms ------------------------------------------+
               sparse -> ids of `crosses`, hashed -> one weight a combination ----------+-> sum -> sigmoid
        deep:  dense, embeddings -> concat [B, n_dense + sum of d] -> MLP `top_units` --+

    Weights of the wide part start at 0. The combinations of bags are all combinations of their ids.

    Args:
        spec: Features and tables; the tables may have different widths.
        crosses: Combinations of two or more sparse features, by name. Defaults to none.
        cross_rows: Weights of one combination; which one it has is a hash modulo this. Defaults to 100,000.
        top_units: Widths of the MLP; the last must be 1. Defaults to (512, 256, 1).
        dropout: Share of its hidden units dropped in training. Defaults to 0.
        embedding_l2: See `EmbeddingCollection`; of id weights, weights of combinations, and vectors. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of the MLP.

    Raises:
        ValueError: a cross names no sparse feature or fewer than two, or is there twice, or `cross_rows` is below 1, or
            `top_units` does not end with 1.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = WideDeep(criteo_spec([10] * 26, 4), crosses=[("C1", "C2")], cross_rows=50, top_units=(8, 1))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        crosses: Sequence[Sequence[str]] = (),
        cross_rows: int = 100_000,
        top_units: Sequence[int] = (512, 256, 1),
        dropout: float = 0.0,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, embedding_l2=embedding_l2, seed=seed, **kwargs)
        self.crosses_names = tuple(tuple(cross) for cross in crosses)
        for cross in self.crosses_names:
            refuse_unknown(self.spec, cross, "crosses")
            if len(cross) < 2:
                raise ValueError(f"`crosses` must combine two or more features each. Received: {list(cross)}.")
        if len(set(self.crosses_names)) < len(self.crosses_names):
            raise ValueError(f"`crosses` must differ. Received: {[list(cross) for cross in self.crosses_names]}.")
        if cross_rows < 1:
            raise ValueError(f"`cross_rows` must be at least 1. Received: {cross_rows}.")
        self.cross_rows = int(cross_rows)
        self.top_units = logit_units(top_units)
        self.dropout = float(dropout)
        _, cross_seed, table_seed, top_seed = self.layer_seeds(4)
        self.crosses = (
            EmbeddingCollection(
                self.spec.crosses_spec(self.crosses_names, self.cross_rows),
                l2=self.embedding_l2,
                seed=cross_seed,
                name="crosses",
            )
            if self.crosses_names
            else None
        )
        self.embedding = EmbeddingCollection(self.spec, l2=self.embedding_l2, seed=table_seed, name="embedding")
        self.top = logit_mlp(self.top_units, self.dropout, top_seed, self.dtype_policy)

    @classmethod
    def storage(cls, settings: Mapping[str, Any]) -> Storage:
        """Return what a model keeps of the tables; see `ClickModel.storage`."""
        crosses = len(settings.get("crosses", ())) * settings.get("cross_rows", 0)
        return Storage(linear=True, other_bytes=crosses * BYTES["float32"])

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        super().build_layers()
        if self.crosses is not None:
            build_layer(self.crosses, [None, self.crosses.spec.n_ids])
        build_layer(self.embedding, [None, self.spec.n_ids])
        build_layer(self.top, [None, flat_width(self.spec)])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        features = flat_features(self.spec, inputs, look_up(self.embedding, inputs))
        deep = tf.cast(self.top(features, training=training), tf.float32)
        return self.linear_logit(inputs) + self._crosses_logit(inputs) + deep

    def _crosses_logit(self, inputs: Batch) -> tf.Tensor | float:
        if self.crosses is None:
            return 0.0
        with tf.name_scope("crosses"):
            ids = [crossed_ids(self.spec, cross, inputs["sparse"], self.cross_rows) for cross in self.crosses_names]
            crossed = {"sparse": tf.concat(ids, axis=1)}
            if self.crosses.spec.has_weights:
                weights = [crossed_weights(self.spec, cross, inputs["weights"]) for cross in self.crosses_names]
                crossed["weights"] = tf.concat(weights, axis=1)
        return tf.reduce_sum(look_up(self.crosses, crossed), axis=1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {
            **super().get_config(),
            "crosses": [list(cross) for cross in self.crosses_names],
            "cross_rows": self.cross_rows,
            "top_units": list(self.top_units),
            "dropout": self.dropout,
        }
