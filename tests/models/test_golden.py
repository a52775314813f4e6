"""The reference implementation's own numbers: same weights in, same losses and weights out."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfdlrm.export import torch_dlrm
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.training.optimizers import DLRMOptimizer
from tfdlrm.training.row_optimizers import SGD, RowWiseAdagrad

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
legacy = keras.optimizers.legacy


def adagrad(rate):
    return legacy.Adagrad(rate, initial_accumulator_value=0.0, epsilon=1e-10)


OPTIMIZERS = {
    "sgd": lambda rate: DLRMOptimizer(SGD(rate), legacy.SGD(rate)),
    "adagrad": lambda rate: DLRMOptimizer(adagrad(rate), adagrad(rate)),
    "rwsadagrad": lambda rate: DLRMOptimizer(RowWiseAdagrad(rate), adagrad(rate)),
}


class StepLosses(keras.callbacks.Callback):
    """Loss of each step, taken apart from the running mean that Keras reports."""

    def on_train_begin(self, logs=None):
        self.losses = []
        self.total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.losses.append(total - self.total)
        self.total = total


def load(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    meta = json.loads(str(golden["meta"]))
    tables = list(enumerate(zip(meta["tables"], meta["hotness"], strict=True)))
    spec = FeatureSpec(
        dense=[{"name": f"I{i}", "transform": "identity"} for i in range(golden["dense"].shape[-1])],
        sparse=[{"name": f"C{i}", "table": f"C{i}", "hotness": h} for i, (_, h) in tables],
        tables=[
            {"name": f"C{i}", "vocabulary_size": v, "embedding_dim": meta["embedding_dim"]} for i, (v, _) in tables
        ],
    )
    initial = {name.removeprefix("init/"): golden[name] for name in golden if name.startswith("init/")}
    model = torch_dlrm.load(initial, spec)
    assert list(model.bottom_units) == meta["bottom"][1:]
    assert list(model.top_units) == meta["top_hidden"]
    assert (model.interaction_name, model.interaction_itself) == (meta["interaction"], meta["interact_self"])
    model.compile(OPTIMIZERS[meta["optimizer"]](meta["learning_rate"]))
    ids = golden["ids"]
    sparse = np.concatenate([ids[:, :, f, :h] for f, (_, h) in tables], axis=2)
    batches = ({"dense": golden["dense"], "sparse": sparse}, golden["label"])
    return golden, model, tf.data.Dataset.from_tensor_slices(batches)


def dense_layers(model):
    for prefix, mlp in (("bot_l", model.bottom), ("top_l", model.top)):
        for i, layer in enumerate(mlp.hidden):
            yield f"{prefix}.{2 * i}", layer


CASES = ["dot_sgd", "dot_self_sgd", "cat_sgd", "dot_multihot_adagrad", "dot_multihot_rowwise_adagrad"]


@pytest.mark.parametrize("case", CASES)
def test_fit_gives_the_references_losses_and_weights(case):
    golden, model, batches = load(case)
    first = next(iter(batches))[0]
    np.testing.assert_allclose(model(first), golden["forward/step0"], atol=1e-5)
    recorder = StepLosses()
    model.fit(batches, epochs=1, verbose=0, callbacks=[recorder])
    np.testing.assert_allclose(recorder.losses, golden["loss"], atol=1e-5)
    for i in range(len(model.spec.tables)):
        np.testing.assert_allclose(model.embedding.get_table(f"C{i}"), golden[f"final/emb_l.{i}.weight"], atol=1e-4)
    for name, layer in dense_layers(model):
        kernel, bias = layer.get_weights()
        np.testing.assert_allclose(kernel.T, golden[f"final/{name}.weight"], atol=1e-4)
        np.testing.assert_allclose(bias, golden[f"final/{name}.bias"], atol=1e-4)
    np.testing.assert_allclose(model(first), golden["forward/final_on_step0"], atol=1e-5)
