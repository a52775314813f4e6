"""The planner: it fits, fills, never takes back, and says what it cannot do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tfdlrm.spec.budget import METHODS, BudgetPlan, fit_budget
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.criteo import KAGGLE, TERABYTE_40M, click_log_spec, criteo_spec
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec, SparseFeature, TableConfig

KAGGLE_BYTES = 33_762_577 * 16 * 4


def spec_of(rows, width=16):
    return click_log_spec(rows, width, [1] * len(rows))


def zipf(rows, reads=1_000_000):
    shares = 1 / np.arange(1, rows + 1)
    return (reads * shares / shares.sum()).astype(np.int64)


def stored(plan):
    return [table.stored_bytes for table in plan.spec.tables]


tables = st.lists(st.integers(1, 60_000), min_size=1, max_size=4)
widths = st.sampled_from([1, 2, 5, 8, 16])
methods = st.lists(st.sampled_from(METHODS), min_size=1, max_size=4, unique=True)


@settings(max_examples=30, deadline=None)
@given(tables, widths, methods, st.floats(0.001, 1.2), st.floats(1.0, 3.0), st.booleans())
def test_fits_and_never_takes_back(rows, width, chosen, share, more, linear):
    spec = spec_of(rows, width)
    budget = max(1, int(share * sum(rows) * (width + linear) * 4))
    arguments = {"methods": chosen, "linear": linear, "whole_rows": 100}
    try:
        plan = fit_budget(spec, budget, **arguments)
    except SpecError as error:
        least = int(str(error).split("must be at least ")[1].split(",")[0])
        assert least > budget
        plan = fit_budget(spec, least, **arguments)
        with pytest.raises(SpecError, match="must be at least"):
            fit_budget(spec, least - 1, **arguments)
    assert plan.bytes_after <= plan.budget
    seen = sum((t.compression and t.compression.hash_rows) or t.vocabulary_size for t in plan.spec.tables)
    assert plan.bytes_after == sum(stored(plan)) + (4 * seen if linear else 0)
    assert plan.bytes_after == sum(choice.bytes_after for choice in plan.choices)
    assert plan == fit_budget(spec, plan.budget, **arguments)
    assert FeatureSpec.from_json(plan.spec.model_dump_json()) == plan.spec
    assert plan.spec.plain() == spec.plain()
    for table in plan.spec.tables:
        assert table.vocabulary_size > 100 or table.compression is None
    larger = fit_budget(spec, int(plan.budget * more), **arguments)
    for less, much in zip(plan.choices, larger.choices, strict=True):
        assert less.bytes_after <= much.bytes_after
        assert less.kept <= much.kept


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(20_000, 2_000_000), min_size=1, max_size=4), st.floats(0.03, 0.99))
def test_fills_nine_tenths(rows, share):
    plan = fit_budget(spec_of(rows), int(share * sum(rows) * 64))
    assert plan.bytes_after >= 0.9 * plan.budget


@pytest.mark.parametrize("part", [2, 4, 16, 64])
@pytest.mark.parametrize("rows", [KAGGLE, TERABYTE_40M])
def test_criteo(rows, part):
    spec = criteo_spec(rows, 16)
    whole = sum(rows) * 64
    plan = fit_budget(spec, whole // part)
    assert (plan.bytes_before, plan.budget) == (whole, whole // part)
    assert 0.9 * plan.budget <= plan.bytes_after == sum(stored(plan)) <= plan.budget
    # A row of a small table is worth more than one of a large table: only large tables pay.
    kept = [
        choice.bytes_after / choice.bytes_before
        for _, choice in sorted(zip(rows, plan.choices, strict=True), key=lambda pair: pair[0])
    ]
    assert all(larger <= smaller + 0.02 for smaller, larger in zip(kept, kept[1:], strict=False))
    assert [c.compression for c in plan.choices if c.rows <= 2000] == [None] * sum(n <= 2000 for n in rows)


def test_everything_fits():
    plan = fit_budget(criteo_spec(KAGGLE, 16), KAGGLE_BYTES)
    assert plan.spec == criteo_spec(KAGGLE, 16)
    assert {choice.how for choice in plan.choices} == {"whole"}
    assert fit_budget(criteo_spec(KAGGLE, 16), KAGGLE_BYTES - 1).bytes_after < KAGGLE_BYTES


def test_frequent_ids_keep_rows_of_their_own():
    """With 99% of the reads on 1000 ids of 100,000, those have rows of their own in any budget that allows it."""
    counts = np.full(100_000, 1)
    counts[:1000] = 9900
    for share in (0.02, 0.05, 0.2):
        plan = fit_budget(spec_of([100_000]), int(share * 6_400_000), counts={"C1": counts}, samples=10_000_000)
        (table,) = plan.spec.tables
        assert table.compression.hash_rows is not None
        assert table.compression.exact_rows >= 1000
        share_of_rest = (100_000 - table.compression.exact_rows) / counts.sum()
        assert plan.choices[0].why.startswith(f"{share_of_rest:.1%} of reads share rows")


def test_without_an_order_no_id_is_favoured():
    plan = fit_budget(spec_of([100_000]), "2MB", counts={"C1": None}, samples=10_000_000)
    assert plan.spec.tables[0].compression.exact_rows == 0
    assert plan.assumes == "no order of count assumed in 1"


def test_counts_say_which_table_is_worth_more():
    """Two tables of one size: one whose every id is read alike, one that reads a hundred ids only."""
    even, few = np.full(50_000, 100), np.where(np.arange(50_000) < 100, 50_000, 0)
    plan = fit_budget(spec_of([50_000, 50_000]), "2MB", counts={"C1": even, "C2": few}, samples=5_000_000)
    assert stored(plan)[0] > 3 * stored(plan)[1]
    assert plan.assumes == "reads counted in 2 of 2 tables"


def test_counts_of_a_sample_may_be_short_or_empty():
    spec = spec_of([5000, 5000])
    plan = fit_budget(spec, 100_000, counts={"C1": [3, 2, 1], "C2": []})
    assert plan.bytes_after <= 100_000


def test_shared_table_is_worth_more_than_two_of_one_feature():
    spec = FeatureSpec(
        sparse=[SparseFeature(name=n, table=t) for n, t in (("a", "both"), ("b", "both"), ("c", "one"))],
        tables=[TableConfig(name=n, vocabulary_size=50_000, embedding_dim=16) for n in ("both", "one")],
    )
    plan = fit_budget(spec, "1MB")
    assert len(plan.choices) == 2
    assert stored(plan)[0] > stored(plan)[1]


def test_a_table_with_settings_of_its_own_keeps_them():
    own = Compression(dtype="float16", dim=4)
    spec = spec_of([50_000, 60_000])
    tables = (spec.tables[0], TableConfig(**{**dict(spec.tables[1]), "compression": own}))
    plan = fit_budget(spec.model_copy(update={"tables": tables}), 1_000_000)
    assert plan.spec.tables[1].compression == own
    assert plan.choices[1].bytes_after == 60_000 * 4 * 2 + 4 * 16 * 4
    assert plan.choices[1].why == "set for this table"
    assert 900_000 <= plan.bytes_after <= 1_000_000
    assert plan.bytes_before == 110_000 * 64


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        ("bfloat16", {"dtype"}),
        ("dim", {"dim"}),
        ("hash", {"hash_rows", "exact_rows"}),
        ("quotient_remainder", {"quotient_remainder"}),
    ],
)
def test_only_the_methods_allowed(method, allowed):
    spec = spec_of([400_000, 90_000, 500])
    plan = fit_budget(spec, sum(t.stored_bytes for t in spec.tables) * 6 // 10, methods=(method,))
    changed = {
        key
        for t in plan.spec.tables
        if t.compression
        for key, value in dict(t.compression).items()
        if value != dict(Compression())[key]
    }
    assert changed and changed <= allowed


def test_impossible_budget_names_the_least_and_the_tables():
    with pytest.raises(
        SpecError,
        match=r"`bytes` must be at least 32160000, the least .* by bfloat16 \(`C1` 32000000, `C2` 160000\). "
        r"Received: '1MB'\.",
    ):
        fit_budget(spec_of([1_000_000, 5000]), "1MB", methods=["bfloat16"])
    with pytest.raises(SpecError, match=r"at least 32000, .*\(`C1` 32000\).* up to 1000 rows stay whole"):
        fit_budget(spec_of([500]), 31_999)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bytes": "5 parsecs"}, "`bytes` must be a positive number of bytes.*Received: '5 parsecs'"),
        ({"bytes": "0MB"}, "Received: '0MB'"),
        ({"methods": ["hashing"]}, "`methods` must name some of bfloat16.*Received: `hashing`. Did you mean `hash`?"),
        ({"counts": {"C3": [1]}}, "`counts` must name some of C1, C2. Received: `C3`."),
        ({"whole_rows": 0}, "`whole_rows` must be at least 1. Received: 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SpecError, match=message):
        fit_budget(spec_of([5000, 10]), **{"bytes": "1MB", **arguments})


def test_text_and_json():
    plan = fit_budget(criteo_spec(KAGGLE, 16), "512MB")
    lines = str(plan).splitlines()
    assert lines[0] == plan.caption
    assert lines[1].split() == ["table", "rows", "from", "to", "how", "why"]
    assert lines[2].startswith("C3     10,131,227  618.36 MiB")
    assert len(lines) == 28
    assert BudgetPlan.from_json(json.dumps(plan.figures())) == plan


@pytest.mark.parametrize("part", [4, 16])
def test_documented_plans(part):
    text = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8")
    shown = text.split(f"<!-- plan {part} -->\n```text\n")[1].split("\n...\n```")[0]
    assert shown.count("\n") > 5
    assert str(fit_budget(criteo_spec(KAGGLE, 16), KAGGLE_BYTES // part)).startswith(shown)


def test_no_tables():
    plan = fit_budget(FeatureSpec(dense=[{"name": "x"}]), 1)
    assert (plan.bytes_after, plan.choices) == (0, ())
    assert str(plan).startswith("0 B of tables in 0 B (budget 1 B)")
