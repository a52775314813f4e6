"""The benchmark of batching: it counts what the signature was really asked, and says what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tensorflow as tf

from tfdlrm.pipelines.benchmarks.batching import main, measure_batching
from tfdlrm.spec.errors import DataError


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an input of each kind."""

    class Model(tf.Module):
        @tf.function
        def call(self, a, b, word, flag):
            return {"y": a + tf.cast(b, tf.float32)}

    model = Model()
    inputs = {"a": tf.float32, "b": tf.int64, "word": tf.string, "flag": tf.bool}
    specs = {name: tf.TensorSpec([None], dtype, name) for name, dtype in inputs.items()}
    path = tmp_path_factory.mktemp("model") / "1"
    tf.saved_model.save(model, str(path), signatures=model.call.get_concrete_function(**specs))
    return path


def test_figures(version):
    figures = measure_batching(version, clients=4, seconds=0.1, repeats=2, num_batch_threads=1)
    for way in ("plain", "batched"):
        assert len(figures[way]["rates"]) == 2
        assert min(figures[way]["rates"]) > 0
    assert figures["lift"] == figures["batched"]["rows_per_second"] / figures["plain"]["rows_per_second"]
    assert (figures["inputs"], figures["clients"], figures["num_batch_threads"]) == (4, 4, 1)


def test_the_command(version, tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main([str(version), "--clients", "2", "--seconds", "0.05", "--repeats", "1", "--json", str(file)]) == 0
    assert "x with 2 clients and 4 inputs" in capsys.readouterr().out
    assert json.loads(file.read_text())["clients"] == 2


def test_what_it_cannot_measure(version, tmp_path, capsys):
    with pytest.raises(DataError, match='name: "nope" not found'):
        measure_batching(version, "nope", clients=1)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
