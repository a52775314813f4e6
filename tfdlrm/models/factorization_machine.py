"""The factorization machine (Rendle 2010)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdlrm.layers.factorization import FactorizationInteraction
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, build_layer
from tfdlrm.models.parts import FactorizedModel
from tfdlrm.spec.features import FeatureSpec


@serializable
class FactorizationMachine(FactorizedModel):
    """Factorization machine of degree 2 (Rendle, "Factorization Machines", ICDM 2010, equation 1).

    ::

        dense, sparse -> linear terms [B, 1] ---------------------------------+
        dense [B, n_dense] -> x_j v_j ------+                                 +-> sum -> sigmoid
                                            +-> <v_i, v_j> of all pairs [B, 1] +
        sparse [B, n_ids] -> embeddings ----+

    log-odds = b + sum_f a_f + sum_j w_j x_j + sum_{i<j} <v_i, v_j>, over the vectors of sparse features and x_j v_j of
    dense ones. A bag counts as one feature with its pooled vector.

    Args:
        spec: Features and tables. All tables have one width d.
        embedding_l2: See `EmbeddingCollection`; of id weights and vectors. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name` and `dtype`; it computes in float32 in any case.

    Raises:
        ValueError: tables have different widths.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = FactorizationMachine(criteo_spec([10] * 26, 4))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, embedding_l2=embedding_l2, seed=seed, **kwargs)
        self.interaction = FactorizationInteraction(name="interaction")

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        super().build_layers()
        build_layer(self.interaction, [None, self.vectors, self.embedding_dim])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        return self.linear_logit(inputs) + self.interaction(self.feature_vectors(inputs))
