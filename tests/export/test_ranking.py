"""`rank` against the same model asked row by row: the values of each candidate beside those of its question."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.export.ranking import ranking_signature, refuse_no_columns
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.verify import verify
from tfdlrm.spec.coding import Encoding, Expand, FeatureCoding, TableCoding
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig

NAN = float("nan")
ROWS = 23
SPARSE = (
    SparseFeature(name="genre", table="genre", hotness=3, combiner="mean", weighted=True),
    SparseFeature(name="user", table="user"),
    SparseFeature(name="item", table="item"),
    SparseFeature(name="item_again", table="user"),
    SparseFeature(name="seen", table="item", hotness=2),
    SparseFeature(name="place", table="place", hotness=4),
    SparseFeature(name="hour", table="hour"),
)
DENSE = (DenseFeature(name="price"), DenseFeature(name="age", transform="identity"), DenseFeature(name="score"))
CODINGS = {
    "genre": FeatureCoding(source="genres", separator="|", weights="genre_weights"),
    "user": FeatureCoding(source="user"),
    "item": FeatureCoding(source="item"),
    "item_again": FeatureCoding(source="item"),
    "seen": FeatureCoding(source="seen", separator=","),
    "place": FeatureCoding(source="place", expand=Expand(distribution="uniform", seed=3)),
    "hour": FeatureCoding(source="hour"),
}
COLUMNS = ("price", "age", "score", "hour", "genres", "genre_weights", "user", "item", "seen", "place")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)

    def words(prefix, count):
        return np.array([*(f"{prefix}{n}" if n else "" for n in rng.integers(0, count, ROWS)), None], object)[:-1]

    sizes = rng.integers(0, 5, ROWS)
    texts = {name: words(name[0], 9) for name in ("user", "item", "place")}
    texts["seen"] = np.array([*(",".join(f"i{n}" for n in rng.integers(0, 9, k)) for k in sizes), None], object)[:-1]
    bags = rng.integers(1, 4, ROWS)  # values, and so weights, of each row
    for name, value in (("genres", lambda: f"g{rng.integers(1, 6)}"), ("genre_weights", lambda: f"{rng.random():.3f}")):
        texts[name] = np.array([*("|".join(value() for _ in range(size)) for size in bags), None], object)[:-1]
    numbers = {name: rng.uniform(0, 9, ROWS).astype(np.float32) for name in ("price", "age", "score")}
    numbers["price"][::5] = NAN
    return {**texts, **numbers, "hour": rng.integers(0, 24, ROWS).astype(np.float32)}


@pytest.fixture(scope="module")
def encoder():
    spec = FeatureSpec(
        dense=DENSE,
        sparse=SPARSE,
        tables=[
            TableConfig(name=n, vocabulary_size=13, embedding_dim=4) for n in ("hour", "item", "genre", "place", "user")
        ],
    )
    tables = {table.name: TableCoding(kind="hash", value="string", buckets=11) for table in spec.tables}
    tables["hour"] = TableCoding(kind="hash", value="number", buckets=11)
    return FeatureEncoder(spec, Encoding(features=CODINGS, tables=tables), {}, {})


@pytest.fixture(scope="module")
def score(encoder, new_model):
    model = new_model(encoder.spec)
    return tf.function(lambda batch: model(dict(batch), training=False), autograph=False)


def ask(function, rows, candidates, places, mask, blank=None):
    """Return scores and order for questions made of rows: `places` `[Q, N]` of candidates, the first one's shared."""
    inputs = {}
    for name, values in rows.items():
        taken = values[places] if name in candidates else values[places[:, 0]]
        if blank is not None and name in candidates:
            taken = np.where(mask, taken, blank if taken.dtype == object else 7e7)
        inputs[name] = tf.constant(taken.tolist(), tf.string if taken.dtype == object else tf.float32, taken.shape)
    found = function(mask=tf.constant(mask), **inputs)
    assert found["scores"].dtype == tf.float32 and found["order"].dtype == tf.int32
    return found["scores"].numpy(), found["order"].numpy()


