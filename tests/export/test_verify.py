from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.export.ops import foreign_ops, ops_of, why_foreign
from tfdlrm.export.verify import VerifyError, main, verify
from tfdlrm.spec.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_a_fresh_process_answers_like_the_model(world, version_dir):
    rows = {**world.rows, "label": np.arange(8), "unused": np.array(["x"] * 8)}
    report = verify(version_dir, rows, world.answers(), ids=world.batch, batch_size=3)
    assert report.rows == 8
    signatures = {"serving_default", "tf_examples", "serve_ids", "classify", "regress", "rank"}
    assert set(report.differences) == signatures
    assert 0 <= report.max_difference == max(report.differences.values()) < 1e-6
    assert report.seconds_load > 0
    assert set(report.seconds_answer) == set(report.differences)
    assert {"ParseExampleV2", "ResourceGather"} <= set(report.ops)
    assert report.as_dict()["ops"] == list(report.ops)


def test_the_worst_row_is_named(world, version_dir):
    expected = world.answers()[:, 0]
    expected[2] += 1e-3
    expected[5] -= 2e-3
    with pytest.raises(VerifyError) as error:
        verify(version_dir, world.rows, expected)
    message = str(error.value)
    assert "`serving_default` must answer within 1e-05 of the model. Received for row 5, the worst of 2: " in message
    assert "'ad': '00000000000068FD1E64'" in message


def test_the_other_process_has_nothing_but_tensorflow(world, version_dir, tmp_path):
    """(TensorFlow itself loads tf_keras.) And it says in one line that a file of the version is damaged."""
    damaged = tmp_path / "1"
    shutil.copytree(version_dir, damaged)
    data = damaged / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    questions = tmp_path / "questions.npz"
    np.savez(questions, names=np.array('{"numbers": [], "strings": []}'))
    code = (
        "import sys; from tfdlrm.export.verify import main; code = main(sys.argv[1:])\n"
        "print(sorted(name for name in sys.modules if name in ('polars', 'keras')\n"
        "      or name.startswith(('tfdlrm.data', 'tfdlrm.layers', 'tfdlrm.models'))))\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(damaged), str(questions), str(tmp_path / "answers.npz")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"
    assert done.stderr.strip().splitlines()[-1].startswith(f"{damaged}: cannot be loaded and answered: ")
    assert not (tmp_path / "answers.npz").exists()


def test_a_column_too_few(world, version_dir, tmp_path, capsys):
    questions = tmp_path / "questions.npz"
    names = '{"numbers": ["age", "hour", "price"], "strings": []}'
    np.savez(questions, names=np.array(names), **{f"number/{i}": np.zeros(2, np.float32) for i in range(3)})
    assert main([str(version_dir), str(questions), str(tmp_path / "answers.npz")]) == 2
    expected = "must hold the inputs of `serving_default`. Received none for ['ad', 'ad_before', 'device', 'rank', "
    assert expected in capsys.readouterr().err


def test_operations_that_a_server_lacks(tmp_path):
    root = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def serve(x):
        return {"probability": tf.numpy_function(lambda v: v + 1, [x], tf.float32)}

    tf.saved_model.save(root, str(tmp_path), signatures=serve)
    assert {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & set(ops_of(tmp_path))
    with pytest.raises(VerifyError, match="operations must be in stock TensorFlow. Received: PyFunc"):
        verify(tmp_path, {"x": np.zeros(1)}, np.zeros(1))


def test_every_operation_of_an_export_is_stock(version_dir):
    ops = ops_of(version_dir)
    assert len(ops) > 30 and foreign_ops(ops) == ()
    assert foreign_ops(["MatMul", "MyFastLookup", "EagerPyFunc"]) == ("MyFastLookup", "EagerPyFunc")


def test_operations_of_the_python_package_alone():
    """All of these are in `tf.raw_ops`, so that being there is not enough."""
    names = ("PyFunc", "XlaConcatND", "CudnnRNN", "NcclAllReduce", "ConfigureDistributedTPU", "TPUReplicatedInput")
    for name in names:
        assert hasattr(tf.raw_ops, name)
        assert why_foreign(name)
    assert foreign_ops(names) == names
    for name in ("ResourceGather", "TopKV2", "ParseExampleV2", "StatefulPartitionedCall", "Assert", "StringSplitV2"):
        assert why_foreign(name) is None


def test_no_saved_model(tmp_path):
    with pytest.raises(DataError, match="saved_model.pb: cannot be read: No such file"):
        verify(tmp_path, {"x": np.zeros(1)}, np.zeros(1))
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match="saved_model.pb: not a SavedModel"):
        verify(tmp_path, {"x": np.zeros(1)}, np.zeros(1))


def test_lengths_must_agree(world, version_dir):
    with pytest.raises(ValueError, match="`rows` must have 3 values a column. Received: 8 in "):
        verify(version_dir, world.rows, np.zeros(3))
    with pytest.raises(ValueError, match="`ids` must have 8 values a column. Received: 2 in `sparse`"):
        verify(version_dir, world.rows, np.zeros(8), ids={"sparse": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="at least one row"):
        verify(version_dir, {}, np.zeros(0))
