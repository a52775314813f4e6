"""Expanded bags: equal in TensorFlow and NumPy to the last bit, distributed as said, the same for the same id."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from scipy import stats

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.expansion import Expansion
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.pipelines.cli import recipe
from tfdlrm.spec.coding import Encoding, Expand, FeatureCoding, TableCoding
from tfdlrm.spec.config import DataConfig, SparseColumn, load_config
from tfdlrm.spec.criteo import MLPERF_V2, MLPERF_V2_HOTNESS
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig

DISTRIBUTIONS = ("uniform", "pareto")


def splitmix64(state: int) -> int:
    """Return the output of SplitMix64 in a state, in Python's integers."""
    mask = 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_the_mixer_is_splitmix64():
    """The first numbers that SplitMix64 gives for seed 1234567, as its reference implementation prints them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    step = 0x9E3779B97F4A7C15
    assert [splitmix64((1234567 + (i + 1) * step) % 2**64) for i in range(4)] == published


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_numbers_by_hand(distribution):
    """The rule once more, in Python's unbounded integers and fractions."""
    expansion = Expansion(Expand(distribution=distribution, seed=7), "C1", hotness=4, first_id=2, rows=1002)
    step, key = 0x9E3779B97F4A7C15, expansion._key
    expected = []
    for row in (0, 1, 2, 1001):
        start = splitmix64((key + row * step) % 2**64)
        bits = [splitmix64((start + position * step) % 2**64) for position in (1, 2, 3)]
        if distribution == "uniform":
            drawn = [2 + (b >> 1) % 1000 for b in bits]
        else:
            drawn = [2 + int(float(2**32 / ((b >> 32) + 1)) ** 4 - 1) % 1000 for b in bits]
        expected.append([row, *drawn])
    assert expansion.array(np.array([0, 1, 2, 1001], np.int32)).T.tolist() == expected


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("rows", "dtype"), [(3, np.int32), (40_000_002, np.int32), (2**33 + 7, np.int64)])
@pytest.mark.parametrize("hotness", [1, 2, 27])
def test_tensorflow_and_numpy_agree_to_the_bit(distribution, rows, dtype, hotness):
    expansion = Expansion(Expand(distribution=distribution), "C1", hotness, first_id=2, rows=rows)
    ids = np.random.default_rng(5).integers(0, rows, 20_000).astype(dtype)
    bags = expansion.array(ids)
    assert (bags.shape, bags.dtype) == ((hotness, 20_000), ids.dtype)
    assert (bags[0] == ids).all() and bags.min() >= 0 and bags[1:].max(initial=0) < rows
    for call in (expansion.tensor, tf.function(expansion.tensor)):
        np.testing.assert_array_equal(call(tf.constant(ids[np.newaxis])).numpy(), bags)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_what_adds_nothing_is_expanded_to_nothing(distribution, dtype):
    expansion = Expansion(Expand(distribution=distribution), "C1", 3, 2, 100)
    ids = np.array([5, -1, 7], dtype)
    bags = expansion.array(ids)
    assert bags[:, 1].tolist() == [-1, -1, -1]
    assert bags[:, [0, 2]].tolist() == expansion.array(ids[[0, 2]]).tolist()
    np.testing.assert_array_equal(expansion.tensor(tf.constant(ids[np.newaxis])).numpy(), bags)


def drawn(distribution: str, rows: int, first_id: int = 0, hotness: int = 9) -> np.ndarray:
    """Return the drawn ids of the bags of 20,000 ids, less `first_id`."""
    ids = np.arange(20_000, dtype=np.int64)
    return Expansion(Expand(distribution=distribution), "C1", hotness, first_id, rows).array(ids)[1:] - first_id


