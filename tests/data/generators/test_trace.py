import pickle

import numpy as np
import pytest

from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.stack_profile import StackProfiler, stack_distances
from tfdlrm.data.generators.trace import TraceGenerator
from tfdlrm.data.generators.trace_check import TraceCheck
from tfdlrm.spec.errors import ConfigError


def profile_of(ids) -> StackDistances:
    profiler = StackProfiler()
    profiler.add(ids)
    return profiler.distribution()


EXAMPLE = profile_of([1, 2, 3, 4, 5, 3, 4, 1, 1, 6, 3])


def skewed_trace(count=200_000, rows=20_000, seed=5):
    """Ids of a power law, some of them repeated soon: a bit of locality of both kinds."""
    random = np.random.default_rng(seed)
    ids = np.minimum(random.pareto(0.6, count), rows - 1).astype(np.int64)
    back = np.maximum(np.arange(count) - random.integers(1, 50, count), 0)
    return np.where(random.random(count) < 0.3, ids[back], ids)


def paper_emission(distances, numbers, padding=False, moves=True):
    """The paper's emission as it is described, one search of the list after the other."""
    values, shares = distances.values.tolist(), distances.cumulative.tolist()
    line, new_ids, out = distances.ids.tolist(), 0, []
    for u in numbers:
        if new_ids < max(values):
            u *= shares[max(i for i, value in enumerate(values) if value <= new_ids)]
        elif padding:
            u = shares[0] + u * (1 - shares[0])
        distance = next(value for value, share in zip(values, shares, strict=True) if u <= share)
        if distance == 0:
            line.append(line.pop(0))
            new_ids += 1
            out.append(line[-1])
        else:
            out.append(line[-distance])
            if moves:
                line.append(line.pop(-distance))
    return out


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("mode", ["lru", "rand"])
@pytest.mark.parametrize("trace", [EXAMPLE, profile_of(skewed_trace(3000, 500))], ids=["example", "skewed"])
def test_one_long_draw_is_that_of_the_paper(trace, mode, padding):
    numbers = np.random.default_rng(11).random(3000)
    expected = paper_emission(trace, numbers, padding, moves=mode == "lru")
    assert TraceGenerator(trace, mode, 11, padding).draw(3000).ids.tolist() == expected


@pytest.mark.parametrize("mode", ["lru", "rand"])
def test_parts_are_the_whole(mode):
    trace = profile_of(skewed_trace(5000, 3000))
    whole = TraceGenerator(trace, mode, 3).draw(4000)
    parts = TraceGenerator(trace, mode, 3)
    drawn = [parts.draw(count) for count in (1, 0, 999, 3000)]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in drawn]), whole.ids)
    np.testing.assert_array_equal(np.concatenate([part.new for part in drawn]), whole.new)
    assert sum(part.warm_up for part in drawn) == whole.warm_up


def test_a_killed_generation_goes_on():
    trace = profile_of(skewed_trace(5000, 3000))
    generator = TraceGenerator(trace, seed=3)
    generator.draw(3000)
    state = pickle.dumps(generator.state())
    expected = generator.draw(3000).ids
    again = TraceGenerator(trace, seed=99)
    again.restore(pickle.loads(state))
    np.testing.assert_array_equal(again.draw(3000).ids, expected)


def test_new_ids_come_in_order_and_then_the_least_recent():
    draws = TraceGenerator(EXAMPLE, seed=2).draw(500)
    new = draws.ids[draws.new]
    assert new[:6].tolist() == [1, 2, 3, 4, 5, 6]
    measured = stack_distances(draws.ids)
    assert set(measured[draws.new][6:].tolist()) == {6}


