"""DLRM with low-rank cross layers: the recommendation model of MLPerf training since version 3.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdlrm.layers.cross import CrossNetwork
from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.mlp import MLP
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, ClickModel, build_layer
from tfdlrm.models.parts import bottom_widths, logit_mlp, logit_units, look_up, one_width, refuse_no_cross
from tfdlrm.spec.features import FeatureSpec


@serializable
class DLRMDCNv2(ClickModel):
    """DLRM whose interaction is a cross network (mlcommons/training, recommendation_v2; TorchRec's `DLRM_DCN`).

    ::

        dense [B, n_dense] -> bottom MLP -> x [B, d] ---+
                                                        +-> concat [B, n] -> cross layers -> top MLP -> sigmoid
        sparse [B, n_ids] -> embeddings [B, F, d] ------+

    Cross layers: x_{l+1} = x_0 * (U_l V_l^T x_l + b_l) + x_l (DCN-v2, arXiv 2008.13535, equation 2). The benchmark has
    d 128, `bottom_units` (512, 256, 128), 3 cross layers of rank 512 and `top_units` (1024, 1024, 512, 256, 1).

    Args:
        spec: Features and tables. All tables have one width d.
        bottom_units: Widths of the bottom MLP; the last must be d. Defaults to (512, 256, 64, 16).
        cross_layers: Number of cross layers. Defaults to 3.
        cross_rank: Rank of their kernels; `None` for full rank. Defaults to `None`.
        top_units: Widths of the top MLP; the last must be 1. Defaults to (512, 256, 1).
        dropout: Share of hidden top-MLP units dropped in training. Defaults to 0.
        embedding_l2: See `EmbeddingCollection`. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of MLPs and cross layers.

    Raises:
        ValueError: widths do not fit the spec, or `cross_layers` or `cross_rank` is below 1.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = DLRMDCNv2(criteo_spec([10] * 26, 4), bottom_units=(8, 4), cross_rank=2, top_units=(8, 1))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        bottom_units: Sequence[int] = (512, 256, 64, 16),
        cross_layers: int = 3,
        cross_rank: int | None = None,
        top_units: Sequence[int] = (512, 256, 1),
        dropout: float = 0.0,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, seed=seed, **kwargs)
        refuse_no_cross(cross_layers, cross_rank)
        self.embedding_dim = one_width(self.spec, "DLRMDCNv2")
        self.bottom_units = bottom_widths(self.spec, bottom_units)
        self.cross_layers = int(cross_layers)
        self.cross_rank = cross_rank
        self.top_units = logit_units(top_units)
        self.dropout = float(dropout)
        self.embedding_l2 = float(embedding_l2)
        seeds = self.layer_seeds(4)
        policy = self.dtype_policy
        self.embedding = EmbeddingCollection(self.spec, l2=self.embedding_l2, seed=seeds[0], name="embedding")
        self.bottom = MLP(self.bottom_units, seed=seeds[1], dtype=policy, name="bottom") if self.spec.n_dense else None
        self.cross = CrossNetwork(self.cross_layers, rank=self.cross_rank, seed=seeds[2], dtype=policy, name="cross")
        self.top = logit_mlp(self.top_units, self.dropout, seeds[3], policy)

    @property
    def _width(self) -> int:
        """Elements of all vectors of a sample."""
        return self.embedding_dim * (len(self.spec.sparse) + (self.bottom is not None))

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        build_layer(self.embedding, [None, self.spec.n_ids])
        if self.bottom is not None:
            build_layer(self.bottom, [None, self.spec.n_dense])
        build_layer(self.cross, [None, self._width])
        build_layer(self.top, [None, self._width])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        vectors = tf.cast(look_up(self.embedding, inputs), self.compute_dtype)
        if self.bottom is not None:
            x = self.bottom(inputs["dense"], training=training)
            vectors = tf.concat([x[:, tf.newaxis, :], vectors], axis=1)
        crossed = self.cross(tf.reshape(vectors, [-1, self._width]))
        return tf.cast(self.top(crossed, training=training), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {
            **super().get_config(),
            "bottom_units": list(self.bottom_units),
            "cross_layers": self.cross_layers,
            "cross_rank": self.cross_rank,
            "top_units": list(self.top_units),
            "dropout": self.dropout,
            "embedding_l2": self.embedding_l2,
        }
