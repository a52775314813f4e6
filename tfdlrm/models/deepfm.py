"""DeepFM (arXiv 1703.04247)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdlrm.layers.factorization import FactorizationInteraction
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, build_layer
from tfdlrm.models.parts import FactorizedModel, logit_mlp, logit_units
from tfdlrm.spec.features import FeatureSpec


@serializable
class DeepFM(FactorizedModel):
    """A factorization machine and an MLP over the same vectors (Guo et al. 2017, figure 1, equations 1 to 4).

    ::

        dense, sparse -> linear terms -------------------------------------------------+
                                           +-> <v_i, v_j> of all pairs ----------------+-> sum -> sigmoid
        dense, sparse -> vectors [B, n, d] +-> concat [B, n d] -> MLP `top_units` -----+

    A dense feature j has the vector x_j v_j in both.

    Args:
        spec: Features and tables. All tables have one width d.
        top_units: Widths of the MLP; the last must be 1. Defaults to (512, 256, 1).
        dropout: Share of its hidden units dropped in training. Defaults to 0.
        embedding_l2: See `EmbeddingCollection`; of id weights and vectors. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of the MLP.

    Raises:
        ValueError: tables have different widths, or `top_units` does not end with 1.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = DeepFM(criteo_spec([10] * 26, 4), top_units=(8, 1))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        top_units: Sequence[int] = (512, 256, 1),
        dropout: float = 0.0,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, embedding_l2=embedding_l2, seed=seed, **kwargs)
        self.top_units = logit_units(top_units)
        self.dropout = float(dropout)
        self.interaction = FactorizationInteraction(name="interaction")
        self.top = logit_mlp(self.top_units, self.dropout, self.layer_seeds(4)[3], self.dtype_policy)

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        super().build_layers()
        build_layer(self.interaction, [None, self.vectors, self.embedding_dim])
        build_layer(self.top, [None, self.vectors * self.embedding_dim])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        vectors = self.feature_vectors(inputs)
        flat = tf.reshape(vectors, [-1, self.vectors * self.embedding_dim])
        deep = tf.cast(self.top(flat, training=training), tf.float32)
        return self.linear_logit(inputs) + self.interaction(vectors) + deep

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {**super().get_config(), "top_units": list(self.top_units), "dropout": self.dropout}
