"""What the settings of `[model]` make of the features of prepared data."""

from __future__ import annotations

import tomllib

import pytest

from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.spec.compression import Compression, QuotientRemainder
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.criteo import click_log_spec
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.model_spec import (
    budget_plan,
    methods_of,
    model_spec,
    refuse_hopeless_budget,
    refuse_unfit,
    without_compression,
)
from tfdlrm.spec.storage import Storage
from tfdlrm.spec.table_signal import BinnedCounts, row_steps
from tfdlrm.spec.train_config import EmbeddingOptimizerConfig

ROWS = (50, 20_000, 300_000)


@pytest.fixture
def data():
    return click_log_spec(ROWS, 4, [1, 1, 3])


def compressions(spec):
    return [table.compression for table in spec.tables]


def test_without_settings_only_the_width_changes(data):
    spec = model_spec(data, ModelConfig(embedding_dim=8))
    assert spec == data.with_embedding_dim(8)
    assert spec.plain() == data.plain()


def test_rule_reaches_tables_above_its_threshold(data):
    rule = {"hash_rows": 0.1, "exact_rows": 0.5, "dim": 4, "dtype": "bfloat16"}
    spec = model_spec(data, ModelConfig(embedding_dim=16, compression={"threshold": 20_000, **rule}))
    large = Compression(hash_rows=30_000, exact_rows=15_000, dim=4, dtype="bfloat16")
    assert compressions(spec) == [None, None, large]
    spec = model_spec(data, ModelConfig(compression={"hash_rows": 30_000, "quotient_remainder": {}}))
    split = QuotientRemainder()
    # A table of fewer rows is not hashed; the rest of the rule holds.
    assert compressions(spec) == [
        *(None, Compression(quotient_remainder=split), Compression(hash_rows=30_000, quotient_remainder=split)),
    ]


def test_mixed_dimensions_by_hand(data):
    # 16 (50 / 20000)^0.3 = 2.65 -> 3 -> 4; 16 (50 / 300000)^0.3 = 1.18 -> 1
    config = ModelConfig(mixed_dimensions={"alpha": 0.3}, compression={"threshold": 100_000, "dtype": "bfloat16"})
    assert compressions(model_spec(data, config)) == [None, Compression(dim=4), Compression(dim=1, dtype="bfloat16")]
    config = ModelConfig(mixed_dimensions={"alpha": 0.3, "threshold": 20_000, "round": False})
    assert compressions(model_spec(data, config)) == [None, None, Compression(dim=1)]


def test_a_tables_own_settings_win(data):
    own = {"C3": {"dtype": "float16"}, "C2": {}}
    config = ModelConfig(compression={"threshold": 10, "dim": 2}, tables=own)
    assert compressions(model_spec(data, config)) == [Compression(dim=2), Compression(), Compression(dtype="float16")]
    config = ModelConfig(embedding_budget="3MB", tables={"C2": {}})
    plan = budget_plan(data, config)
    assert plan.choices[1].bytes_after == 20_000 * 64
    assert plan.choices[1].how == "whole"
    assert plan.bytes_after <= 3_000_000
    assert model_spec(data, config) == plan.spec


def test_learned_weights(data):
    spec = model_spec(data, ModelConfig(learned_weights=["C3"]))
    assert [f.learned_weights for f in spec.sparse] == [False, False, True]
    assert spec.plain() == data.plain()
    assert model_spec(spec, ModelConfig()) == spec


def test_twice_is_once(data):
    """A run makes the spec with what it knows of the rows; the model is built from it without."""
    edges = row_steps(0, 300_000)
    counts = {"C3": BinnedCounts(edges, (edges[1:] <= 100) * 1000)}
    for config in (
        ModelConfig(embedding_budget="5MB"),
        ModelConfig(embedding_budget="1GB"),
        ModelConfig(compression={"dtype": "bfloat16"}, tables={"C1": {"dim": 2}}),
        ModelConfig(mixed_dimensions={}, learned_weights=["C1"]),
    ):
        spec = model_spec(data, config, counts, samples=1_000_000)
        assert model_spec(spec, config) == spec
        assert budget_plan(spec, config) is None or spec == data.with_embedding_dim(16)
    assert model_spec(data, ModelConfig(embedding_budget="5MB")) != model_spec(
        data, ModelConfig(embedding_budget="5MB"), counts, samples=1_000_000
    )


def test_linear_weights_count(data):
    config = ModelConfig(embedding_budget="5MB")
    plan = budget_plan(data, config, storage=Storage(linear=True))
    seen = sum((t.compression and t.compression.hash_rows) or t.vocabulary_size for t in plan.spec.tables)
    assert 4_500_000 <= sum(t.stored_bytes for t in plan.spec.tables) + 4 * seen <= 5_000_000


