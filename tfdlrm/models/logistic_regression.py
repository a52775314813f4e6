"""Logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch
from tfdlrm.models.parts import LinearModel
from tfdlrm.spec.storage import Storage


@serializable
class LogisticRegression(LinearModel):
    """Logistic regression on ids and dense features: the bar that every other model has to clear.

    ::

        sparse [B, n_ids] -> one weight an id [B, F, 1] --+
                                                          +-> sum + bias -> sigmoid
        dense [B, n_dense] -> one weight a feature -------+

    log-odds = b + sum_f a_f + sum_j w_j x_j, where a_f is the pooled weight of feature f's bag. All weights start at 0.

    Args:
        spec: Features and tables; of the tables, only their rows matter.
        embedding_l2: See `EmbeddingCollection`; of the id weights. Defaults to 0.
        seed: Without effect, as nothing is drawn. Defaults to `None`.
        **kwargs: `name` and `dtype`; it computes in float32 in any case.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = LogisticRegression(criteo_spec([10] * 26, 4))
        >>> model.build()
        >>> sum(table.vocabulary_size for table in model.spec.tables) + 13 + 1
        274
    """

    @classmethod
    def storage(cls, settings: Mapping[str, Any]) -> Storage:
        """Return what a model keeps of the tables; see `ClickModel.storage`."""
        return Storage(vectors=False, linear=True)

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        return self.linear_logit(inputs)
