import pickle

import numpy as np
import pytest

from tests.data.packed_samples import make_spec
from tfdlrm.data.generators.laws import RowLaw
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.trace_rows import TraceRows
from tfdlrm.spec.errors import ConfigError, DataError

SPEC = make_spec(hotness=(1, 3), table_rows=10)
TRACE = StackDistances(np.array([3, 9, 1, 4]), np.array([0, 1, 3]), np.array([0.4, 0.8, 1.0]))
TRACES = {"c0": TRACE, "c1": TRACE}


def ids_of(bags):
    return bags[bags >= 0]


def test_locality_crosses_samples_and_batches():
    rows = TraceRows(SPEC, TRACES, law=RowLaw(bags="variable"), check=True)
    batches = [rows.batch(500) for _ in range(20)]
    sparse = np.concatenate([batch["sparse"] for batch in batches])
    for start, stop in ((0, 1), (1, 4)):
        _, first = np.unique(ids_of(sparse[:, start:stop]), return_index=True)
        assert ids_of(sparse[:, start:stop])[np.sort(first)].tolist() == [3, 9, 1, 4]
    assert set((sparse[:, 1:] >= 0).sum(axis=1).tolist()) == {1, 2, 3}
    results = rows.results()
    assert results["c0"].draws == 10_000
    assert results["c1"].draws == (sparse[:, 1:] >= 0).sum()
    assert max(result.ks for result in results.values()) < 0.02


def test_bags_hold_the_trace_in_its_order():
    rows = TraceRows(SPEC, TRACES, seed=4).batch(50)["sparse"]
    single = TraceRows(make_spec(hotness=(1, 1), table_rows=10), TRACES, seed=4).batch(150)["sparse"]
    np.testing.assert_array_equal(rows[:, 1:].ravel(), single[:, 1])


@pytest.mark.parametrize("bags", ["fixed", "variable"])
def test_mode_of_the_paper_begins_every_bag_anew(bags):
    sparse = TraceRows(SPEC, TRACES, "paper", RowLaw(bags=bags), check=True).batch(300)["sparse"]
    assert set(sparse[:, 0].tolist()) == {3}
    for bag in sparse[:, 1:]:
        own = ids_of(bag)
        assert own.tolist() == sorted(set(own.tolist()))
        assert 3 in own
    sizes = (sparse[:, 1:] >= 0).sum(axis=1)
    assert sizes.min() == 1


def test_mode_of_the_paper_folds_ids_into_the_table():
    small = make_spec(hotness=(1, 3), table_rows=4)
    sparse = TraceRows(small, TRACES, "paper").batch(300)["sparse"]
    assert set(ids_of(sparse).tolist()) <= {3, 9 % 4, 1, 0}
    with pytest.raises(DataError, match="ids of feature `c0` must be below the 4 rows of its table. Received: 9"):
        TraceRows(small, TRACES)


def test_seeds_splits_and_features_differ():
    def drawn(**arguments):
        return TraceRows(make_spec(hotness=(1, 1), table_rows=10), TRACES, **arguments).batch(200)

    first = drawn(seed=1)
    for name, array in drawn(seed=1).items():
        np.testing.assert_array_equal(array, first[name])
    for other in (drawn(seed=2), drawn(seed=1, split="test")):
        for name in first:
            assert (first[name] != other[name]).any(), name
    assert (first["sparse"][:, 0] != first["sparse"][:, 1]).any()


def test_goes_on_from_a_state():
    rows = TraceRows(SPEC, TRACES, law=RowLaw(bags="variable"), seed=1)
    rows.batch(100)
    state = pickle.dumps(rows.state())
    expected = rows.batch(100)
    again = TraceRows(SPEC, TRACES, law=RowLaw(bags="variable"), seed=2)
    again.restore(pickle.loads(state))
    for name, array in again.batch(100).items():
        np.testing.assert_array_equal(array, expected[name])


def test_batches_are_the_rows_asked_for():
    assert [len(batch["label"]) for batch in TraceRows(SPEC, TRACES).batches(65_537)] == [65_536, 1]


def test_distances_must_be_those_of_the_features():
    with pytest.raises(ConfigError, match="must have every sparse feature. Received: none of `c1`"):
        TraceRows(SPEC, {"c0": TRACE})
    with pytest.raises(ConfigError, match="Received: `c11`. Did you mean `c1`?"):
        TraceRows(SPEC, {**TRACES, "c11": TRACE})
    with pytest.raises(ConfigError, match="`rows` must be at least 1"):
        TraceRows(SPEC, TRACES).batch(0)
