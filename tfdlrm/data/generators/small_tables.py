"""Small tables to try things on, drawn from stated rules: visits of a shop, and ratings of films."""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl

from tfdlrm.spec.errors import ConfigError

_CITIES = ("Basel", "Bern", "Geneva", "Lausanne", "Lugano", "Zurich")
_DEVICES = ("desktop", "phone", "tablet")
_TAGS = ("gift", "new", "red", "sale", "small")
_GENRES = ("action", "comedy", "crime", "drama", "horror", "romance", "science fiction", "war")
_JOBS = ("artist", "doctor", "engineer", "lawyer", "student", "teacher", "writer")
_FIRST_SECOND = 1_700_000_000


def shop_visits(rows: int = 10_000, seed: int = 0) -> pl.DataFrame:
    """Return visits of a shop, with whether something was bought: columns of every kind, with gaps.

    The probability of a purchase is 1 / (1 + exp(-z)), with

        z = taste - 0.3 - (0.01 + 0.02 phone) price + 1.2 sale + 0.6 member

    where `taste` is the user's own, normal with mean 0 and standard deviation 1.2 and the same for every seed, `phone`
    is 1 on that device, `sale` is 1 where the tags have it, and `member` is 1 for members, else 0. The price weighs on
    every device, and where the table has a gap in its place; the other columns weigh nothing.

    Args:
        rows: Number of visits, at least 1.
        seed: Seed of all that is drawn.

    Returns:
        `user_id` (500 of them), `price` (a tenth missing), `visits_before`, `city` (a twentieth missing), `device`,
        `member`, `tags` (lists), `when` (UTC, ascending) and `bought`, 0 or 1.

    Raises:
        ConfigError: `rows` is below 1.

    Example:
        >>> shop_visits(3).columns
        ['user_id', 'price', 'visits_before', 'city', 'device', 'member', 'tags', 'when', 'bought']
    """
    _refuse_none(rows)
    rng = np.random.default_rng(seed)
    user, price = _skewed(rng, 500, rows), rng.gamma(2.0, 15.0, rows)
    device, city = rng.integers(0, len(_DEVICES), rows), rng.integers(0, len(_CITIES), rows)
    member = rng.random(rows) < 0.4
    tagged = rng.random((rows, len(_TAGS))) < 0.25
    taste = np.random.default_rng(7).normal(0.0, 1.2, 500)  # of users, the same for every seed
    odds = taste[user] - 0.3 - (0.01 + 0.02 * (device == 1)) * price + 1.2 * tagged[:, 3] + 0.6 * member
    seconds = np.cumsum(rng.integers(1, 60, rows))
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    return pl.DataFrame(
        {
            "user_id": user + 1000,
            "price": _with_gaps(rng, np.round(price, 2), 0.1),
            "visits_before": rng.geometric(0.02, rows),
            "city": _with_gaps(rng, np.array(_CITIES)[city], 0.05),
            "device": np.array(_DEVICES)[device],
            "member": member,
            "tags": [[tag for tag, has in zip(_TAGS, own, strict=True) if has] for own in tagged],
            "when": [start + datetime.timedelta(seconds=int(second)) for second in seconds],
            "bought": (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64),
        }
    )


def film_ratings(rows: int = 20_000, users: int = 300, films: int = 400, seed: int = 0) -> pl.DataFrame:
    """Return ratings in the shape of MovieLens joined with its users and films.

    A rating is the better the more a user's and a film's hidden tastes agree, in four dimensions, one of which is the
    film's first genre.

    Args:
        rows: Number of ratings, at least 1.
        users: Number of users.
        films: Number of films.
        seed: Seed of all that is drawn.

    Returns:
        `user`, `item`, `age`, `gender`, `occupation`, `genres` (lists), `timestamp` (seconds, ascending) and `rating`,
        1 to 5.

    Raises:
        ConfigError: a number is below 1.

    Example:
        >>> film_ratings(1000)["rating"].is_between(1, 5).all()
        True
    """
    for number in (rows, users, films):
        _refuse_none(number)
    rng = np.random.default_rng(seed)
    user, item = _skewed(rng, users, rows), _skewed(rng, films, rows)
    user_taste, film_taste = rng.normal(0, 1, (users, 4)), rng.normal(0, 1, (films, 4))
    genres = [sorted(rng.choice(len(_GENRES), rng.integers(1, 4), replace=False)) for _ in range(films)]
    film_taste[:, 0] = np.linspace(-1.5, 1.5, len(_GENRES))[[own[0] for own in genres]]
    score = 3.4 + 0.45 * (user_taste[user] * film_taste[item]).sum(1) + rng.normal(0, 0.6, rows)
    age, gender = rng.integers(16, 75, users), rng.choice(["F", "M"], users)
    occupation = rng.choice(_JOBS, users)
    return pl.DataFrame(
        {
            "user": user + 1,
            "item": item + 1,
            "age": age[user],
            "gender": gender[user],
            "occupation": occupation[user],
            "genres": [[_GENRES[genre] for genre in genres[film]] for film in item],
            "timestamp": _FIRST_SECOND + np.cumsum(rng.integers(1, 120, rows)),
            "rating": np.clip(np.rint(score), 1, 5).astype(np.int64),
        }
    )


def _skewed(rng: np.random.Generator, values: int, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return `rows` numbers below `values`, a few of them often: the density falls off as a square root."""
    return np.minimum((rng.random(rows) ** 2 * values).astype(np.int64), values - 1)


def _with_gaps(
    rng: np.random.Generator, values: np.ndarray[tuple[int], np.dtype[np.generic]], share: float
) -> pl.Series:
    missing = rng.random(len(values)) < share
    return pl.DataFrame({"value": values, "missing": missing}).select(
        pl.when(~pl.col("missing")).then(pl.col("value"))
    )["value"]


def _refuse_none(number: int) -> None:
    if number < 1:
        raise ConfigError(f"numbers of rows, users and films must be at least 1. Received: {number}.")
