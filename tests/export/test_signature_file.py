from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2

from tfdlrm.export.signature_file import rewrite_signatures

METHOD = "tensorflow/serving/regress"


@pytest.fixture(scope="module")
def functions():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "traced")])
    def twice(traced):
        return {"outputs": traced * 2}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half(x):
        return {"y": x / 2}

    return {"twice": twice, "half": half}


def save(directory, functions):
    tf.saved_model.save(tf.Module(), str(directory), signatures=functions)
    return fingerprint_pb2.FingerprintDef.FromString((directory / "fingerprint.pb").read_bytes())


def test_inputs_and_methods_are_those_asked_for(functions, tmp_path):
    save(tmp_path, functions)
    rewrite_signatures(tmp_path, {"twice": {"wanted name": "traced"}}, {"twice": METHOD})
    definitions = saved_model_pb2.SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
    written = definitions.meta_graphs[0].signature_def
    assert list(written["twice"].inputs) == ["wanted name"] and list(written["half"].inputs) == ["x"]
    assert written["twice"].method_name == METHOD
    assert written["half"].method_name == "tensorflow/serving/predict"
    loaded = tf.saved_model.load(str(tmp_path)).signatures
    answer = loaded["twice"](**{"wanted name": tf.constant([1.0, 2.0])})["outputs"]
    np.testing.assert_array_equal(answer, [2.0, 4.0])


def test_the_fingerprint_is_that_of_the_new_signatures(functions, tmp_path):
    """Judged by TensorFlow, which wrote a model with the wanted name itself, and hashed that."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "wanted")])
    def twice(wanted):
        return {"outputs": wanted * 2}

    changed, written = tmp_path / "changed", tmp_path / "written"
    before = save(changed, functions)
    by_tensorflow = save(written, {**functions, "twice": twice}).signature_def_hash
    rewrite_signatures(changed, {"twice": {"wanted": "traced"}})
    after = tf.saved_model.experimental.read_fingerprint(str(changed))
    assert after.signature_def_hash not in (0, before.signature_def_hash)
    assert after.graph_def_program_hash == before.graph_def_program_hash
    assert after.saved_object_graph_hash == before.saved_object_graph_hash
    assert after.checkpoint_hash == before.checkpoint_hash
    assert after.saved_model_checksum == 0
    # The tensor behind the input is still called as it was traced. Called as in the other model, hashes are equal.
    [file, other] = [directory / "saved_model.pb" for directory in (changed, written)]
    model, wanted = (saved_model_pb2.SavedModel.FromString(each.read_bytes()) for each in (file, other))
    definitions = model.meta_graphs[0].signature_def
    definitions["twice"].inputs["wanted"].name = wanted.meta_graphs[0].signature_def["twice"].inputs["wanted"].name
    file.write_bytes(model.SerializeToString())
    fingerprint = fingerprint_pb2.FingerprintDef(signature_def_hash=by_tensorflow)
    (changed / "fingerprint.pb").write_bytes(fingerprint.SerializeToString())
    rewrite_signatures(changed, {})
    assert tf.saved_model.experimental.read_fingerprint(str(changed)).signature_def_hash == by_tensorflow


@pytest.mark.parametrize("inputs", [12, 300])
def test_the_fingerprint_of_many_inputs_stays(tmp_path, inputs):
    """Twelve are enough for names of several lengths, of which some begin others."""

    @tf.function
    def total(**columns):
        return {"outputs": tf.add_n(list(columns.values()))}

    names = [f"C{number}" for number in range(inputs)]
    function = total.get_concrete_function(**{name: tf.TensorSpec([None], tf.float32, name) for name in names})
    before = save(tmp_path, {"serving_default": function})
    rewrite_signatures(tmp_path, {})
    after = tf.saved_model.experimental.read_fingerprint(str(tmp_path))
    assert after.signature_def_hash == before.signature_def_hash


def test_a_fingerprint_that_is_not_known_goes(functions, tmp_path):
    fingerprint = save(tmp_path, functions)
    fingerprint.signature_def_hash ^= 1
    (tmp_path / "fingerprint.pb").write_bytes(fingerprint.SerializeToString())
    rewrite_signatures(tmp_path, {}, {"twice": METHOD})
    assert not (tmp_path / "fingerprint.pb").exists()
    assert tf.saved_model.load(str(tmp_path)).signatures["twice"](tf.constant([3.0]))["outputs"].numpy() == [6.0]
