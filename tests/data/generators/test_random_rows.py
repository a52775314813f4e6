import numpy as np
import pytest
from scipy import stats

from tests.data.packed_samples import make_spec
from tfdlrm.data.generators.laws import IdLaw, RowLaw, seed_of
from tfdlrm.data.generators.random_rows import RandomRows
from tfdlrm.spec.errors import ConfigError, SpecError

TABLE = 50
UNLIKELY = 1e-3  # seeds are fixed: a draw that is this unlikely is a fault


def drawn_ids(law, rows=60_000, table=TABLE):
    return IdLaw(**law).draw(np.random.default_rng(1), (rows,), table)


def powerlaw_shares(alpha):
    """Integral of x^-alpha over [i + 1, i + 2), of all of them."""
    edges = np.arange(1, TABLE + 2, dtype=float)
    primitive = np.log(edges) if alpha == 1 else edges ** (1 - alpha) / (1 - alpha)
    return np.diff(primitive) / (primitive[-1] - primitive[0])


def gaussian_shares(mu, sigma):
    law = stats.truncnorm((0 - mu) / sigma, (1 - mu) / sigma, loc=mu, scale=sigma)
    return np.diff(law.cdf(np.arange(TABLE + 1) / TABLE))


@pytest.mark.parametrize(
    ("law", "shares"),
    [
        ({"kind": "uniform"}, np.full(TABLE, 1 / TABLE)),
        ({"kind": "powerlaw"}, powerlaw_shares(1.2)),
        ({"kind": "powerlaw", "alpha": 1.0}, powerlaw_shares(1)),
        ({"kind": "powerlaw", "alpha": 0.5}, powerlaw_shares(0.5)),
        ({"kind": "gaussian"}, gaussian_shares(0.5, 0.1)),
        ({"kind": "gaussian", "mu": 0.0, "sigma": 0.5}, gaussian_shares(0, 0.5)),
        ({"kind": "gaussian", "mu": 0.9, "sigma": 3.0}, gaussian_shares(0.9, 3)),
    ],
    ids=str,
)
def test_ids_follow_their_law(law, shares):
    ids = drawn_ids(law)
    counts = np.bincount(ids, minlength=TABLE)
    assert len(counts) == TABLE
    expected = shares * len(ids)
    seen = expected >= 5  # what the test asks for
    counts = np.append(counts[seen], counts[~seen].sum())
    expected = np.append(expected[seen], expected[~seen].sum())
    if expected[-1] < 5:
        assert counts[-1] < 20
        counts, expected = counts[:-1], expected[:-1] * (counts[:-1].sum() / expected[:-1].sum())
    assert stats.chisquare(counts, expected).pvalue > UNLIKELY


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "powerlaw"])
def test_tables_of_one_row_and_of_forty_million(kind):
    assert set(drawn_ids({"kind": kind}, 100, 1).tolist()) == {0}
    ids = drawn_ids({"kind": kind}, 10_000, 40_000_000)
    assert 0 <= ids.min() < ids.max() < 40_000_000
    # Whole ids, not rounded to what a float32 holds.
    assert (ids[ids > 2**24] % 2 == 1).any()


def test_variable_bags_have_one_to_hotness_ids():
    spec = make_spec(hotness=(1, 4), table_rows=9)
    sparse = RandomRows(spec, law=RowLaw(bags="variable")).batch(0, 20_000)["sparse"]
    assert (sparse[:, 0] >= 0).all()
    bags = sparse[:, 1:]
    sizes = (bags >= 0).sum(axis=1)
    assert ((bags >= 0) == (np.arange(4) < sizes[:, None])).all()
    assert stats.chisquare(np.bincount(sizes, minlength=5)[1:]).pvalue > UNLIKELY
    assert stats.chisquare(np.bincount(bags[bags >= 0], minlength=9)).pvalue > UNLIKELY


def test_fixed_bags_are_full():
    assert RandomRows(make_spec(hotness=(1, 4))).batch(0, 100)["sparse"].min() >= 0


@pytest.mark.parametrize(("kind", "law"), [("uniform", stats.uniform), ("normal", stats.norm)])
def test_dense_numbers(kind, law):
    dense = RandomRows(make_spec(), law=RowLaw(dense=kind)).batch(0, 20_000)["dense"]
    for column in dense.T:
        assert stats.kstest(column, law.cdf).pvalue > UNLIKELY
    assert abs(np.corrcoef(dense.T)[0, 1]) < 0.03


def test_labels():
    label = RandomRows(make_spec(), law=RowLaw(click_rate=0.03)).batch(0, 50_000)["label"]
    assert set(label.ravel().tolist()) == {0.0, 1.0}
    assert stats.binomtest(int(label.sum()), 50_000, 0.03).pvalue > UNLIKELY
    for rate in (0.0, 1.0):
        assert set(RandomRows(make_spec(), law=RowLaw(click_rate=rate)).batch(0, 500)["label"].ravel()) == {rate}
    label = RandomRows(make_spec(), law=RowLaw(labels="uniform")).batch(0, 20_000)["label"]
    assert stats.kstest(label[:, 0], stats.uniform.cdf).pvalue > UNLIKELY


def test_a_batch_is_a_function_of_seed_split_and_number():
    rows = RandomRows(make_spec(), seed=3)
    later, first = rows.batch(5, 40), rows.batch(0, 40)
    again = RandomRows(make_spec(), seed=3).batch(5, 40)
    for name in later:
        np.testing.assert_array_equal(later[name], again[name])
    others = [
        first,
        RandomRows(make_spec(), seed=4).batch(5, 40),
        RandomRows(make_spec(), seed=3, split="test").batch(5, 40),
    ]
    for other in others:
        for name in later:
            assert (later[name] != other[name]).any(), name


def test_weights_where_a_feature_has_them():
    rows = RandomRows(make_spec(weighted=True)).batch(0, 10)
    assert rows["weights"].shape == rows["sparse"].shape
    assert rows["weights"].dtype == np.float32


def test_wide_ids():
    sparse = RandomRows(make_spec(hotness=(1,), table_rows=2**33)).batch(0, 100)["sparse"]
    assert sparse.dtype == np.int64
    assert sparse.max() > 2**31


def test_fewer_rows_are_the_head_of_more():
    rows = RandomRows(make_spec())
    few = np.concatenate([batch["sparse"] for batch in rows.batches(70_000)])
    more = np.concatenate([batch["sparse"] for batch in rows.batches(131_073)])
    assert (len(few), len(more)) == (70_000, 131_073)
    np.testing.assert_array_equal(few, more[:70_000])
    assert list(rows.batches(0)) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdLaw(kind="zipf"), "`kind`"),
        (lambda: IdLaw(alpha=0), "`alpha`: input should be greater than 0. Received: 0"),
        (lambda: IdLaw(mu=1.5), "`mu`"),
        (lambda: IdLaw(sigma=float("nan")), "`sigma`"),
        (lambda: RowLaw(click_rate=-0.1), "`click_rate`"),
        (lambda: RowLaw(bag="fixed"), "unknown key `bag`. Did you mean `bags`?"),
        (lambda: seed_of(-1, "train"), "`seed` must be at least 0. Received: -1"),
        (lambda: RandomRows(make_spec()).batch(0, 0), "`rows` at least 1"),
        (lambda: RandomRows(make_spec()).batch(-1, 1), "`number` must be at least 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((SpecError, ConfigError)) as error:
        make()
    assert message in str(error.value)