def test_counts_in_other_bins(data):
    edges = row_steps(0, 20_000)
    with pytest.raises(ConfigError, match="`counts` must be in the bins of a table of 300000 rows. Received: .* 20000"):
        model_spec(data, ModelConfig(embedding_budget="5MB"), {"C3": BinnedCounts(edges, edges[1:])})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_budget": "1kB"}, "`model.embedding_budget`: `bytes` must be at least .*C1.*Received: '1kB'"),
        ({"tables": {"c3": {"dim": 2}}}, "`model.tables` must name a table of the data. Received: `c3`."),
        ({"tables": {"C33": {"dim": 2}}}, "Received: `C33`. Did you mean `C3`?"),
        ({"learned_weights": ["C22"]}, "`model.learned_weights` must name a sparse feature.*`C22`. Did you mean `C2`?"),
        ({"tables": {"C1": {"dim": 16}}}, "in `model`: `dim` of table `C1` must be below `embedding_dim`"),
        ({"tables": {"C1": {"hash_rows": 50}}}, "in `model`: `hash_rows` of table `C1` must be below its 50 rows"),
        ({"compression": {"dim": 32}}, "in `model`: `dim` of table `C2` must be below `embedding_dim`"),
        (
            {"compression": {"dim": 3, "quotient_remainder": {"operation": "concat"}}},
            "must have an even width to cut in two. Received: 3",
        ),
    ],
)
def test_settings_that_do_not_fit(data, settings, message):
    with pytest.raises(ConfigError, match=message):
        model_spec(data, ModelConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_budget": "5 parsecs"}, "`embedding_budget` must be a positive number.*Received: '5 parsecs'"),
        ({"embedding_budget": "0MB"}, "`embedding_budget` must be a positive number.*Received: '0MB'"),
        ({"embedding_budget": -5}, "`embedding_budget` must be a positive number.*Received: -5"),
        ({"embedding_budget": 1, "compression": {}}, "`embedding_budget` must not come with `compression`"),
        ({"embedding_budget": 1, "mixed_dimensions": {}}, "`embedding_budget` must not come with `mixed_dimensions`"),
        ({"compression": {"dim": 4}, "mixed_dimensions": {}}, "`compression.dim` must not come with"),
        ({"compression": {"hash_rows": 1.0}}, "`hash_rows` must be a share below 1, or a whole number. Received: 1.0"),
        ({"compression": {"hash_rows": 1}}, "`hash_rows` must be at least 2 where it is a number of rows. Received: 1"),
        (
            {"compression": {"hash_rows": 9, "exact_rows": 1.0}},
            "`exact_rows` must be a share below 1, or a whole number. Received: 1.0",
        ),
        ({"mixed_dimensions": {"alpha": 2}}, "`alpha`: .*Received: 2"),
        (
            {"compression": {"hash_rows": 10.5}},
            "`hash_rows` must be a share below 1, or a whole number. Received: 10.5",
        ),
        ({"compression": {"exact_rows": 10}}, "`exact_rows` must come with `hash_rows`. Received: 10"),
        ({"compression": {"hash_rows": 0}}, "`compression.hash_rows.int`: .*greater than 0|hash_rows.*greater than 0"),
        ({"compression": {"treshold": 3}}, "unknown key `treshold`. Did you mean `threshold`|unknown key"),
        ({"tables": {"C1": {"dims": 3}}}, "unknown key"),
    ],
)
def test_settings_that_contradict_themselves(settings, message):
    with pytest.raises(SpecError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"mixed_dimensions": {}}, "mixed_dimensions"),
        ({"compression": {"dim": 4}}, "compression.dim"),
        ({"tables": {"C3": {"dim": 4}}}, "tables.C3.dim"),
    ],
)
def test_narrow_rows_where_they_do_not_suit(data, settings, name):
    config = ModelConfig(interaction="cat", **settings)
    with pytest.raises(ConfigError, match=f'`model.{name}` must go with `interaction` "dot"'):
        model_spec(data, config, storage=Storage(narrow=False))
    assert any(table.compression for table in model_spec(data, config).tables)


def test_a_budget_does_without_narrow_rows_where_they_do_not_suit(data):
    tight = ModelConfig(embedding_budget="150kB")
    assert any(choice.compression and choice.compression.dim for choice in budget_plan(data, tight).choices)
    plan = budget_plan(data, tight, storage=Storage(narrow=False))
    assert not any(choice.compression and choice.compression.dim for choice in plan.choices)
    assert plan.bytes_after <= 150_000


