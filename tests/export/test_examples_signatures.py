from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf


def examples_of(rows, serialize):
    return [serialize(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]


def test_forms_and_methods_are_the_contract(answers):
    text, number = tf.string.as_datatype_enum, tf.float32.as_datatype_enum

    def forms(infos):
        return {key: (info.dtype, [dim.size for dim in info.tensor_shape.dim]) for key, info in infos.items()}

    classify, regress = answers.definitions["classify"], answers.definitions["regress"]
    assert forms(classify.inputs) == forms(regress.inputs) == {"inputs": (text, [-1])}
    assert forms(classify.outputs) == {"classes": (text, [-1, 2]), "scores": (number, [-1, 2])}
    assert forms(regress.outputs) == {"outputs": (number, [-1])}
    assert classify.method_name == "tensorflow/serving/classify"
    assert regress.method_name == "tensorflow/serving/regress"
    for name in ("serving_default", "serve_ids", "tf_examples", "rank"):
        assert answers.definitions[name].method_name == "tensorflow/serving/predict"


def test_they_answer_what_the_model_does(world, answers, serialize):
    examples, expected = examples_of(world.rows, serialize), world.answers()
    found = answers.all_outputs("classify", inputs=examples)
    assert found["classes"].tolist() == [[b"0", b"1"]] * 8
    np.testing.assert_allclose(found["scores"], np.hstack([1 - expected, expected]), atol=1e-6)
    found = answers.all_outputs("regress", inputs=examples)
    np.testing.assert_allclose(found["outputs"], expected[:, 0], atol=1e-6)


@pytest.mark.parametrize("size", [0, 1])
def test_any_number_of_examples(world, answers, serialize, size):
    examples = np.array([*examples_of(world.rows, serialize)[:size], None], object)[:-1]
    found = answers.all_outputs("classify", inputs=examples)
    assert (found["classes"].shape, found["scores"].shape) == ((size, 2), (size, 2))
    assert answers.all_outputs("regress", inputs=examples)["outputs"].shape == (size,)


def test_what_is_no_example_is_refused(answers):
    for name in ("classify", "regress"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="Could not parse example"):
            answers.all_outputs(name, inputs=[b"not an example"])


def test_an_export_has_a_fingerprint(version_dir):
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(version_dir))
    assert fingerprint.signature_def_hash and fingerprint.graph_def_program_hash and fingerprint.checkpoint_hash
