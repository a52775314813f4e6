"""A memory budget holds for whatever a model keeps in tables: what is counted is what the built model has."""

import numpy as np
import pytest
import tf_keras as keras

from tests.models.contract import SETTINGS
from tfdlrm.models.build import build, storage_of
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.model_spec import budget_plan

ROWS = {"user": 9000, "tag": 4000, "item": 6000}
SPEC = FeatureSpec(
    dense=[{"name": "x0"}],
    sparse=[
        {"name": "user", "table": "user"},
        {"name": "tags", "table": "tag", "hotness": 3},
        {"name": "item", "table": "item"},
    ],
    tables=[{"name": name, "vocabulary_size": rows, "embedding_dim": 4} for name, rows in ROWS.items()],
)
LEARNED = {"learned_weights": ["tags", "item"]}


def bytes_of(model):
    """Return the bytes of all tables without the row for padding that each variable ends with."""
    stacks = [stack for collection in model.collections.values() for stack in collection.stacks]
    total = sum((stack.shape[0] - 1) * int(np.prod(stack.shape[1:])) * stack.dtype.size for stack in stacks)
    assert model.table_bytes == total
    return total


@pytest.mark.parametrize("share", [0.75, 0.35])
@pytest.mark.parametrize("case", SETTINGS)
def test_what_is_built_is_within_the_budget(case, share):
    name, settings = SETTINGS[case]
    settings = {**settings, **LEARNED, "embedding_dim": 4}
    budget = int(share * bytes_of(build(name, SPEC, settings)))
    config = ModelConfig(**settings, embedding_budget=budget)
    plan = budget_plan(SPEC, config, storage=storage_of(name, config))
    model = build(name, SPEC, config)
    assert model.spec == plan.spec
    projections = sum(
        part.bytes for t in plan.spec.tables for part in plan.spec.stored(t.name) if part.part == "projection"
    )
    stored = bytes_of(model)
    # Projections are none of the tables' rows, and yet counted.
    assert plan.bytes_after - projections <= stored <= plan.bytes_after <= budget
    assert stored >= 0.7 * budget
    keras.backend.clear_session()


def test_one_byte_below_the_whole_is_below():
    for case, (name, settings) in SETTINGS.items():
        settings = {**settings, **LEARNED, "embedding_dim": 4}
        whole = bytes_of(build(name, SPEC, settings))
        for budget, compressed in ((whole, False), (whole - 1, True)):
            config = ModelConfig(**settings, embedding_budget=budget)
            plan = budget_plan(SPEC, config, storage=storage_of(name, config))
            assert any(table.compression is not None for table in plan.spec.tables) is compressed, case
            assert plan.bytes_before == whole, case
        keras.backend.clear_session()


def test_combinations_alone_may_be_too_many():
    settings = {"crosses": [["user", "item"]], "cross_rows": 50_000, "embedding_dim": 4, "embedding_budget": "200kB"}
    with pytest.raises(ConfigError, match="`model.embedding_budget`: `bytes` must be at least 2"):
        build("wide_deep", SPEC, settings)


def test_a_model_without_an_interaction_to_choose_takes_narrow_rows():
    settings = {"embedding_dim": 4, "interaction": "cat", "compression": {"threshold": 0, "dim": 2}}
    assert build("dcn", SPEC, settings).spec.tables[0].compression.dim == 2
    with pytest.raises(ConfigError, match='`model.compression.dim` must go with `interaction` "dot"'):
        build("dlrm", SPEC, {**settings, "bottom_units": [4]})
