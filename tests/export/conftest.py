"""A model over every kind of raw column, and rows with everything that may be wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
import tf_keras as keras

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.export.saved_model import export_model
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig

DIM = 4
NAN = float("nan")
CODINGS = {
    "ad": TableCoding(value="hex", min_count=2),
    "site": TableCoding(value="string", oov_row=2, rare_row=1, first_id=3, min_count=2),
    "tag": TableCoding(value="string"),
    "hashed": TableCoding(kind="hash", value="string", buckets=11),
    "hour": TableCoding(value="number"),
}
SOURCES = {
    "ad": ("ad", None),
    "ad_before": ("ad_before", None),
    "site": ("site", None),
    "tags": ("tags", "|"),
    "device": ("device", None),
    "hour": ("hour", None),
}
SPARSE = (
    SparseFeature(name="ad", table="ad"),
    SparseFeature(name="tags", table="tag", hotness=3, combiner="mean"),
    SparseFeature(name="ad_before", table="ad"),
    SparseFeature(name="site", table="site"),
    SparseFeature(name="device", table="hashed"),
    SparseFeature(name="hour", table="hour"),
)
DENSE = (
    DenseFeature(name="price"),
    DenseFeature(name="age", transform="standardize"),
    DenseFeature(name="rank", transform="identity"),
)

TRAINING = {
    "price": [1.0, 20.0, NAN, 3.0, 5.0, 8.0],
    "age": [20.0, 30.0, 40.0, NAN, 50.0, 60.0],
    "rank": [0.1, -0.2, 0.3, 0.4, NAN, -0.6],
    "hour": [1.0, 5.0, 23.0, 300.0, NAN, 1.0],
    "ad": ["0a", "0a", "ff01", "ff01", "", "68fd1e64"],
    "ad_before": ["68fd1e64", "0a", "", "ff01", "", "68fd1e64"],
    "site": ["a.com", "a.com", "b.com", "b.com", "once.com", ""],
    "tags": ["red|blue", "red", "", "green|red|blue", "blue", "green"],
    "device": ["phone", "tablet", "", "phone", "watch", "phone"],
}
# Unseen, rare, missing, upper-case, not hexadecimal; not finite; bags with gaps, too long, of unseen values only.
HELD_OUT = {
    "price": [2.0, NAN, -3.0, 1e30, float("inf"), 0.0, 7.0, 1.5],
    "age": [25.0, NAN, 1e6, -1.0, 33.0, float("-inf"), 44.0, 0.0],
    "rank": [0.5, NAN, -0.5, 0.0, 1e-30, 2.0, NAN, 1.0],
    "hour": [1.0, NAN, 24.0, 1e9, -7.0, 5.0, 301.0, 23.5],
    "ad": ["0A", "", "FF01", "not hex", "deadbeef", "00000000000068FD1E64", "68fd1e64", "a" * 17],
    "ad_before": ["ff01", "", "0", "FFFFFFFFFFFFFFFF", "0a", "0A", "", "0x0a"],
    "site": ["a.com", "", "once.com", "never.org", "b.com", "A.COM", "ü\x00", "a.com "],
    "tags": ["red", "", "|red||green|", "red|green|blue|red", "unseen", "|", "blue|unseen", "Red"],
    "device": ["phone", "", "watch", "toaster", "tablet", "phone ", "x" * 300, "\x00"],
}


@dataclasses.dataclass(frozen=True)
class World:
    """A model, its encoder, and held-out rows as a frame, as raw columns and encoded.

    Attributes:
        strings: Names of the string columns.
    """

    model: keras.Model
    encoder: FeatureEncoder
    frame: pl.DataFrame
    strings: tuple[str, ...]

    @property
    def rows(self) -> dict[str, np.ndarray]:
        return {
            name: np.array(self.frame[name].to_list(), object if name in self.strings else np.float32)
            for name in self.frame.columns
        }

    @property
    def batch(self) -> dict[str, np.ndarray]:
        return self.encoder.encode_frame(self.frame)

    def answers(self, model: keras.Model | None = None, **changed: np.ndarray) -> np.ndarray:
        """Return what the model itself says of the held-out rows, [n, 1]."""
        batch = {**self.batch, **changed}
        return (model or self.model)({name: tf.constant(value) for name, value in batch.items()}).numpy()


def frame_of(columns: Mapping[str, list[Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        columns, schema={n: pl.String if isinstance(v[0], str) else pl.Float32 for n, v in columns.items()}
    )


def spec_of(rows: Mapping[str, int]) -> FeatureSpec:
    tables = tuple(TableConfig(name=name, vocabulary_size=size, embedding_dim=DIM) for name, size in rows.items())
    return FeatureSpec(dense=DENSE, sparse=SPARSE, tables=tables)


def model_of(spec: FeatureSpec, policy: str = "float32", **kwargs: Any) -> keras.Model:
    """Return a model whose rows are large enough for every id to show in the answer."""
    model = DLRM(
        spec, bottom_units=(8, DIM), top_units=(8, 1), seed=7, dtype=keras.mixed_precision.Policy(policy), **kwargs
    )
    model.build()
    rng = np.random.default_rng(3)
    for table in spec.tables:
        model.embedding.set_table(table.name, rng.standard_normal((table.vocabulary_size, DIM), np.float32))
    return model


def world_of(policy: str = "float32") -> World:
    encoding = Encoding(
        features={
            name: FeatureCoding(source=source, separator=separator) for name, (source, separator) in SOURCES.items()
        },
        tables=CODINGS,
    )
    builder = VocabularyBuilder(encoding, {f.name: f.table for f in SPARSE}, standardize=["age"])
    builder.add(frame_of(TRAINING))
    vocabularies, stats = builder.build()
    spec = spec_of({name: vocabulary.rows for name, vocabulary in vocabularies.items()})
    encoder = FeatureEncoder(spec, encoding, vocabularies, stats)
    strings = tuple(name for name, values in HELD_OUT.items() if isinstance(values[0], str))
    return World(model_of(spec, policy), encoder, frame_of(HELD_OUT), strings)


@pytest.fixture(scope="session")
def world() -> World:
    return world_of()


@pytest.fixture(scope="session")
def bfloat16_world() -> World:
    return world_of("mixed_bfloat16")


@pytest.fixture(scope="session")
def new_model() -> Callable[..., keras.Model]:
    return model_of


class Served:
    """A version loaded through the version 1 loader: nothing but TensorFlow and the SignatureDef."""

    def __init__(self, directory: Path) -> None:
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        self.definitions = graph.signature_def

    def __call__(self, signature: str, **inputs: Any) -> np.ndarray:
        outputs = self.all_outputs(signature, **inputs)
        assert list(outputs) == ["probability"]
        return outputs["probability"]

    def all_outputs(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        definition = self.definitions[signature]
        assert set(definition.inputs) == set(inputs)
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        return self._session.run({name: info.name for name, info in definition.outputs.items()}, feeds)

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def served() -> Iterator[Callable[[Path], Served]]:
    """Return a function from a version's directory to what answers its signatures."""
    opened: list[Served] = []

    def load(directory: Path) -> Served:
        opened.append(Served(directory))
        return opened[-1]

    yield load
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def version_dir(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(
        world.model, world.encoder, tmp_path_factory.mktemp("served"), rank_candidates=["ad", "tags", "price"]
    )


@pytest.fixture(scope="session")
def answers(version_dir: Path) -> Iterator[Served]:
    """Return what answers the signatures of `version_dir`."""
    loaded = Served(version_dir)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def serialize() -> Callable[[Mapping[str, Any]], bytes]:
    """Return a function from the values of a row to an example; `None` makes a feature without a value."""

    def example(row: Mapping[str, Any]) -> bytes:
        example = tf.train.Example()
        for name, value in row.items():
            feature = example.features.feature[name]
            if value is None:
                feature.SetInParent()
            elif isinstance(value, (str, bytes)):
                feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
            else:
                feature.float_list.value.append(value)
        return example.SerializeToString()

    return example
