"""Matrix factorization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.linear import LinearTerms
from tfdlrm.layers.registry import serializable
from tfdlrm.models.click_model import Batch, ClickModel, build_layer
from tfdlrm.models.parts import look_up, one_width, refuse_unknown
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.storage import Storage


@serializable
class MatrixFactorization(ClickModel):
    """Matrix factorization of two features (Koren, Bell, Volinsky, IEEE Computer 2009, equation 4), as log-odds.

    ::

        user id -> p_u [B, d], b_u --+
                                     +-> <p_u, q_i> + b_u + b_i + bias -> sigmoid
        item id -> q_i [B, d], b_i --+

    Other features count for nothing, and their tables are not made.

    Args:
        spec: Features and tables. The two tables have one width d.
        pair: Names of the two sparse features, such as user and item.
        embedding_l2: See `EmbeddingCollection`; of vectors and biases. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name` and `dtype`; it computes in float32 in any case.

    Raises:
        ValueError: `pair` is not given or does not name two sparse features, or their tables' widths differ.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = MatrixFactorization(criteo_spec([10] * 26, 4), pair=("C1", "C2"))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    has_linear_terms = True

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        pair: Sequence[str] | None = None,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, seed=seed, **kwargs)
        if pair is None or len(pair) != 2:
            raise ValueError(
                f"`pair` must name two sparse features, of {list(self.spec.sparse_names)}. "
                f"Received: {None if pair is None else list(pair)}."
            )
        refuse_unknown(self.spec, pair, "pair")
        self.pair = tuple(pair)
        self.embedding_l2 = float(embedding_l2)
        of_pair = self.spec.only(self.pair)
        self.embedding_dim = one_width(of_pair, "MatrixFactorization")
        seeds = self.layer_seeds(2)
        self.embedding = EmbeddingCollection(of_pair, l2=self.embedding_l2, seed=seeds[0], name="embedding")
        self.linear = EmbeddingCollection(of_pair.linear_spec(), l2=self.embedding_l2, seed=seeds[1], name="linear")
        self.linear_terms = LinearTerms(name="linear_terms")

    @classmethod
    def storage(cls, settings: Mapping[str, Any]) -> Storage:
        """Return what a model keeps of the tables; see `ClickModel.storage`."""
        return Storage(linear=True, features=tuple(settings.get("pair") or ()) or None)

    def build_layers(self) -> None:
        """Create the weights of all layers."""
        columns = self.embedding.spec.n_ids
        build_layer(self.embedding, [None, columns])
        build_layer(self.linear, [None, columns])
        build_layer(self.linear_terms, [None, 2, 1])

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""
        of_pair = self._of_pair(inputs)
        vectors = look_up(self.embedding, of_pair)
        product = tf.reduce_sum(vectors[:, 0] * vectors[:, 1], axis=1, keepdims=True)
        return product + self.linear_terms(look_up(self.linear, of_pair))

    def _of_pair(self, inputs: Batch) -> dict[str, tf.Tensor]:
        """Return the columns of the two features."""
        spec = self.embedding.spec
        parts = ("sparse", "weights") if spec.has_weights else ("sparse",)
        columns = [slice(*self.spec.id_columns[name]) for name in spec.sparse_names]
        return {part: tf.concat([inputs[part][:, each] for each in columns], axis=1) for part in parts}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {**super().get_config(), "pair": list(self.pair), "embedding_l2": self.embedding_l2}
