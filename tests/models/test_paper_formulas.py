"""The paper's formulas, forward and backward, in plain NumPy float64, against `model.fit` over 200 steps."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.train_config import DenseOptimizerConfig, EmbeddingOptimizerConfig, TrainConfig
from tfdlrm.training.trainer import build_optimizer

STEPS, BATCH, RATE = 200, 32, 0.05
ROWS, DIM, HOTNESS = [3, 50, 400], 4, [1, 1, 3]
SPEC = FeatureSpec(
    dense=[{"name": f"d{i}"} for i in range(5)],
    sparse=[{"name": f"s{i}", "table": f"t{i}", "hotness": h} for i, h in enumerate(HOTNESS)],
    tables=[{"name": f"t{i}", "vocabulary_size": r, "embedding_dim": DIM} for i, r in enumerate(ROWS)],
)


class NumpyDLRM:
    """Section 2 of the paper: bottom MLP, sum-pooled embeddings, dot products of all pairs, top MLP, sigmoid."""

    def __init__(self, model, rowwise_adagrad):
        self.tables = [model.embedding.get_table(f"t{i}").astype(np.float64) for i in range(len(ROWS))]
        self.bottom = [np.array(w, np.float64) for w in model.bottom.get_weights()]
        self.top = [np.array(w, np.float64) for w in model.top.get_weights()]
        self.adagrad = rowwise_adagrad
        self.row_sums = [np.zeros(len(t)) for t in self.tables]
        self.sums = {id(w): np.zeros_like(w) for w in self.bottom + self.top}

    def step(self, dense, ids, label):
        """Return the batch's mean log loss and take one step."""
        bottom = self.forward(self.bottom, dense, last_relu=True)
        bags = np.split(ids, np.cumsum(HOTNESS)[:-1], axis=1)
        pooled = [
            table[np.maximum(bag, 0)] * (bag >= 0)[..., None] for table, bag in zip(self.tables, bags, strict=True)
        ]
        vectors = np.stack([bottom[-1], *(p.sum(axis=1) for p in pooled)], axis=1)
        pairs = [(i, j) for i in range(vectors.shape[1]) for j in range(i)]
        products = np.stack([(vectors[:, i] * vectors[:, j]).sum(axis=1) for i, j in pairs], axis=1)
        top = self.forward(self.top, np.concatenate([bottom[-1], products], axis=1), last_relu=False)
        logit = top[-1]
        loss = np.mean(np.logaddexp(0, logit) - label * logit)

        upstream = (1 / (1 + np.exp(-logit)) - label) / len(label)
        top_gradients, into_top = self.backward(self.top, top, upstream, last_relu=False)
        into_vectors = np.zeros_like(vectors)
        into_vectors[:, 0] = into_top[:, :DIM]
        for pair, (i, j) in enumerate(pairs):
            into_vectors[:, i] += into_top[:, DIM + pair, None] * vectors[:, j]
            into_vectors[:, j] += into_top[:, DIM + pair, None] * vectors[:, i]
        bottom_gradients, _ = self.backward(self.bottom, bottom, into_vectors[:, 0], last_relu=True)
        for weights, gradients in ((self.top, top_gradients), (self.bottom, bottom_gradients)):
            for weight, gradient in zip(weights, gradients, strict=True):
                self.move(weight, gradient)
        for index, bag in enumerate(bags):
            gradient = np.zeros_like(self.tables[index])
            sample, place = np.nonzero(bag >= 0)
            np.add.at(gradient, bag[sample, place], into_vectors[sample, index + 1])
            self.move_rows(index, gradient)
        return loss

    @staticmethod
    def forward(weights, x, last_relu):
        outputs = [x]
        for i in range(0, len(weights), 2):
            x = outputs[-1] @ weights[i] + weights[i + 1]
            outputs.append(np.maximum(x, 0) if last_relu or i + 2 < len(weights) else x)
        return outputs

    @staticmethod
    def backward(weights, outputs, upstream, last_relu):
        gradients = []
        for i in range(len(weights) - 2, -1, -2):
            if last_relu or i + 2 < len(weights):
                upstream = upstream * (outputs[i // 2 + 1] > 0)
            gradients = [outputs[i // 2].T @ upstream, upstream.sum(axis=0), *gradients]
            upstream = upstream @ weights[i].T
        return gradients, upstream

    def move(self, weight, gradient):
        if self.adagrad:
            self.sums[id(weight)] += gradient**2
            gradient = gradient / (np.sqrt(self.sums[id(weight)]) + 1e-10)
        weight -= RATE * gradient

    def move_rows(self, index, gradient):
        if self.adagrad:
            self.row_sums[index] += (gradient**2).mean(axis=1)
            gradient = gradient / (np.sqrt(self.row_sums[index]) + 1e-10)[:, None]
        self.tables[index] -= RATE * gradient


@pytest.mark.parametrize("rowwise_adagrad", [False, True])
def test_loss_curve_is_that_of_the_formulas(rowwise_adagrad):
    generator = np.random.default_rng(5)
    dense = generator.normal(size=(STEPS * BATCH, 5)).astype(np.float32)
    columns = [
        generator.integers(-1 if h > 1 else 0, r, (STEPS * BATCH, h)) for r, h in zip(ROWS, HOTNESS, strict=True)
    ]
    ids = np.concatenate(columns, axis=1).astype(np.int32)
    chance = 1 / (1 + np.exp(-dense[:, 0] * (ids[:, 0] - 1) - (ids[:, 1] % 3 - 1)))
    label = (generator.random(len(dense)) < chance).astype(np.float32)[:, None]

    model = DLRM(SPEC, bottom_units=(16, DIM), top_units=(16, 8, 1), seed=3)
    model.build()
    section = {"learning_rate": RATE, "name": "rowwise_adagrad" if rowwise_adagrad else "sgd"}
    config = TrainConfig(
        embedding=EmbeddingOptimizerConfig(**section),
        dense=DenseOptimizerConfig(learning_rate=RATE, name="adagrad" if rowwise_adagrad else "sgd"),
    )
    model.compile(build_optimizer(config))
    oracle = NumpyDLRM(model, rowwise_adagrad)

    means = []
    remember = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: means.append(logs["loss"]))
    data = tf.data.Dataset.from_tensor_slices(({"dense": dense, "sparse": ids}, label)).batch(BATCH)
    model.fit(data, verbose=0, callbacks=[remember])
    # Keras reports the mean over the steps so far.
    losses = np.diff(np.array(means) * np.arange(1, STEPS + 1), prepend=0)

    batches = [slice(i * BATCH, (i + 1) * BATCH) for i in range(STEPS)]
    expected = [oracle.step(dense[b].astype(np.float64), ids[b], label[b].astype(np.float64)) for b in batches]
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    assert np.mean(expected[-20:]) < np.mean(expected[:20]) - 0.05  # it learnt something: the curve is no flat line
    for i, table in enumerate(oracle.tables):
        np.testing.assert_allclose(model.embedding.get_table(f"t{i}"), table, atol=1e-4)
