"""A served model on encoded ids as an ONNX file: `dense`, `sparse` and `weights` to `probability`.

The graph is that of the signature `serve_ids`, traced with the tables as inputs. Once it is converted, these inputs
become initializers, whose bytes go from the model's variables to the file piece by piece: neither TensorFlow nor
protobuf ever holds tables as constants, and their limit of 2 GB is none. That takes the model itself, which is why an
exported version alone is not enough.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras as keras

from tfdlrm import __version__
from tfdlrm.data.files import fsync_directory, fsync_file, sha256_of
from tfdlrm.export.quantized import HalfRows, PackedRows, Source, quantized_tables, stored_rows
from tfdlrm.export.saved_model import ExportRecord
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.export.signatures import IDS, OUTPUT, batch_signature, signatures
from tfdlrm.export.verify import VerifyError
from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.striped_rows import StripedRows
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec

OPSET = 18  # the first whose ReduceMin, Split and BitwiseAnd are those that the graphs need
INLINE_BYTES = 1 << 30
DATA_SUFFIX = ".data"
_HASH_DIGITS = 16
_CHUNK_BYTES = 1 << 26
_PAGE = 4096  # data of an initializer begin on a page, so that readers may map them
_TABLE = "table_"


class OnnxReport(NamedTuple):
    """What was written.

    Attributes:
        bytes: Of the file and, where tables lie in one of their own, of that.
        external: Whether they do.
        difference: Largest difference of a probability from the version it was compared with.
    """

    bytes: int
    external: bool
    difference: float


def export_onnx(
    model: keras.Model,
    record: ExportRecord,
    version_dir: Path,
    path: Path,
    *,
    tolerance: float = 1e-5,
    inline_bytes: int = INLINE_BYTES,
) -> OnnxReport:
    """Write a model as ONNX, once it answers random and edge ids as its exported version does.

    Args:
        model: The model that was exported, computing in float32.
        record: What `assets.extra/tfdlrm.json` of the version says: tables are stored alike.
        version_dir: Directory of the version.
        path: The file, replaced if it is there. Tables beyond `inline_bytes` go to a file beside it, called `path` with
            the start of their SHA-256 and `.data` behind it, so that a graph never reads tables of another one; the two
            must stay together.
        tolerance: Largest difference allowed from the version's probability. Defaults to 1e-5.
        inline_bytes: Most bytes of tables inside of the file, which must stay below 2 GB. Defaults to 1 GiB.

    Returns:
        What was written.

    Raises:
        ConfigError: onnx, tf2onnx or onnxruntime is not installed, the model does not compute in float32, lies on
            servers, or has an operation without a counterpart in ONNX.
        VerifyError: an answer is off by more than `tolerance`; nothing is written.
    """
    _refuse_without_libraries()
    if model.compute_dtype != "float32":
        raise ConfigError(
            '`train.precision` must be "float32" of a model that is written as ONNX, whose runtimes differ in what '
            f"they know of bfloat16. Received: {model.compute_dtype}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder,
        serving_rows(model, record.untouched_rows),
        quantized_tables(model, record.tables),
    ):
        sources = [source for collection in model.collections.values() for source in stored_rows(collection)]
        graph = _converted(model, record, sources)
        temporary = Path(folder) / path.name
        data = _write(graph, sources, temporary, inline_bytes)
        difference = compare(temporary, version_dir, model.spec)
        if not difference <= tolerance:
            raise VerifyError(f"{path}: ONNX differs from {version_dir} by {difference:g}, above {tolerance:g}.")
        written = [temporary] if data is None else [data, temporary]
        size = sum(file.stat().st_size for file in written)
        for file in written:
            fsync_file(file)
            os.replace(file, path.with_name(file.name))
        fsync_directory(path.parent)
        for stale in _data_files(path):
            if data is None or stale.name != data.name:
                stale.unlink()
    return OnnxReport(size, data is not None, difference)


def compare(path: Path, version_dir: Path, spec: FeatureSpec, rows: int = 512, seed: int = 0) -> float:
    """Return the largest difference of ONNX Runtime's answers from those of a version's signature `serve_ids`.

    Asked are batches of none, one and many rows: random ids, padding and none, ids outside of their table up to the
    ends of 64 bits, large and small numbers. An answer that is no number is infinitely far.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    loaded = tf.saved_model.load(str(version_dir))
    worst = 0.0
    for batch in _batches(spec, rows, seed):
        (found,) = session.run([OUTPUT], batch)
        expected = loaded.signatures[IDS](**{name: tf.constant(values) for name, values in batch.items()})[OUTPUT]
        if found.shape != tuple(expected.shape):
            return float("inf")
        differences = np.abs(found.astype(np.float64) - expected.numpy())
        worst = max(worst, float(np.nan_to_num(differences, nan=np.inf).max(initial=0.0)))
    return worst