def test_seeds_differ():
    first, again, other = (TraceGenerator(EXAMPLE, seed=seed).draw(50).ids.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_share_lost_to_rounding_is_never_missed():
    trace = StackDistances(np.arange(5), np.array([0, 1, 2]), np.array([0.2, 0.6, 0.991]))
    draws = TraceGenerator(trace, seed=1).draw(20_000)
    assert len(draws.ids) == 20_000
    check = TraceCheck(trace)
    check.add(draws)
    assert check.result().ks < 0.02


def test_a_trace_of_new_ids_only():
    trace = profile_of([4, 2, 9])
    for padding in (False, True):
        assert TraceGenerator(trace, seed=1, padding=padding).draw(7).ids.tolist() == [4, 2, 9, 4, 2, 9, 4]


@pytest.mark.parametrize("padding", [False, True])
def test_bags_of_the_paper(padding):
    trace = profile_of(skewed_trace(400, 30))
    hotness, samples, rows = 9, 200, 20
    sizes = np.random.default_rng(1).integers(1, hotness + 1, samples)
    bags = TraceGenerator(trace, "paper", 7, padding).paper_bags(sizes, hotness, rows)
    numbers = np.random.default_rng(7).random((hotness, samples)).T
    for bag, size, own in zip(bags, sizes, numbers, strict=True):
        expected = [value % rows for value in sorted(set(paper_emission(trace, own[:size], padding)))]
        assert bag.tolist() == expected + [-1] * (hotness - len(expected))


def test_every_bag_of_the_paper_begins_anew():
    generator = TraceGenerator(EXAMPLE, "paper", 1)
    assert set(generator.paper_bags(np.ones(100, np.int64), 1, 100).ravel().tolist()) == {1}
    assert generator.draw(1).ids.tolist() == generator.draw(1).ids.tolist() == [1]


def test_what_comes_out_has_the_distances_that_went_in():
    for trace, count in ((EXAMPLE, 100_000), (profile_of(skewed_trace(50_000)), 200_000)):
        generator, check = TraceGenerator(trace, seed=1), TraceCheck(trace)
        for _ in range(4):
            check.add(generator.draw(count // 4))
        result = check.result()
        assert result.draws == count
        assert result.warm_up < count / 2
        assert result.ks < 0.01


@pytest.mark.parametrize("trace", [EXAMPLE, profile_of(skewed_trace(50_000))], ids=["example", "skewed"])
def test_a_warm_start_has_no_warm_up(trace):
    generator = TraceGenerator(trace, seed=1, warm_start=True)
    check = TraceCheck(trace, in_use_at_first=generator.in_use_at_first)
    draws = generator.draw(100_000)
    assert draws.warm_up == 0
    assert len(generator.in_use_at_first) == trace.values[-1]
    # Ids that were not in use at first come in their order.
    new = draws.ids[draws.new]
    fresh = trace.ids[trace.values[-1] :]
    np.testing.assert_array_equal(new[: len(fresh)], fresh)
    check.add(draws)
    assert check.result().ks < 0.01
    with pytest.raises(ConfigError, match="`warm_start` must be false"):
        TraceGenerator(trace, "paper", warm_start=True)


def test_the_emission_of_the_paper_fails_the_check():
    # Counted as they are, the fronts that it uses again are no new ids: all of their share is missing.
    check = TraceCheck(EXAMPLE)
    check.add_plainly(TraceGenerator(EXAMPLE, "paper", 1).draw(100_000).ids)
    assert check.result().ks == pytest.approx(6 / 11, abs=0.01)
    # And with a sample a call all ids are the same.
    check = TraceCheck(EXAMPLE)
    check.add_plainly(TraceGenerator(EXAMPLE, "paper", 1).paper_bags(np.ones(1000, np.int64), 1, 100).ravel())
    assert check.result().ks == pytest.approx(6 / 11, abs=0.01)


def test_padding_draws_no_new_id_after_warm_up():
    trace = profile_of(skewed_trace(20_000, 300))
    generator, check = TraceGenerator(trace, seed=1, padding=True), TraceCheck(trace, padding=True)
    draws = generator.draw(100_000)
    assert not draws.new[draws.warm_up :].any()
    check.add(draws)
    assert check.result().ks < 0.01


def test_unknown_mode():
    with pytest.raises(ConfigError, match="`mode` must be one of lru, rand, paper. Received: 'fifo'"):
        TraceGenerator(EXAMPLE, "fifo")
