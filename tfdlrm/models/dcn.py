"""Deep & Cross Network (arXiv 1708.05123)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdlrm.layers.cross import CrossNetwork
from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, ClickModel, build_layer
from tfdlrm.models.parts import (
    flat_features,
    flat_width,
    joined_logit,
    logit_mlp,
    logit_units,
    look_up,
    refuse_no_cross,
)
from tfdlrm.spec.features import FeatureSpec


@serializable
class DCN(ClickModel):
    """Deep & Cross Network: cross layers beside an MLP (Wang et al. 2017, figure 1, equations 1 to 5).

    ::

                                                 +-> cross layers [B, n] -----+
        dense, embeddings -> concat x_0 [B, n] --+                            +-> weights, sum -> sigmoid
                                                 +-> MLP `top_units[:-1]` ----+

    Kernels of cross layers are vectors: x_{l+1} = x_0 (w_l^T x_l) + b_l + x_l. The last product, of the outputs of both
    sides one after the other (equation 5), is written as a sum of two: `cross_logit` for the cross side, and the last
    layer of `top` for the deep one.

    Args:
        spec: Features and tables; the tables may have different widths.
        cross_layers: Number of cross layers. Defaults to 3.
        top_units: Widths of the MLP, and the 1 of the logit. Defaults to (512, 256, 1).
        dropout: Share of hidden MLP units dropped in training. Defaults to 0.
        embedding_l2: See `EmbeddingCollection`. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of cross layers and MLP.

    Raises:
        ValueError: `cross_layers` is below 1, or `top_units` does not end with 1.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = DCN(criteo_spec([10] * 26, 4), cross_layers=2, top_units=(8, 1))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        cross_layers: int = 3,
        top_units: Sequence[int] = (512, 256, 1),
        dropout: float = 0.0,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, seed=seed, **kwargs)
        refuse_no_cross(cross_layers)
        self.cross_layers = int(cross_layers)
        self.top_units = logit_units(top_units)
        self.dropout = float(dropout)
        self.embedding_l2 = float(embedding_l2)
        seeds = self.layer_seeds(4)
        policy = self.dtype_policy
        self.embedding = EmbeddingCollection(self.spec, l2=self.embedding_l2, seed=seeds[0], name="embedding")
        self.cross = CrossNetwork(self.cross_layers, "vector", seed=seeds[1], dtype=policy, name="cross")
        self.cross_logit = joined_logit("cross_logit", seeds[2], policy)
        self.top = logit_mlp(self.top_units, self.dropout, seeds[3], policy)

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        width = flat_width(self.spec)
        build_layer(self.embedding, [None, self.spec.n_ids])
        for layer in (self.cross, self.cross_logit, self.top):
            build_layer(layer, [None, width])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        features = flat_features(self.spec, inputs, look_up(self.embedding, inputs))
        crossed = tf.cast(self.cross_logit(self.cross(features)), tf.float32)
        return crossed + tf.cast(self.top(features, training=training), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {
            **super().get_config(),
            "cross_layers": self.cross_layers,
            "top_units": list(self.top_units),
            "dropout": self.dropout,
            "embedding_l2": self.embedding_l2,
        }