def test_uniform_draws_are_uniform_and_independent():
    places = drawn("uniform", 1002, first_id=2)
    assert stats.chisquare(np.bincount(places.ravel(), minlength=1000)).pvalue > 0.001
    pairs = np.bincount(places[0] % 10 * 10 + places[1] % 10, minlength=100)  # two positions of one id
    assert stats.chisquare(pairs).pvalue > 0.001
    neighbours = np.bincount(places[0, :-1] % 10 * 10 + places[0, 1:] % 10, minlength=100)  # ids that follow each other
    assert stats.chisquare(neighbours).pvalue > 0.001


def test_pareto_draws_have_that_distribution():
    """In a table so large that the modulus seldom matters: P(floor(x) >= k) = (1 + k) ** -0.25."""
    places = drawn("pareto", 2**40).ravel()
    edges = np.array([0, 1, 2, 4, 16, 256, 2**16, 2**24, 2**31], np.float64)
    share = -np.diff([*stats.lomax(0.25).sf(edges), stats.lomax(0.25).sf(2.0**39)])
    found = np.histogram(places, [*edges, 2.0**39])[0]
    # Draws beyond the table come back at places spread over it: one in a thousand, nearly all in the last bin.
    assert stats.chisquare(found[:-1], share[:-1] / share[:-1].sum() * found[:-1].sum()).pvalue > 0.001
    assert (places < 2**40).all() and (places >= 0).all()


def test_a_bag_depends_on_seed_feature_id_and_nothing_else():
    ids = np.arange(500, dtype=np.int32)

    def bags(seed=0, feature="C1", hotness=6):
        return Expansion(Expand(seed=seed), feature, hotness, 2, 100_000).array(ids)

    np.testing.assert_array_equal(bags(hotness=3), bags()[:3])
    np.testing.assert_array_equal(bags()[:, ::-1], Expansion(Expand(), "C1", 6, 2, 100_000).array(ids[::-1]))
    for other in (bags(seed=1), bags(feature="C2")):
        assert (other[1:] == bags()[1:]).mean() < 0.01


def test_a_table_without_values_draws_reserved_rows():
    bags = Expansion(Expand(), "C1", 5, first_id=2, rows=2).array(np.array([0, 1], np.int32))
    assert bags.min() >= 0 and bags.max() <= 1


def make_encoder(kind: str) -> FeatureEncoder:
    """Return an encoder of an expanded hexadecimal (or text) feature of hotness 4 beside a plain one and a bag."""
    value = {"keys": "hex", "texts": "string", "hash": "hex"}[kind]
    coding = TableCoding(value=value, **({"kind": "hash", "buckets": 50} if kind == "hash" else {}))
    spec = FeatureSpec(
        dense=[DenseFeature(name="x")],
        sparse=[
            SparseFeature(name="plain", table="b"),
            SparseFeature(name="many", table="a", hotness=4),
            SparseFeature(name="bag", table="b", hotness=2),
        ],
        tables=[TableConfig(name=n, vocabulary_size=60, embedding_dim=4) for n in "ab"],
    )
    encoding = Encoding(
        features={
            "plain": FeatureCoding(source="p"),
            "many": FeatureCoding(source="m", expand=Expand(distribution="pareto")),
            "bag": FeatureCoding(source="s", separator="|"),
        },
        tables={"a": coding, "b": TableCoding()},
    )
    keys = np.arange(10, 40, dtype=np.int64)
    if kind == "texts":
        texts = [f"{key:x}" for key in keys]
        keys = np.sort(tf.fingerprint(texts).numpy().view(np.int64)[:, 0])
    vocabulary = Vocabulary(keys, np.arange(2, 32, dtype=np.int32), 32)
    other = Vocabulary(np.array([10, 11]), np.array([3, 2], np.int32), 4)
    return FeatureEncoder(spec, encoding, {"b": other} | ({} if kind == "hash" else {"a": vocabulary}), {})


