"""Small tables: the same again for the same seed, of every kind of column, and with something to learn."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tfdlrm.data.generators.small_tables import film_ratings, shop_visits
from tfdlrm.spec.errors import ConfigError


@pytest.mark.parametrize("draw", [shop_visits, film_ratings])
def test_a_seed_draws_the_same_again(draw) -> None:
    assert draw(200, seed=3).equals(draw(200, seed=3))
    assert not draw(200, seed=3).equals(draw(200, seed=4))
    with pytest.raises(ConfigError, match="must be at least 1. Received: 0"):
        draw(0)


def test_visits_follow_their_rule() -> None:
    visits = shop_visits(20_000)
    assert visits["price"].null_count() / len(visits) == pytest.approx(0.1, abs=0.01)
    assert visits["city"].null_count() / len(visits) == pytest.approx(0.05, abs=0.01)
    assert visits["when"].is_sorted() and set(visits["bought"]) == {0, 1}
    sale = pl.col("tags").list.contains("sale")
    with_sale, without = (visits.filter(rule)["bought"].mean() for rule in (sale, ~sale))
    assert with_sale > without + 0.1
    assert visits.filter("member")["bought"].mean() > visits.filter(~pl.col("member"))["bought"].mean() + 0.05


def test_purchases_are_as_probable_as_is_said() -> None:
    """The formula, worked out on the columns: in each tenth of the rows, by probability, so many bought."""
    visits = shop_visits(60_000).drop_nulls("price")
    taste = np.random.default_rng(7).normal(0.0, 1.2, 500)[visits["user_id"].to_numpy() - 1000]
    phone, sale = visits["device"] == "phone", visits["tags"].list.contains("sale")
    weights = 0.01 + 0.02 * phone.to_numpy()
    z = taste - 0.3 - weights * visits["price"].to_numpy() + 1.2 * sale.to_numpy() + 0.6 * visits["member"].to_numpy()
    expected = 1 / (1 + np.exp(-z))
    for tenth in np.array_split(np.argsort(expected), 10):
        assert visits["bought"].to_numpy()[tenth].mean() == pytest.approx(expected[tenth].mean(), abs=0.025)
    assert "z = taste - 0.3 - (0.01 + 0.02 phone) price + 1.2 sale + 0.6 member" in (shop_visits.__doc__ or "")


def test_ratings_are_joined_as_a_table_of_users_and_films_would_be() -> None:
    ratings = film_ratings(5000, users=50, films=60)
    assert ratings["user"].is_between(1, 50).all() and ratings["item"].is_between(1, 60).all()
    assert set(ratings["rating"]) == {1, 2, 3, 4, 5}
    assert ratings["timestamp"].is_sorted()
    for key, columns in (("user", ["age", "gender", "occupation"]), ("item", ["genres"])):
        assert ratings.group_by(key).agg(pl.col(columns).n_unique()).select(columns).max_horizontal().max() == 1
