"""The search space: what is refused and by which name, conditions, and values on their way to the tuner and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdlrm.pipelines.cli import recipe
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.errors import UserError
from tfdlrm.tuning.space import Parameter, Space
from tfdlrm.tuning.sweep_config import SweepConfig, load_sweep, sweep_config

BASE = RunConfig()
RATE = "train.embedding.learning_rate"
NAMED = {"model.name": {"choice": ["dlrm", "dcn_v2"]}}


def space(values: dict, base: RunConfig = BASE) -> Space:
    return Space(sweep_config({"space": values}).space, base)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "`space` must have at least one key. Received: none."),
        (
            {"train.embeding.learning_rate": {"low": 0.1, "high": 0.2}},
            "unknown key `embeding`. Did you mean `embedding`?",
        ),
        ({"trian.batch_size": {"low": 1, "high": 2}}, "unknown key `trian`. Did you mean `train`?"),
        ({RATE: {"low": 0.1, "hihg": 0.2}}, f"in `space.{RATE}`: unknown key `hihg`. Did you mean `high`?"),
        ({RATE: {"low": 0.2, "high": 0.1}}, "`low` must be below `high`. Received: 0.2 and 0.1."),
        ({RATE: {"low": 0.2}}, "`low` and `high`, or `choice`, must be given."),
        ({RATE: {"low": 0.0, "high": 0.1, "sampling": "log"}}, "`low` must be above 0 where `sampling` is 'log'"),
        ({RATE: {"low": 0.1, "high": 0.4, "sampling": "log", "step": 0.5}}, "`step` must be above 1"),
        ({RATE: {"low": 0.1, "high": 0.4, "choice": [1]}}, "`choice` must come alone or with `when`."),
        ({RATE: {"choice": [0.1, 0.1]}}, "`choice` must hold values that differ."),
        ({RATE: {"choice": []}}, "`choice` must hold values that differ."),
        ({RATE: {"choice": [object]}}, "`choice` must hold values as TOML has them."),
        # Both ends of a range and every choice are tried on the recipe before any trial.
        ({RATE: {"low": -0.1, "high": 0.1}}, f"`space`, `{RATE}` = -0.1: in `train.embedding`: `learning_rate`"),
        ({"model.dropout": {"low": 0.1, "high": 1.5}}, "`space`, `model.dropout` = 1.5: in `model`: `dropout`"),
        ({"train.precision": {"choice": ["float32", "float46"]}}, '`space`, `train.precision` = "float46"'),
        ({"model": {"choice": [{"embeding_dim": 4}]}}, "unknown key `embeding_dim`. Did you mean `embedding_dim`?"),
        ({"seed": {"choice": [1, 2]}}, "`space` must not vary `seed`: `seed` is varied by `seeds`."),
        ({"data.split.by": {"choice": ["order"]}}, "`data.split` says which rows are held out."),
        # Nor by way of a table.
        (
            {"data": {"choice": [{"split": {"by": "order"}}, {"planted": {"rows": 1000}}]}},
            "`space` must not vary `data.split.by`: `data.split` says which rows are held out.",
        ),
        ({"train": {"choice": [{"batch_size": 64}, {"monitor": "auc"}]}}, "must not vary `train.monitor`"),
        ({"export.tolerance": {"low": 0.1, "high": 0.2}}, "`export` changes nothing that is learned."),
        (
            {"model": {"choice": [{"dropout": 0.1}]}, "model.dropout": {"low": 0.1, "high": 0.2}},
            "`space` must not set `model.dropout` twice.",
        ),
        ({RATE: {"low": 0.1, "high": 0.2, "when": {"model.nam": ["dcn"]}}, **NAMED}, "Did you mean `model.name`?"),
        ({RATE: {"low": 0.1, "high": 0.2, "when": {"model.name": ["dcn_v3"]}}, **NAMED}, "Did you mean `dcn_v2`?"),
        ({RATE: {"low": 0.1, "high": 0.2, "when": {"model.name": []}}, **NAMED}, "must name values of `model.name`."),
        (
            {
                RATE: {"low": 0.1, "high": 0.2, "when": {"model.dropout": [0.1]}},
                "model.dropout": {"low": 0.1, "high": 0.2},
            },
            "must name a key with a `choice`. Received: `model.dropout`.",
        ),
        (
            {RATE: {"choice": [0.1], "when": {"model.name": ["dcn"], "train.precision": ["float32"]}}},
            "`when` must name one key",
        ),
        (
            {
                "model.name": {"choice": ["dcn"], "when": {"model.structure": ["parallel"]}},
                "model.structure": {"choice": ["parallel"], "when": {"model.name": ["dcn"]}},
            },
            "must not lead back to itself.",
        ),
        ({RATE: 3}, f"`space.{RATE}` must be a table"),
    ],
)
def test_a_space_is_refused_by_name(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        space(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spaces": {}}, "unknown key `spaces`. Did you mean `space`?"),
        ({"space": {}, "budget": {"row_per_trial": 3}}, "in `budget`: unknown key `row_per_trial`."),
        ({"space": {}, "budget": {"bytes_per_trial": "many"}}, "`bytes_per_trial` must be a positive number of bytes"),
        ({"space": {}, "early_stopping": {"check_rows": 10, "patience_rows": 5}}, "`patience_rows` must be at least"),
        ({"space": {}, "algorithm": "grid"}, "`algorithm`: input should be 'random', 'bayesian' or 'hyperband'."),
        ({"space": {}, "hyperband": {"factor": 1}}, "in `hyperband`: `factor`: input should be greater than"),
    ],
)
def test_a_sweep_is_refused_by_name(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sweep_config(values)


def test_files(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        "[space.train.embedding]\nlearning_rate = { low = 0.1, high = 0.2 }\n"
        '[space]\n"model.dropout" = { low = 0.0, high = 0.1 }\n'
    )
    assert list(load_sweep(path).space) == [RATE, "model.dropout"]
    path.write_text("space = 3")
    with pytest.raises(UserError, match=r"sweep.toml: `space`"):
        load_sweep(path)
    path.write_text("space =")
    with pytest.raises(UserError, match="not TOML"):
        load_sweep(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_sweep(tmp_path / "none.toml")


def test_values_reach_the_recipe():
    found = space(
        {RATE: {"low": 0.1, "high": 0.2}, "model": {"choice": [{"embedding_dim": 8, "bottom_units": [64, 8]}]}}
    )
    config = found.apply({RATE: 0.15, "model": {"embedding_dim": 8, "bottom_units": [64, 8]}})
    assert config.train.embedding.learning_rate == 0.15
    assert (config.model.embedding_dim, config.model.bottom_units) == (8, (64, 8))
    # All else is the recipe's.
    same = {"model": BASE.model, "train": BASE.train}
    assert config.model_copy(update=same) == BASE


def test_the_recipe_in_its_space():
    inside = space({RATE: {"low": 0.05, "high": 0.2}, **NAMED})
    assert inside.of_base() == {RATE: BASE.train.embedding.learning_rate, "model.name": "dlrm"}
    assert space({RATE: {"low": 0.5, "high": 0.9}}).of_base() is None
    conditional = space({**NAMED, "model.cross_layers": {"low": 1, "high": 4, "when": {"model.name": ["dcn_v2"]}}})
    assert conditional.of_base() == {"model.name": "dlrm"}


def test_corners_meet_their_conditions():
    found = space(
        {
            "model.cross_rank": {"choice": [4, 8], "when": {"model.structure": ["parallel"]}},
            "model.structure": {"choice": ["stacked", "parallel"], "when": {"model.name": ["dcn_v2"]}},
            **NAMED,
        }
    )
    assert list(found.parameters) == ["model.name", "model.structure", "model.cross_rank"]
    assert {"model.name": "dcn_v2", "model.structure": "parallel", "model.cross_rank": 8} in list(found.corners())
    assert found.conditions("model.cross_rank") == [("model.name", ("dcn_v2",)), ("model.structure", ("parallel",))]


VALUES = st.one_of(
    st.text(max_size=8),
    st.booleans(),
    st.integers(-(2**31), 2**31),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(st.characters(categories=["L"]), min_size=1, max_size=3), st.integers(0, 9), max_size=2),
)


@given(st.lists(VALUES, min_size=1, max_size=5, unique_by=repr))
def test_choices_come_back(values):
    try:
        parameter = Parameter(choice=values)
    except UserError:
        return  # 0.0 and -0.0, say, are told apart by their text alone
    for value in parameter.choice:
        back = parameter.decoded(parameter.encoded(value))
        assert back == value


@given(st.floats(1e-6, 1.0, exclude_max=True), st.floats(1.0, 100.0, exclude_min=True), st.floats(0, 1))
def test_ranges_stay_within(low, high, share):
    import numpy as np

    parameter = Parameter(low=low, high=high)
    value = min(max(low + share * (high - low), low), high)
    # The tuner sends numbers in single precision.
    sent = float(np.float32(parameter.encoded(value)))
    assert low <= parameter.decoded(sent) <= high
    assert parameter.decoded(sent) == pytest.approx(value, rel=1e-6)


def test_json_round_trip():
    config = sweep_config(
        {
            "space": {RATE: {"low": 1, "high": 2.5}, "model.top_units": {"choice": [(8, 1), [16, 1]]}, **NAMED},
            "seeds": 3,
        }
    )
    again = SweepConfig.from_json(config.model_dump_json(exclude_unset=True))
    assert again == config
    assert again.space["model.top_units"].choice == ([8, 1], [16, 1])
    assert not again.space[RATE].whole


def test_the_sweep_that_comes_with_the_project():
    config = load_sweep(recipe("sweep"))
    found = Space(config.space, load_config(recipe("demo")))
    assert found.of_base() is not None
    assert config.most_trials == 20
