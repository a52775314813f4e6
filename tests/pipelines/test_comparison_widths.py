"""Equal budgets: widths by which one model is as large as another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdlrm.models.build import build
from tfdlrm.pipelines.comparison.widths import CLOSE, dense_weights, fit, scaled_widths
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.criteo import criteo_spec
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.table_settings import CompressionRule

SPEC = criteo_spec([3] * 26, 4)
SMALL = ModelConfig(embedding_dim=4, bottom_units=(8, 4), top_units=(32, 16, 1))


def mlp_weights(inputs: int, widths: tuple[int, ...], other: int = 0) -> int:
    ends = (inputs, *widths, 1)
    return other + sum((a + 1) * b for a, b in zip(ends[:-1], ends[1:], strict=True))


@given(
    hidden=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    inputs=st.integers(1, 500),
    other=st.integers(0, 5000),
    target=st.integers(1, 2_000_000),
)
@settings(max_examples=200, deadline=None)
def test_one_layer_comes_nearest_and_several_within_a_step(hidden, inputs, other, target):
    counted = []

    def count(widths: tuple[int, ...]) -> int:
        counted.append(widths)
        return mlp_weights(inputs, widths, other)

    widths, found = scaled_widths(hidden, target, count)
    assert found == mlp_weights(inputs, widths, other)
    assert len(widths) == len(hidden) and min(widths) >= 1
    assert len(set(counted)) == len(counted) < 80
    off = abs(found - target)
    if len(hidden) == 1:
        nearest = min(
            abs(mlp_weights(inputs, (w,), other) - target) for w in range(max(1, widths[0] - 3), widths[0] + 4)
        )
        assert off == nearest
    elif min(widths) > 1:
        # Every layer wider by a unit, every layer narrower by one: the target lies between.
        low, high = (mlp_weights(inputs, tuple(w + step for w in widths), other) for step in (-1, 1))
        assert low <= target <= high


@pytest.mark.parametrize(
    ("name", "changes"),
    [("dlrm", {"interaction": "cat"}), ("dcn", {}), ("dcn", {"structure": "parallel"}), ("deepfm", {})],
)
def test_real_models_come_within_two_percent(name, changes):
    target = dense_weights(SPEC, SMALL)
    fitted = fit(SPEC, SMALL.model_copy(update={"name": name, **changes}), target)
    model = build(name, SPEC, fitted.config)
    tables = sum(int(v.shape[0] * v.shape[1]) for c in model.collections.values() for v in c.stacks)
    assert model.count_params() - tables == fitted.dense
    assert abs(fitted.dense / target - 1) <= CLOSE
    assert fitted.note == "equal"


def test_a_model_without_an_mlp_is_left_as_it_is():
    config = SMALL.model_copy(update={"name": "logistic_regression"})
    fitted = fit(SPEC, config, 100_000)
    assert (fitted.config, fitted.note) == (config, "no MLP to scale")


def test_what_cannot_be_reached_is_said():
    fitted = fit(SPEC, SMALL, 10)
    assert fitted.config.top_units == (1, 1, 1)
    assert fitted.note.startswith("+") and fitted.note.endswith("%, as near as widths come")


def test_table_settings_stay_and_do_not_count():
    settings = {
        "tables": {"C3": Compression(hash_rows=100, dim=2)},
        "compression": CompressionRule(dtype="bfloat16", threshold=500),
    }
    config = SMALL.model_copy(update=settings)
    one = criteo_spec([1] * 26, 4)
    assert dense_weights(one, config) == dense_weights(one, SMALL)
    fitted = fit(one, config, 2000)
    assert fitted.config.tables == config.tables and fitted.config.compression == config.compression
    with pytest.raises(ConfigError, match="`C33`. Did you mean `C3`"):
        dense_weights(one, SMALL.model_copy(update={"tables": {"C33": Compression(dim=2)}}))


def test_dense_weights_do_not_depend_on_the_size_of_tables():
    assert dense_weights(SPEC, SMALL) == dense_weights(criteo_spec([50] * 26, 4), SMALL)
