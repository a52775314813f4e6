import pytest
from pydantic import ValidationError

from tfdlrm.spec.criteo import CARDINALITIES, KAGGLE, MLPERF_V2_HOTNESS, criteo_spec
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig


def make_spec(**changes):
    values = {
        "dense": [{"name": "price"}],
        "sparse": [{"name": "user", "table": "user"}, {"name": "items", "table": "item", "hotness": 3}],
        "tables": [
            {"name": "user", "vocabulary_size": 10, "embedding_dim": 4},
            {"name": "item", "vocabulary_size": 20, "embedding_dim": 4},
        ],
    }
    return FeatureSpec(**{**values, **changes})


def test_columns_follow_spec_order():
    spec = make_spec()
    assert (spec.n_dense, spec.n_ids, spec.table_rows) == (1, 4, 30)
    assert spec.id_columns == {"user": (0, 1), "items": (1, 4)}
    assert spec.table_of(spec.sparse[1]).name == "item"


def test_json_round_trip_and_immutability():
    spec = make_spec()
    assert FeatureSpec.from_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError):
        spec.dense = ()
    assert spec.with_embedding_dim(8).tables[0].embedding_dim == 8
    assert spec.tables[0].embedding_dim == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FeatureSpec(), "`dense` and `sparse` must not both be empty"),
        (lambda: make_spec(dense=[{"name": "user"}]), "feature names must be unique. Received twice: user"),
        (
            lambda: make_spec(sparse=[{"name": "user", "table": "usr"}]),
            "`table` of feature `user` must name a table of the spec. Received: `usr`. Did you mean `user`",
        ),
        (lambda: make_spec(sparse=[{"name": "user", "table": "user"}]), "must be read by a sparse feature.*item"),
        (lambda: TableConfig(name="a", vocabulary_size=0, embedding_dim=2), "`vocabulary_size`: .*Received: 0"),
        (lambda: SparseFeature(name="a", table="a", hotnes=2), "unknown key `hotnes`. Did you mean `hotness`"),
        (lambda: SparseFeature(name="a", table="a", combiner="max"), "`combiner`: .*'sum' or 'mean'.*'max'"),
        (lambda: DenseFeature(name="", transform="log1p"), "`name`: "),
        (lambda: FeatureSpec.from_json("{"), "invalid JSON"),
        (lambda: FeatureSpec.from_json('{"dens": []}'), "unknown key `dens`. Did you mean `dense`"),
    ],
)
def test_errors_name_argument_rule_and_value(build, message):
    with pytest.raises(SpecError, match=message):
        build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": [{"name": "cost"}]}, "must have the same dense names"),
        ({"dense": [{"name": "price", "transform": "identity"}]}, "`transform` of dense `price`.*'log1p' and 'id"),
        (
            {"sparse": [{"name": "user", "table": "user"}, {"name": "items", "table": "item", "hotness": 2}]},
            "`hotness` of sparse `items` must be the same in the model and the data. Received: 3 and 2",
        ),
    ],
)
def test_disagreeing_specs_are_refused_by_name(changes, message):
    make_spec().refuse_unless_equal(make_spec(), "the model", "the data")
    with pytest.raises(SpecError, match=message):
        make_spec().refuse_unless_equal(make_spec(**changes), "the model", "the data")


def test_criteo_cardinalities():
    assert sum(KAGGLE) == 33_762_577
    assert criteo_spec(KAGGLE, 16).table_rows == 33_762_577
    assert {name: len(sizes) for name, sizes in CARDINALITIES.items()} == dict.fromkeys(CARDINALITIES, 26)
    assert criteo_spec(CARDINALITIES["mlperf_v2"], 128, MLPERF_V2_HOTNESS).n_ids == sum(MLPERF_V2_HOTNESS) == 214
    with pytest.raises(SpecError, match="`vocabulary_sizes` must have 26 entries. Received: 2"):
        criteo_spec([1, 2], 16)


def test_linear_spec_has_one_weight_an_id():
    shared = {"hash_rows": 10, "exact_rows": 4}
    spec = FeatureSpec(
        dense=[{"name": "x"}],
        sparse=[{"name": n, "table": n, "hotness": 2} for n in "abc"],
        tables=[
            {"name": "a", "vocabulary_size": 20, "embedding_dim": 8, "compression": {**shared, "dtype": "bfloat16"}},
            {"name": "b", "vocabulary_size": 20, "embedding_dim": 8, "compression": {"dim": 2}},
            {"name": "c", "vocabulary_size": 20, "embedding_dim": 8},
        ],
    )
    linear = spec.linear_spec()
    assert (linear.dense, linear.sparse) == (spec.dense, spec.sparse)
    assert {(t.vocabulary_size, t.embedding_dim, t.initializer) for t in linear.tables} == {(20, 1, "zeros")}
    assert [t.stored_bytes for t in linear.tables] == [40, 80, 80]
    assert FeatureSpec.model_validate_json(linear.model_dump_json()) == linear


def test_only_keeps_features_and_their_tables():
    spec = FeatureSpec(
        dense=[{"name": "x"}],
        sparse=[{"name": "a", "table": "t"}, {"name": "b", "table": "u"}, {"name": "c", "table": "t"}],
        tables=[{"name": n, "vocabulary_size": 3, "embedding_dim": 2} for n in "tu"],
    )
    part = spec.only(["c", "a"])
    assert (part.dense, part.sparse_names, [t.name for t in part.tables]) == ((), ("a", "c"), ["t"])
