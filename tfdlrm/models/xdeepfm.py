"""xDeepFM (arXiv 1803.05170)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdlrm.layers.cin import CompressedInteraction
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, build_layer
from tfdlrm.models.parts import FactorizedModel, joined_logit, logit_mlp, logit_units
from tfdlrm.spec.features import FeatureSpec


@serializable
class XDeepFM(FactorizedModel):
    """A linear part, a compressed interaction network and an MLP (Lian et al. 2018, figure 5, equation 9).

    ::

        dense, sparse -> linear terms ------------------------------------------------+
                                           +-> CIN `cin_units` -> one weight a map ---+-> sum -> sigmoid
        dense, sparse -> vectors [B, n, d] +-> concat [B, n d] -> MLP `top_units` ----+

    A dense feature j has the vector x_j v_j; the paper cuts numbers into categories instead.

    Args:
        spec: Features and tables. All tables have one width d.
        cin_units: Feature maps of each layer of the CIN. Defaults to (128, 128).
        top_units: Widths of the MLP; the last must be 1. Defaults to (512, 256, 1).
        dropout: Share of its hidden units dropped in training. Defaults to 0.
        embedding_l2: See `EmbeddingCollection`; of id weights and vectors. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of CIN and MLP.

    Raises:
        ValueError: tables have different widths, `cin_units` is empty, or `top_units` does not end with 1.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = XDeepFM(criteo_spec([10] * 26, 4), cin_units=(6, 6), top_units=(8, 1))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        cin_units: Sequence[int] = (128, 128),
        top_units: Sequence[int] = (512, 256, 1),
        dropout: float = 0.0,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, embedding_l2=embedding_l2, seed=seed, **kwargs)
        if not cin_units or min(cin_units) < 1:
            raise ValueError(f"`cin_units` must be one or more numbers of at least 1. Received: {list(cin_units)}.")
        self.cin_units = tuple(cin_units)
        self.top_units = logit_units(top_units)
        self.dropout = float(dropout)
        seeds = self.layer_seeds(6)[3:]
        policy = self.dtype_policy
        self.cin = CompressedInteraction(self.cin_units, seed=seeds[0], dtype=policy, name="cin")
        self.cin_logit = joined_logit("cin_logit", seeds[1], policy)
        self.top = logit_mlp(self.top_units, self.dropout, seeds[2], policy)

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        super().build_layers()
        build_layer(self.cin, [None, self.vectors, self.embedding_dim])
        build_layer(self.cin_logit, [None, sum(self.cin_units)])
        build_layer(self.top, [None, self.vectors * self.embedding_dim])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        vectors = self.feature_vectors(inputs)
        flat = tf.reshape(vectors, [-1, self.vectors * self.embedding_dim])
        crossed = tf.cast(self.cin_logit(self.cin(vectors)), tf.float32)
        deep = tf.cast(self.top(flat, training=training), tf.float32)
        return self.linear_logit(inputs) + crossed + deep

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {
            **super().get_config(),
            "cin_units": list(self.cin_units),
            "top_units": list(self.top_units),
            "dropout": self.dropout,
        }
