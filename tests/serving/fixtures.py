"""The models that the conformance tests ask for their answers.

`python -m tests.serving.fixtures DIR` writes them into a directory, with the `models.config` of a server that sees this
directory as `/models`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

# The types that one signature takes and gives back as they are.
_NUMBERS = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64"
ECHOED = (*_NUMBERS.split(), "string")


def write_model(path: Path, offset: float = 2.0) -> None:
    """Write a SavedModel with a signature for each shape of the contract; `offset` tells versions apart."""
    import tensorflow as tf

    class Fixture(tf.Module):
        def __init__(self) -> None:
            self.offset = tf.Variable(offset)

    model = Fixture()
    signatures = {}

    def signature(name: str, **inputs: tf.TensorSpec) -> Callable[[Callable], None]:
        def add(function: Callable) -> None:
            specs = {key: tf.TensorSpec(spec.shape, spec.dtype, key) for key, spec in inputs.items()}
            signatures[name] = tf.function(function).get_concrete_function(**specs)

        return add

    floats, ints, strings = (tf.TensorSpec([None], dtype) for dtype in (tf.float32, tf.int64, tf.string))

    @signature("serving_default", x=floats)
    def half_plus_offset(x):
        return {"y": x * 0.5 + model.offset}

    @signature("matrix", x=tf.TensorSpec([None, 2], tf.float32))
    def matrix(x):
        return {"y": x * 2.0}

    @signature("anything", x=tf.TensorSpec(None, tf.float32))
    def anything(x):
        return {"y": tf.identity(x)}

    @signature(
        "mixed",
        age=floats,
        price=floats,
        city=strings,
        country=strings,
        clicks=ints,
        member=tf.TensorSpec([None], tf.bool),
        level=tf.TensorSpec([None], tf.int32),
    )
    def mixed(age, price, city, country, clicks, member, level):
        total = age + 10.0 * price + 100.0 * tf.cast(clicks, tf.float32) + 1000.0 * tf.cast(level, tf.float32)
        return {
            "total": tf.where(member, total, -total),
            "place": tf.strings.join([city, country], ", "),
        }

    @signature("two", x=floats)
    def two(x):
        return {"twice": x * 2.0, "whole": tf.cast(x, tf.int64)}

    @signature("scalar", x=floats)
    def scalar(x):
        return {"sum": tf.reduce_sum(x)}

    @signature("none_left", x=floats)
    def none_left(x):
        return {"y": x[:0]}

    @signature("uneven", x=floats)
    def uneven(x):
        return {"a": x, "b": x[1:]}

    @signature("count", i=ints)
    def count(i):
        return {"i": i}

    @signature("text", s=strings)
    def text(s):
        return {"s": s}

    @signature("binary", s=strings)
    def binary(s):
        return {"s_bytes": s}

    @signature("pick", i=tf.TensorSpec([None], tf.int32))
    def pick(i):
        return {"y": tf.gather(tf.constant([10.0, 20.0, 30.0]), i)}

    @signature("half", x=tf.TensorSpec([None], tf.float16))
    def half(x):
        return {"y": tf.cast(x, tf.float32)}

    @signature("to_half", x=floats)
    def to_half(x):
        return {"y": tf.cast(x, tf.float16)}

    @signature("slow", steps=tf.TensorSpec([None], tf.int32))
    def slow(steps):
        """A matrix product after another, so that the time it takes can be chosen."""
        one = tf.eye(64)
        product = tf.while_loop(
            lambda i, m: i < steps[0], lambda i, m: (i + 1, tf.linalg.matmul(m, one)), [tf.constant(0), one]
        )[1]
        return {"y": tf.reshape(product[0, 0], [1])}

    features = {name: tf.io.FixedLenFeature([], tf.float32, 0.0) for name in ("x", "bias")}

    def value(inputs):
        parsed = tf.io.parse_example(inputs, features)
        return parsed["x"] * 0.5 + model.offset + parsed["bias"]

    @signature("regress", inputs=strings)
    def regress(inputs):
        return {"outputs": value(inputs)}

    @signature("regress_column", inputs=strings)
    def regress_column(inputs):
        return {"outputs": value(inputs)[:, tf.newaxis]}

    @signature("regress_double", inputs=strings)
    def regress_double(inputs):
        return {"outputs": tf.cast(value(inputs), tf.float64)}

    @signature("regress_matrix", inputs=strings)
    def regress_matrix(inputs):
        return {"outputs": tf.stack([value(inputs)] * 2, axis=1)}

    @signature("classify", inputs=strings)
    def classify(inputs):
        labels = tf.tile(tf.constant([["low", "high"]]), [tf.size(inputs), 1])
        return {"classes": labels, "scores": tf.stack([1 - value(inputs), value(inputs)], axis=1)}

    @signature("classify_scores", inputs=strings)
    def classify_scores(inputs):
        return {"scores": value(inputs)[:, tf.newaxis]}

    @signature("classify_labels", inputs=strings)
    def classify_labels(inputs):
        return {"classes": tf.strings.as_string(tf.cast(value(inputs), tf.int32))[:, tf.newaxis]}

    @signature("classify_flat", inputs=strings)
    def classify_flat(inputs):
        return {"scores": value(inputs)}

    @signature("echo", **{name: tf.TensorSpec([None], getattr(tf, name)) for name in ECHOED})
    def echo(**inputs):
        return {f"same_{name}": tf.identity(tensor) for name, tensor in inputs.items()}

    path.parent.mkdir(parents=True, exist_ok=True)
    tf.saved_model.save(model, str(path), signatures=signatures)
    # TensorFlow 2 calls every signature "predict".
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
    for name in signatures:
        method = name.partition("_")[0]
        if method in ("classify", "regress"):
            updater.replace_method_name(name, f"tensorflow/serving/{method}")
    updater.save()
    requests = path / "assets.extra" / "tf_serving_warmup_requests"
    requests.parent.mkdir()
    with tf.io.TFRecordWriter(str(requests)) as writer:
        for record in warmup_records():
            writer.write(record)


def warmup_records() -> list[bytes]:
    """Return a recorded request of each kind that is replayed at load."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    logs = [prediction_log_pb2.PredictionLog() for _ in range(4)]
    predict, classify, regress = logs[0].predict_log, logs[1].classify_log, logs[2].regress_log
    predict.request.model_spec.name = "m"
    predict.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1, 2])))
    multi = logs[3].multi_inference_log.request
    for name, log in (("classify", classify), ("regress", regress)):
        log.request.model_spec.name, log.request.model_spec.signature_name = "m", name
        multi.tasks.add(model_spec=log.request.model_spec, method_name=f"tensorflow/serving/{name}")
        log.request.input.example_list.examples.add()
    multi.input.example_list.examples.add()
    return [log.SerializeToString() for log in logs]