def one_by_one(encoder, score, rows, candidates, places):
    """Return what the model says of each candidate as a row of its own, `[Q, N]`."""
    repeated = np.repeat(places[:, :1], places.shape[1], axis=1)
    raw = {n: values[(places if n in candidates else repeated).reshape(-1)] for n, values in rows.items()}
    batch = encoder.encode(
        {n: tf.constant(v.tolist(), tf.string) if v.dtype == object else tf.constant(v) for n, v in raw.items()}
    )
    return score(batch).numpy().reshape(places.shape)


@pytest.mark.parametrize(
    "candidates",
    [
        ["item"],
        ["genres", "genre_weights"],
        ["place"],
        ["age", "seen"],
        ["price", "hour", "genres", "genre_weights", "item"],
        list(COLUMNS),
    ],
    ids=lambda names: "+".join(names) if len(names) < 10 else "all",
)
def test_scores_are_those_of_rows(encoder, score, rows, candidates):
    function = ranking_signature(encoder, candidates, score)
    places = np.random.default_rng(1).integers(0, ROWS, (5, 6))
    mask = np.random.default_rng(2).random((5, 6)) < 0.7
    mask[3] = False
    expected = np.where(mask, one_by_one(encoder, score, rows, candidates, places), 0.0)
    assert np.ptp(expected[mask]) > 0.01
    # What no candidate stands for is never read: "|" has no weights, and is refused where it is read with some.
    scores, order = ask(function, rows, candidates, places, mask, blank="a|b|c|d")
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert (scores[~mask] == 0).all()
    for question in range(5):
        best_first = sorted(range(6), key=lambda n: (not mask[question, n], -scores[question, n]))
        assert order[question].tolist() == best_first


@pytest.mark.parametrize(("questions", "each"), [(0, 0), (0, 3), (2, 0), (1, 1), (1, 200)])
def test_any_number_of_questions_and_candidates(encoder, score, rows, questions, each):
    function = ranking_signature(encoder, ["item", "price"], score)
    places = np.random.default_rng(4).integers(0, ROWS, (questions, each))
    first = places if each else np.zeros((questions, 1), np.int64)
    inputs = {
        name: tf.constant((values[places] if name in ("item", "price") else values[first[:, 0]]).tolist())
        if questions * each
        else tf.zeros((questions, each) if name in ("item", "price") else (questions,), tf.float32)
        if values.dtype != object
        else tf.fill((questions, each) if name in ("item", "price") else (questions,), "")
        for name, values in rows.items()
    }
    inputs["genre_weights"] = tf.fill([questions], "1|1|1")
    inputs["genres"] = tf.fill([questions], "a|b|c")
    found = function(mask=tf.ones((questions, each), tf.bool), **inputs)
    assert found["scores"].shape == found["order"].shape == (questions, each)
    if questions * each:
        own = {**rows, "genres": np.full(ROWS, "a|b|c", object), "genre_weights": np.full(ROWS, "1|1|1", object)}
        expected = one_by_one(encoder, score, own, ["item", "price"], places)
        np.testing.assert_allclose(found["scores"], expected, atol=1e-6)


def test_equal_candidates_keep_their_order(encoder, score, rows):
    function = ranking_signature(encoder, ["item"], score)
    places, mask = np.full((1, 7), 4), np.array([[1, 0, 1, 1, 0, 1, 1]], bool)
    assert ask(function, rows, ["item"], places, mask)[1].tolist() == [[0, 2, 3, 5, 6, 1, 4]]


def test_shapes_that_do_not_fit(encoder, score, rows):
    function = ranking_signature(encoder, ["item", "price"], score)
    places = np.zeros((3, 4), np.int64)
    good = {n: rows[n][places if n in ("item", "price") else places[:, 0]] for n in COLUMNS}
    for name, shape in (("item", (4, 3)), ("price", (2, 6)), ("user", (4,)), ("age", (1,)), ("item", (3, 5))):
        inputs = {**good, name: np.resize(good[name], shape)}
        tensors = {
            n: tf.constant(v.tolist(), tf.string if v.dtype == object else tf.float32) for n, v in inputs.items()
        }
        with pytest.raises(tf.errors.InvalidArgumentError, match="shared columns must have the shape"):
            function(mask=tf.ones((3, 4), tf.bool), **tensors)


