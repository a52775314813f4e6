"""Loading real SavedModels and calling their signatures."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.serving.codec import TensorInfo
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.servable import load_servable
from tfdlrm.serving.store import ModelStore


@pytest.fixture(scope="module")
def servable(model_path):
    return load_servable(model_path, 1)


def mixed_inputs(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    words = np.array([b"Rome", b"", b"\xff\x00"], dtype=object)
    return {
        "age": rng.random(rows, np.float32),
        "price": rng.random(rows, np.float32),
        "city": words[rng.integers(0, 3, rows)],
        "country": words[rng.integers(0, 3, rows)],
        "clicks": rng.integers(-5, 5, rows),
        "member": rng.random(rows) < 0.5,
        "level": rng.integers(0, 5, rows).astype(np.int32),
    }


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_seven_inputs_of_five_types(servable, rows):
    inputs = mixed_inputs(rows)
    outputs = servable.signature("mixed")(inputs)
    total = inputs["age"] + 10 * inputs["price"] + 100 * inputs["clicks"] + 1000 * inputs["level"]
    np.testing.assert_allclose(outputs["total"], np.where(inputs["member"], total, -total), rtol=1e-6)
    assert outputs["total"].dtype == np.float32
    joined = [a + b", " + b for a, b in zip(inputs["city"], inputs["country"], strict=True)]
    assert outputs["place"].tolist() == joined


def test_stacked_inputs_answer_as_the_signature_does(servable, model_path):
    inputs = mixed_inputs(5)
    direct = tf.saved_model.load(str(model_path)).signatures["mixed"](
        **{name: tf.constant(array) for name, array in inputs.items()}
    )
    for name, value in servable.signature("mixed")(inputs).items():
        np.testing.assert_array_equal(value, direct[name].numpy())


def test_what_a_signature_takes(servable):
    assert servable.signature("matrix").inputs == {"x": TensorInfo("float", (None, 2))}
    assert servable.signature("anything").inputs == {"x": TensorInfo("float", None)}
    types = {name: info.dtype for name, info in servable.signature("mixed").inputs.items()}
    assert types == {
        "age": "float",
        "city": "string",
        "clicks": "int64",
        "country": "string",
        "level": "int32",
        "member": "bool",
        "price": "float",
    }


def test_outputs_of_every_kind(servable):
    assert servable.signature("scalar")({"x": np.float32([1, 2])})["sum"].shape == ()
    text = servable.signature("text")({"s": np.array([b"a\x00", b""], dtype=object)})["s"]
    assert (text.dtype, text.tolist()) == (np.dtype(object), [b"a\x00", b""])


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (1, 2, 1)])
def test_a_shape_the_signature_does_not_take(servable, shape):
    with pytest.raises(StatusError, match=r"Input x must have the shape \[\?,2\]") as error:
        servable.signature("matrix")({"x": np.zeros(shape, np.float32)})
    assert error.value.code == Code.INVALID_ARGUMENT


def test_what_tensorflow_refuses_keeps_its_code_and_reason(servable):
    with pytest.raises(StatusError, match=r"indices\[1\] = 5 is not in \[0, 3\)") as error:
        servable.signature("pick")({"i": np.int32([0, 5])})
    assert error.value.code == Code.INVALID_ARGUMENT
    assert "Detected at node" not in error.value.message
    assert "[Op:" not in error.value.message


def test_no_saved_model(tmp_path):
    with pytest.raises(StatusError, match="Could not find SavedModel .pb") as error:
        load_servable(tmp_path, 1)
    assert error.value.code == Code.NOT_FOUND


@pytest.mark.parametrize("damage", ["garbage", "cut", "no variables", "variables cut", "other tags"])
def test_a_damaged_saved_model_does_not_load(model_path, tmp_path, damage):
    path = tmp_path / "1"
    shutil.copytree(model_path, path)
    file = path / "saved_model.pb"
    if damage == "garbage":
        file.write_bytes(b"\xff" * 100)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "no variables":
        shutil.rmtree(path / "variables")
    elif damage == "variables cut":
        (data,) = path.glob("variables/variables.data*")
        data.write_bytes(b"")
    else:
        file.write_bytes(file.read_bytes().replace(b"serve\x1a", b"train\x1a", 1).replace(b"\x05serve", b"\x05train"))
    with pytest.raises(StatusError):
        load_servable(path, 1)


def test_a_replaced_version_leaves_memory(make_model, tmp_path):
    base: Path = tmp_path / "m"
    make_model(base / "1")
    store = ModelStore("m", base, load_servable, poll_seconds=0)
    store.start()
    old = weakref.ref(store.servable().loaded)
    gc.collect()
    assert old() is not None
    shutil.copytree(base / "1", base / ".tmp")
    (base / ".tmp").rename(base / "2")
    store.poll()
    store.poll()
    assert store.servable().version == 2
    assert old() is None
