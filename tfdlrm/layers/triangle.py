"""Pairwise products of vectors, kept as a lower triangle: two equal ways, each the cheapest on some processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import tensorflow as tf

Way: TypeAlias = Literal["product", "copies"]


def lower_triangle(n: int, self_interaction: bool, way: Way | None = None) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the op `[B, n, d]` -> `[B, pairs]`: products (1,0), (2,0), (2,1) ...; with self (0,0), (1,0), (1,1) ...

    Args:
        n: Vectors a sample.
        self_interaction: Whether the products (i,i) are kept.
        way: `"product"` picks the triangle by a product with a constant 0/1 matrix, `"copies"` by copying its rows.
            Both are exact. Defaults to the cheaper one: a product costs 4 n^3 (n - 1) operations a sample forward and
            backward, next to nothing for a matrix unit and most of the interaction's time without one.
    """
    ways = {"product": _by_product, "copies": _by_copies}
    ops = {name: build(n, self_interaction) for name, build in ways.items()}

    def pick(vectors: tf.Tensor) -> tf.Tensor:
        cheapest = "product" if _has_matrix_unit(vectors.dtype) else "copies"
        return ops[way or cheapest](vectors)

    return pick


def _by_product(n: int, self_interaction: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    rows, columns = np.tril_indices(n, k=0 if self_interaction else -1)
    select = np.zeros([n * n, rows.size], np.float32)
    select[rows * n + columns, np.arange(rows.size)] = 1.0
    # The gradient of T T^T for an upstream S is (S + S^T) T: mirroring the constant instead of adding two batched
    # products halves the backward pass.
    mirrored = select + select.reshape(n, n, -1).transpose(1, 0, 2).reshape(select.shape)

    @tf.custom_gradient
    def pick(vectors: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        products = tf.matmul(vectors, vectors, transpose_b=True)
        picked = tf.matmul(tf.reshape(products, [-1, n * n]), tf.constant(select, vectors.dtype))

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            with tf.name_scope("interaction"):  # a profile tells by the name whose time this is
                both = tf.matmul(upstream, tf.constant(mirrored, vectors.dtype), transpose_b=True)
                return tf.matmul(tf.reshape(both, [-1, n, n]), vectors)

        return picked, gradient

    op: Callable[[tf.Tensor], tf.Tensor] = pick
    return op


def _by_copies(n: int, self_interaction: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    rows, columns = np.tril_indices(n, k=0 if self_interaction else -1)
    places = (rows * n + columns).astype(np.int32)
    kept = [i + self_interaction for i in range(n)]  # products in row i of the triangle
    left = [n - k for k in kept]

    @tf.custom_gradient
    def pick(vectors: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        products = tf.matmul(vectors, vectors, transpose_b=True)
        picked = tf.gather(tf.reshape(products, [-1, n * n]), places, axis=1)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            with tf.name_scope("interaction"):
                # The gradient of a gather is a scatter, element by element; the triangle goes back row by row instead.
                zeros = tf.split(tf.zeros([tf.shape(upstream)[0], sum(left)], upstream.dtype), left, axis=1)
                triangle = tf.split(upstream, kept, axis=1)
                lower = tf.concat([part for pair in zip(triangle, zeros, strict=True) for part in pair], axis=1)
                lower = tf.reshape(lower, [-1, n, n])
                return tf.matmul(lower, vectors) + tf.matmul(lower, vectors, transpose_a=True)

        return picked, gradient

    op: Callable[[tf.Tensor], tf.Tensor] = pick
    return op


@cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def _has_matrix_unit(dtype: tf.DType) -> bool:
    """Whether products of this dtype are far cheaper than copies: on a GPU or TPU, and for bfloat16 on some CPUs."""
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return True
    return dtype == tf.bfloat16 and bool({"amx_bf16", "avx512_bf16"} & _processor_flags())