@pytest.mark.parametrize("kind", ["keys", "texts", "hash"])
def test_a_served_request_is_expanded_as_prepared_rows_are(kind):
    encoder = make_encoder(kind)
    values = ["", "a", "b", "27", "ffff", "1f", "a"]
    columns = {"x": [1.0] * 7, "p": ["a"] * 7, "m": values, "s": ["a|b", "a", "", "b", "b|a|b", "ff", "a"]}
    raw = {name: tf.constant(values) for name, values in columns.items()}
    one_by_one = np.concatenate(
        [encoder.encode({n: v[i : i + 1] for n, v in raw.items()})["sparse"].numpy() for i in range(7)]
    )
    np.testing.assert_array_equal(encoder.encode(raw)["sparse"].numpy(), one_by_one)
    frame = pl.DataFrame(columns)
    np.testing.assert_array_equal(encoder.encode_frame(frame)["sparse"], one_by_one)
    if kind != "texts":
        keys = pl.Series("m", [int(value or "0", 16) for value in values], pl.UInt32)
        keyed = frame.with_columns(keys, pl.Series("missing:m", [not value for value in values]))
        np.testing.assert_array_equal(encoder.encode_frame(keyed)["sparse"], one_by_one)
    rows = 52 if kind == "hash" else 32
    expansion = Expansion(Expand(distribution="pareto"), "many", 4, 2, rows)
    np.testing.assert_array_equal(one_by_one[:, 1:5], expansion.array(one_by_one[:, 1]).T)
    assert one_by_one[0, 1] == 0  # missing
    np.testing.assert_array_equal(one_by_one[1], one_by_one[6])  # equal requests


def test_an_unseen_value_that_adds_nothing_stays_so(tmp_path):
    spec = FeatureSpec(
        sparse=[SparseFeature(name="many", table="a", hotness=4)],
        tables=[TableConfig(name="a", vocabulary_size=32, embedding_dim=4)],
    )
    encoding = Encoding(
        features={"many": FeatureCoding(source="m", expand=Expand())}, tables={"a": TableCoding(oov_row=-1)}
    )
    vocabulary = Vocabulary(np.arange(10, 40, dtype=np.int64), np.arange(2, 32, dtype=np.int32), 32)
    encoder = FeatureEncoder(spec, encoding, {"a": vocabulary}, {})
    for encoded in (encoder.encode({"m": tf.constant(["ffff"])}), encoder.encode_frame(pl.DataFrame({"m": ["ffff"]}))):
        assert np.asarray(encoded["sparse"]).tolist() == [[-1, -1, -1, -1]]


def test_a_saved_encoder_expands_alike(tmp_path):
    encoder = make_encoder("keys")
    encoder.save(tmp_path)
    raw = {"x": tf.constant([1.0]), "p": tf.constant(["a"]), "m": tf.constant(["b"]), "s": tf.constant([""])}
    expected = encoder.encode(raw)["sparse"].numpy()
    np.testing.assert_array_equal(FeatureEncoder.load(tmp_path).encode(raw)["sparse"].numpy(), expected)


def test_recipe_columns_say_expand():
    data = DataConfig(sparse=[SparseColumn(name="c", hotness=3, expand={"distribution": "pareto", "seed": 4})])
    assert encoding_of(data).features["c"].expand == Expand(distribution="pareto", seed=4)


def test_misfits_are_refused():
    with pytest.raises(SpecError, match="`expand` must not be given beside `separator`"):
        FeatureCoding(source="c", separator="|", expand=Expand())
    with pytest.raises(SpecError, match="`seed`"):
        Expand(seed=-1)


def test_the_multi_hot_recipe_has_the_published_bag_lengths():
    data = load_config(recipe("criteo_terabyte_multihot")).data
    assert tuple(column.hotness for column in data.sparse) == MLPERF_V2_HOTNESS
    assert all((column.expand is not None) == (column.hotness > 1) for column in data.sparse)
    spec = spec_of(data, dict(zip(encoding_of(data).tables, MLPERF_V2, strict=True)), 4)
    encoding_of(data).check(spec)
    assert spec.n_ids == 214