@pytest.mark.parametrize("name", ["adagrad", "adam", "ftrl"])
def test_optimizers_that_do_not_round(data, name):
    optimizer = EmbeddingOptimizerConfig(name=name)
    tight = ModelConfig(embedding_budget="500kB")
    assert any(table.compression.dtype == "bfloat16" for table in model_spec(data, tight).tables if table.compression)
    spec = model_spec(data, tight, methods=methods_of(optimizer))
    assert {table.compression.dtype for table in spec.tables if table.compression} == {"float32"}
    for settings in ({"compression": {"dtype": "bfloat16"}}, {"tables": {"C1": {"dtype": "float16"}}}):
        with pytest.raises(SpecError, match=f'.dtype` must be "float32" where `train.embedding.name` is "{name}"'):
            RunConfig(model=settings, train={"embedding": {"name": name}})
        for other in ("sgd", "rowwise_adagrad"):
            RunConfig(model=settings, train={"embedding": {"name": other}})


def test_a_budget_that_no_rows_fit():
    one = click_log_spec([1, 1, 1], 4, [1, 1, 3])
    refuse_hopeless_budget(one, ModelConfig(embedding_budget=192))
    with pytest.raises(ConfigError, match="`model.embedding_budget` must be at least 192 bytes.*Received: '10B'"):
        refuse_hopeless_budget(one, ModelConfig(embedding_budget="10B"))
    with pytest.raises(ConfigError, match="at least 234 bytes"):
        refuse_hopeless_budget(
            one,
            ModelConfig(embedding_budget="233B", learned_weights=["C2", "C3"], embedding_dim=16),
            Storage(linear=True, other_bytes=22),
        )


def test_settings_reach_the_tables_that_have_none(data):
    spec = model_spec(data, ModelConfig(tables={"C1": {"dim": 2}}))
    config = ModelConfig(compression={"dtype": "bfloat16"}, tables={"C2": {}})
    assert compressions(model_spec(spec, config)) == [Compression(dim=2), Compression(), Compression(dtype="bfloat16")]
    plan = budget_plan(spec, ModelConfig(embedding_budget="1MB"))
    assert plan.bytes_after <= 1_000_000
    assert compressions(plan.spec)[0] == Compression(dim=2)
    with pytest.raises(ConfigError, match="`model.tables.C1` must be how the spec has the table already, 2 columns"):
        model_spec(spec, ModelConfig(tables={"C1": {"dim": 3}}))
    large = model_spec(data, ModelConfig(tables={"C2": {"dim": 2}, "C3": {"dim": 2}}))
    with pytest.raises(ConfigError, match="`model.compression` must change some table. Received: .*C2, C3"):
        model_spec(large, ModelConfig(compression={"dtype": "bfloat16"}))


def test_a_spec_that_is_compressed_must_fit_the_budget(data):
    compressed = model_spec(data, ModelConfig(compression={"dtype": "bfloat16"}))
    with pytest.raises(ConfigError, match="`model.embedding_budget`: `bytes` must be at least"):
        model_spec(compressed, ModelConfig(embedding_budget="1MB"))
    assert model_spec(compressed, ModelConfig(embedding_budget="1GB")) == compressed
    narrow = model_spec(data, ModelConfig(tables={"C1": {"dim": 8}}))
    with pytest.raises(ConfigError, match="in `model`: `dim` of table `C1` must be below `embedding_dim`"):
        model_spec(narrow, ModelConfig(embedding_dim=8))


def test_without_compression_names_are_still_checked(data):
    config = ModelConfig(embedding_budget="1MB", tables={"C9": {"dim": 2}}, learned_weights=["C1"])
    with pytest.raises(ConfigError, match="`C9`"):
        refuse_unfit(data, config)
    assert without_compression(config) == ModelConfig(learned_weights=["C1"])


def test_settings_survive_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        '[model]\nlearned_weights = ["C1"]\n[model.compression]\nhash_rows = 0.25\nthreshold = 500\n'
        '[model.compression.quotient_remainder]\noperation = "add"\n[model.tables.C3]\ndim = 4\n'
    )
    config = load_config(path, ["model.tables.C1.dtype=bfloat16"])
    assert config.model.tables == {"C3": Compression(dim=4), "C1": Compression(dtype="bfloat16")}
    path.write_text(config_toml(config))
    assert load_config(path) == config
    config = load_config(None, ["model.embedding_budget=1.5 GiB"])
    assert config.model.embedding_budget == "1.5 GiB"
    assert tomllib.loads(config_toml(config))["model"]["embedding_budget"] == "1.5 GiB"
    assert load_config(None, ["model.embedding_budget=1000"]).model.embedding_budget == 1000
    with pytest.raises(ConfigError, match="--set: in `model`: `embedding_budget` must be .*Received: '5 parsecs'"):
        load_config(None, ["model.embedding_budget=5 parsecs"])