def test_strings_of_a_question_are_keyed_once(encoder, score):
    """No operation on strings that a shared column feeds is fed by the mask, as those of a row a candidate are."""
    function = ranking_signature(encoder, ["item"], score)
    fed_by: dict[str, set[str]] = {}
    for op in function.graph.get_operations():
        fed_by[op.name] = {op.name} if op.type == "Placeholder" else set()
        fed_by[op.name].update(*(fed_by[tensor.op.name] for tensor in op.inputs))
    on_strings = [op for op in function.graph.get_operations() if tf.string in [tensor.dtype for tensor in op.inputs]]
    feeders = [fed_by[op.name] for op in on_strings if op.type not in ("Assert", "If", "StatefulPartitionedCall")]
    assert any({"mask", "item"} <= feeder for feeder in feeders)
    assert any("user" in feeder for feeder in feeders)
    assert not [feeder for feeder in feeders if "mask" in feeder and not feeder.isdisjoint({"user", "seen", "genres"})]


def test_an_exported_version_ranks(world, answers):
    rows = world.rows
    candidates = ["ad", "tags", "price"]
    places, mask = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 0]]), np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
    inputs = {name: values[places if name in candidates else places[:, 0]] for name, values in rows.items()}
    found = answers.all_outputs("rank", mask=mask, **inputs)
    repeated = np.repeat(places[:, :1], 3, axis=1)
    flat = {name: values[(places if name in candidates else repeated).reshape(-1)] for name, values in rows.items()}
    expected = np.where(mask, answers("serving_default", **flat).reshape(3, 3), 0.0)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)
    assert found["order"][2].tolist() == [0, 1, 2] and found["order"][1][2] == 1


def test_a_bag_and_its_weights_are_asked_about_together(encoder, rows, new_model, tmp_path):
    """Bags of different lengths: weights of one row do not fit the values of another."""
    lengths = {text.count("|") for text in rows["genres"]}
    assert len(lengths) > 1
    for name in ("genres", "genre_weights"):
        with pytest.raises(SpecError) as error:
            refuse_no_columns(["item", name], COLUMNS, encoder.encoding)
        assert str(error.value) == (
            "`rank_candidates` must name `genres` and its weights `genre_weights`, which feature `genre` reads "
            f"together, both or neither: there is a weight for each value. Received: `{name}`."
        )
    model = new_model(encoder.spec)
    batch = encoder.encode(
        {n: tf.constant(v.tolist(), tf.string if v.dtype == object else tf.float32) for n, v in rows.items()}
    )
    expected = model(batch).numpy()[:, 0]
    for candidates in (["genres", "genre_weights", "price"], ["item"]):
        path = export_model(
            model, encoder, tmp_path / "model", rank_candidates=candidates, warmup=rows, warmup_batch_sizes=[5]
        )
        report = verify(path, rows, expected)
        assert "rank" in report.differences and report.warmup_requests == 6


def test_wrong_names(world, encoder, new_model, tmp_path):
    def export(*candidates):
        export_model(world.model, world.encoder, tmp_path / "model", rank_candidates=candidates)

    with pytest.raises(
        SpecError, match="must name raw columns of the model. Received: `device_`. Did you mean `device`"
    ):
        export("ad", "device_")
    with pytest.raises(SpecError, match="must name each raw column once"):
        export("ad", "ad")
    with pytest.raises(ConfigError, match="`rank_candidates` must be empty where there is no `encoder`"):
        rows = {table.name: 0 for table in world.model.spec.tables}
        export_model(world.model, None, tmp_path / "model", oov_rows=rows, rank_candidates=["ad"])
    masked = FeatureSpec(dense=[DenseFeature(name="mask")], sparse=SPARSE, tables=encoder.spec.tables)
    with pytest.raises(SpecError, match="must not be called `mask`"):
        model, called_mask = new_model(masked), FeatureEncoder(masked, encoder.encoding, {}, {})
        export_model(model, called_mask, tmp_path / "model", rank_candidates=["item"])
    assert not (tmp_path / "model").exists()