def write_small_model(path: Path, offset: float) -> None:
    """Write a SavedModel with the first signature of the large one and nothing else."""
    import tensorflow as tf

    model = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half_plus_offset(x):
        return {"y": x * 0.5 + offset}

    tf.saved_model.save(model, str(path), signatures={"serving_default": half_plus_offset})


def config_text(models: Mapping[str, str], root: Path) -> str:
    """Return a ModelServerConfig of models under `root`; the values are what each entry holds besides."""
    entries = (
        f'  config {{ name: "{name}" base_path: "{root / name}" model_platform: "tensorflow" {more}}}\n'
        for name, more in models.items()
    )
    return f"model_config_list {{\n{''.join(entries)}}}\n"


def write_fixtures(folder: Path, root: Path) -> None:
    """Write the models "m" (version 1) and "versions" (1 and 2, labelled), and their `models.config`.

    Args:
        folder: Where to; what is there is replaced.
        root: The same folder as the server sees it.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write_model(temporary / "m" / "1")
    for version, offset in ((1, 2.0), (2, 100.0)):
        write_small_model(temporary / "versions" / str(version), offset)
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } '
    models = {"m": "", "versions": "model_version_policy { all {} } " + labels}
    (temporary / "models.config").write_text(config_text(models, root), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.serving.fixtures", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to; what is there is replaced")
    parser.add_argument("--root", type=Path, default=Path("/models"), help="the folder as the server sees it")
    args = parser.parse_args()
    write_fixtures(args.folder, args.root)
    print(f"{args.folder}/models.config: models under {args.root}")


if __name__ == "__main__":
    main()