def _batches(spec: FeatureSpec, rows: int, seed: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([[spec.table_of(f).vocabulary_size] * f.hotness for f in spec.sparse])
    ids = rng.integers(-1, sizes, (rows, spec.n_ids))
    ids[rng.random(ids.shape) < 0.1] = -1
    edges = [0, -1, -2, 2**31, 2**62, -(2**63), 2**63 - 1]
    ids[: len(edges)] = np.array(edges)[:, np.newaxis]
    ids[len(edges) : len(edges) + 3] = sizes - 1, sizes, sizes + 1
    batch: dict[str, npt.NDArray[Any]] = {"sparse": ids.astype(np.int64)}
    if spec.n_dense:
        scale = rng.choice([0.0, 1.0, 10.0], (rows, 1))
        batch["dense"] = (scale * rng.standard_normal((rows, spec.n_dense))).astype(np.float32)
    if spec.has_weights:
        batch["weights"] = rng.uniform(0.0, 2.0, ids.shape).astype(np.float32)
    for size in (0, 1, rows):
        yield {name: values[rows - size :] for name, values in batch.items()}


def _refuse_without_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX needs `pip install tfdlrm[onnx]`. Received: {error}.") from None


class _Input:
    """Rows looked up in an input of the graph instead of a variable."""

    def __init__(self, source: Source, table: tf.Tensor) -> None:
        self._source = source
        self._table = table

    def look_up(self, rows: tf.Tensor) -> tf.Tensor:
        stored = tf.gather(self._table, rows)
        if isinstance(self._source, PackedRows):
            return self._source.decode(stored, _bits_to_half)
        return self._source.decode(stored) if isinstance(self._source, HalfRows) else tf.cast(stored, tf.float32)


def _bits_to_half(line: tf.Tensor) -> tf.Tensor:
    """Compute what `bits_to_half` reads off, which ONNX cannot: (-1)^sign * 2^(exponent - 25) * (1024 + mantissa)."""
    line = tf.cast(line, tf.float32)
    low, high = line[..., 0::2], line[..., 1::2]
    negative = tf.cast(high >= 128.0, tf.float32)
    high -= 128.0 * negative
    exponent = tf.floor(high / 4.0)
    mantissa = (high - 4.0 * exponent) * 256.0 + low
    # Below the normal numbers, which exponent 0 says, there is no leading bit.
    mantissa += 1024.0 * tf.cast(exponent > 0.0, tf.float32)
    powers = tf.constant([2.0 ** (max(e, 1) - 25) for e in range(32)], tf.float32)
    return (1.0 - 2.0 * negative) * tf.gather(powers, tf.cast(exponent, tf.int32)) * mantissa


def _converted(model: keras.Model, record: ExportRecord, sources: Sequence[Source]) -> Any:
    """Return the model as ONNX whose last inputs are the tables."""
    import tf2onnx

    columns = batch_signature(model.spec, tf.int64)
    tables = [
        tf.TensorSpec(source.variables[0].shape, _input_type(source), f"{_TABLE}{number}")
        for number, source in enumerate(sources)
    ]

    def serve(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        stand_ins = [_Input(source, t) for source, t in zip(sources, inputs[len(columns) :], strict=True)]
        with _reading(list(model.collections.values()), stand_ins):
            answer = signatures(model, None, record.oov_rows, record.logit_shift)[IDS]
            return {OUTPUT: answer(**dict(zip(columns, inputs, strict=False)))[OUTPUT]}

    inputs = [*columns.values(), *tables]
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        proto, _ = tf2onnx.convert.from_function(
            tf.function(serve, input_signature=inputs, autograph=False), inputs, opset=OPSET
        )
    finally:
        logger.setLevel(level)
    _refuse_foreign(proto)
    return proto


@contextmanager
def _reading(collections: Sequence[EmbeddingCollection], sources: Sequence[Any]) -> Iterator[None]:
    """Let collections read from `sources`, those of the first collection first."""
    before = [collection.stand_in for collection in collections]
    left = iter(sources)
    try:
        for collection in collections:
            own = [next(left) for _ in stored_rows(collection)]
            collection.stand_in = lambda own=own: own
        yield
    finally:
        for collection, stand_in in zip(collections, before, strict=True):
            collection.stand_in = stand_in


def _input_type(source: Source) -> tf.DType:
    """Return the type of a table in the file; bfloat16, which few runtimes read, becomes float32."""
    if len(source.variables) > 1:
        raise ConfigError("`distribute` must keep tables in one process of a model that is written as ONNX.")
    dtype = source.variables[0].dtype
    return tf.float32 if dtype == tf.bfloat16 else dtype


def _refuse_foreign(proto: Any) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the model must consist of what ONNX has operations for. Received: {reason}") from None


def _data_files(path: Path) -> list[Path]:
    """Return the files of tables that belong or once belonged to `path`."""
    pattern = re.compile(re.escape(path.name) + rf"(\.[0-9a-f]{{{_HASH_DIGITS}}})?{re.escape(DATA_SUFFIX)}")
    return [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]


def _write(proto: Any, sources: Sequence[Source], path: Path, inline_bytes: int) -> Path | None:
    """Write the graph with tables in place of the inputs that stood for them; return their own file, if any."""
    import onnx

    numbers = {f"{_TABLE}{number}": source for number, source in enumerate(sources)}
    inputs = {value.name: value for value in proto.graph.input}
    kept = [value for name, value in inputs.items() if name not in numbers]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    sizes = {name: _table_bytes(source) for name, source in numbers.items()}
    data = None
    if sum(sizes.values()) > inline_bytes:
        unnamed, offsets = path.with_name(path.name + DATA_SUFFIX), {}
        with unnamed.open("wb") as file:
            for name, source in numbers.items():
                file.seek(-(-file.tell() // _PAGE) * _PAGE)
                offsets[name] = file.tell()
                for piece in _pieces(source):
                    file.write(piece)
        data = unnamed.rename(path.with_name(f"{path.name}.{sha256_of(unnamed)[:_HASH_DIGITS]}{DATA_SUFFIX}"))
        for name, offset in offsets.items():
            tensor = _initializer(proto, inputs[name])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": data.name, "offset": offset, "length": sizes[name]}.items():
                tensor.external_data.add(key=key, value=str(value))
    else:
        for name, source in numbers.items():
            _initializer(proto, inputs[name]).raw_data = b"".join(_pieces(source))
    onnx.helper.set_model_props(proto, {"tfdlrm": __version__})
    path.write_bytes(proto.SerializeToString())
    return data


def _initializer(proto: Any, value: Any) -> Any:
    """Add an initializer with name, type and shape of an input, and no data."""
    kind = value.type.tensor_type
    dims = [dim.dim_value for dim in kind.shape.dim]
    return proto.graph.initializer.add(name=value.name, data_type=kind.elem_type, dims=dims)


def _table_bytes(source: Source) -> int:
    size: int = source.variables[0].shape.num_elements() * _input_type(source).size
    return size


def _pieces(source: Source) -> Iterator[bytes]:
    """Yield the rows of a table as bytes, some at a time."""
    rows, width = source.variables[0].shape
    dtype = _input_type(source).as_numpy_dtype
    step = max(1, _CHUNK_BYTES // (width * np.dtype(dtype).itemsize))
    for lo in range(0, rows, step):
        values = StripedRows(source.variables).gather(tf.range(lo, min(lo + step, rows), dtype=tf.int64)).numpy()
        yield values.astype(dtype, copy=False).tobytes()
