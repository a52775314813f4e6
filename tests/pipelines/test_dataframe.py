"""`from_dataframe` against plain pandas and NumPy, against the pipeline on the same rows as CSV, and served."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import tensorflow as tf

import tfdlrm
from tests.pipelines.small_runs import call
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.pipelines import tabular
from tfdlrm.spec.errors import ConfigError, DataError, SpecError, UserError

ROWS = 600


def visits(rows: int = ROWS, seed: int = 1) -> pd.DataFrame:
    """Return rows with every kind of column, gaps among them, and clicks that depend on three of them."""
    rng = np.random.default_rng(seed)
    user, price = rng.integers(0, 80, rows), rng.gamma(2, 10, rows)
    tags = [[tag for tag in ("new", "sale", "red") if rng.random() < 0.4] for _ in range(rows)]
    score = price / 20 - 1 + (user % 2) * 2 + np.array(["sale" in own for own in tags]) - 1.5
    return pd.DataFrame(
        {
            "user_id": user,
            "price": np.where(rng.random(rows) < 0.1, np.nan, price),
            "visits": rng.integers(0, 1000, rows),
            "city": rng.choice(["Bern", "Rome, Italy", 'the "Big" one', None], rows),
            "member": rng.random(rows) < 0.5,
            "tags": tags,
            "when": rng.permutation(rows) * 10.0,
            "rating": 1 + (rng.random(rows) < 1 / (1 + np.exp(-score))) * 3 + rng.integers(0, 2, rows),
        }
    )


@pytest.fixture(scope="module")
def df() -> pd.DataFrame:
    return visits()


@pytest.fixture(scope="module")
def table(df: pd.DataFrame) -> tfdlrm.TableData:
    return tfdlrm.from_dataframe(df, label="rating >= 4", split={"time": "when"}, embedding_dim=4, batch_size=32)


def test_splits_are_those_of_the_column_that_orders(table: tfdlrm.TableData, df: pd.DataFrame) -> None:
    ordered = df.sort_values("when")
    assert table.rows == {"train": 480, "validation": 60, "test": 60}
    for split, own in (("train", ordered[:480]), ("validation", ordered[480:540]), ("test", ordered[540:])):
        wanted = (own.sort_index()["rating"] >= 4).to_numpy(np.float32)[:, np.newaxis]
        np.testing.assert_array_equal(table.arrays(split)[1], wanted)
        assert table.frame(split)["when"].to_list() == own.sort_index()["when"].to_list()


def expected_ids(df: pd.DataFrame, column: str, train: pd.Index, values: pd.Series) -> list[int]:
    """Return ids by the rules said in words: by frequency in training rows, twice at least; rare and unseen are 1."""
    counts = Counter(v for v in values[train] if v)
    kept = {value: count for value, count in counts.items() if count >= 2}
    return [0 if not v else -1 if v in kept else 1 for v in values]


@pytest.mark.parametrize("column", ["user_id", "city", "member"])
def test_ids_by_hand(table: tfdlrm.TableData, df: pd.DataFrame, column: str) -> None:
    """A value seen twice in training has one row of its own, the frequent before the rare; others have 0 and 1."""
    train = df.sort_values("when").index[:480]
    texts = df[column].map(lambda v: "" if pd.isna(v) else str(v).lower() if column == "member" else str(v))
    start, _ = table.spec.id_columns[column]
    ids = table.encode(df)["sparse"][:, start]
    wanted = np.array(expected_ids(df, column, train, texts))
    np.testing.assert_array_equal(np.where(ids > 1, -1, ids), wanted)
    counts = Counter(texts[train])
    rows = dict(zip(texts[wanted == -1], ids[wanted == -1], strict=True))
    assert len(set(rows.values())) == len(rows)
    assert sorted(rows.values()) == list(range(2, 2 + len(rows)))
    by_row = sorted(rows, key=rows.get)
    assert [counts[value] for value in by_row] == sorted((counts[value] for value in by_row), reverse=True)
    assert table.spec.table(column).vocabulary_size == 2 + len(rows)


def test_bags_and_numbers_by_hand(table: tfdlrm.TableData, df: pd.DataFrame) -> None:
    encoded = table.encode(df)
    start, stop = table.spec.id_columns["tags"]
    bags = encoded["sparse"][:, start:stop]
    assert stop - start == 3 == table.spec.sparse[-1].hotness
    assert [int((bag >= 2).sum()) for bag in bags] == [len(tags) for tags in df["tags"]]
    assert all(bag[0] == 0 and (bag[1:] == -1).all() for bag, tags in zip(bags, df["tags"], strict=True) if not tags)
    numbers = df[["price", "visits"]].to_numpy(np.float64)
    np.testing.assert_allclose(encoded["dense"], np.nan_to_num(np.log1p(numbers)), rtol=1e-6)


def test_all_kinds_of_tables_give_the_same_arrays(table: tfdlrm.TableData, df: pd.DataFrame) -> None:
    polars = pl.DataFrame({name: df[name].astype(object).where(df[name].notna(), None).tolist() for name in df.columns})
    joined = polars.with_columns(pl.col("tags").list.join("|"))
    for other in (polars, polars.lazy(), polars.to_arrow(), joined):
        same = tfdlrm.from_dataframe(other, label="rating >= 4", split={"time": "when"}, embedding_dim=4)
        assert same.spec == table.spec
        for split in ("train", "validation", "test"):
            (features, labels), (own, answers) = table.arrays(split), same.arrays(split)
            np.testing.assert_array_equal(labels, answers)
            for name, values in features.items():
                np.testing.assert_array_equal(values, own[name])


def test_data_sets_hold_the_arrays(table: tfdlrm.TableData) -> None:
    for split in ("train", "validation", "test"):
        features, labels = table.arrays(split)
        batches = list(getattr(table, split).as_numpy_iterator())
        assert [len(batch[1]) for batch in batches[:-1]] == [32] * (len(batches) - 1)
        rows = np.concatenate([np.c_[x["dense"], x["sparse"], y] for x, y in batches])
        wanted = np.c_[features["dense"], features["sparse"], labels]
        if split == "train":  # in another order, and another one in each epoch
            again = np.concatenate([np.c_[x["dense"], x["sparse"], y] for x, y in table.train.as_numpy_iterator()])
            assert not np.array_equal(rows, wanted)
            assert not np.array_equal(rows, again)
            rows, wanted = rows[np.lexsort(rows.T)], wanted[np.lexsort(wanted.T)]
        np.testing.assert_array_equal(rows, wanted)


def test_unseen_and_missing_values(table: tfdlrm.TableData, df: pd.DataFrame) -> None:
    new = {"user_id": [10**6, None], "price": [None, -5.0], "visits": [0, 1], "city": ["Oslo", ""]}
    encoded = table.encode(pl.DataFrame({**new, "member": [None, True], "tags": [["what"], None]}))
    columns = table.spec.id_columns
    assert encoded["sparse"][:, columns["user_id"][0]].tolist() == [1, 0]
    assert encoded["sparse"][:, columns["city"][0]].tolist() == [1, 0]
    assert encoded["sparse"][0, columns["member"][0]] == 0
    assert encoded["sparse"][:, slice(*columns["tags"])].tolist() == [[1, -1, -1], [0, -1, -1]]
    np.testing.assert_allclose(encoded["dense"], [[0, 0], [0, np.log(2)]], rtol=1e-6)


def test_the_recipe_makes_the_same_of_a_csv(table: tfdlrm.TableData, tmp_path: Path) -> None:
    """Prepared by the pipeline, every split holds the same ids, numbers and labels in the same order."""
    path = table.write_csv(tmp_path / "rows.csv")
    (tmp_path / "recipe.toml").write_text(table.recipe(path), encoding="utf-8")
    options = ["--config", tmp_path / "recipe.toml", "--work-dir", tmp_path / "run", "--stages", "prepare"]
    outcome = call(tabular.main, *options)
    assert outcome.code == 0, outcome.err
    for split, rows in table.rows.items():
        prepared, labels = next(packed_dataset(tmp_path / "run" / "data", split, rows).as_numpy_iterator())
        features, answers = table.arrays(split)
        np.testing.assert_array_equal(prepared["sparse"], features["sparse"])
        np.testing.assert_array_equal(labels, answers)
        np.testing.assert_array_equal(prepared["dense"], features["dense"])


def test_a_random_split_is_that_of_the_recipe(df: pd.DataFrame, tmp_path: Path) -> None:
    table = tfdlrm.from_dataframe(df, label="rating >= 4", drop=["when", "tags", "city"], seed=3)
    assert abs(table.rows["train"] / ROWS - 0.8) < 0.05
    path = table.write_csv(tmp_path / "rows.csv")
    (tmp_path / "recipe.toml").write_text(table.recipe(path), encoding="utf-8")
    options = ["--config", tmp_path / "recipe.toml", "--work-dir", tmp_path / "run", "--stages", "prepare"]
    assert call(tabular.main, *options).code == 0
    prepared, _ = next(packed_dataset(tmp_path / "run" / "data", "test", table.rows["test"]).as_numpy_iterator())
    np.testing.assert_array_equal(prepared["sparse"], table.arrays("test")[0]["sparse"])


def test_a_recipe_can_be_changed_and_passed_back(table: tfdlrm.TableData, df: pd.DataFrame) -> None:
    same = tfdlrm.from_dataframe(df, recipe=table.recipe())
    np.testing.assert_array_equal(same.arrays("test")[0]["sparse"], table.arrays("test")[0]["sparse"])
    text = table.recipe().replace("hotness = 3", "hotness = 2").replace("min_count = 2", "min_count = 5")
    changed = tfdlrm.from_dataframe(df, recipe=text)
    assert changed.spec.n_ids == table.spec.n_ids - 1
    assert changed.spec.table("user_id").vocabulary_size < table.spec.table("user_id").vocabulary_size
    assert "the recipe" in str(changed)
    of_object = tfdlrm.from_dataframe(df, recipe=changed.config)
    assert of_object.spec == changed.spec


def test_overrides(df: pd.DataFrame) -> None:
    table = tfdlrm.from_dataframe(
        df,
        label="rating >= 4",
        dense={"visits": "identity"},
        sparse=["price"],
        drop=["tags", "when"],
        split={"key": "user_id"},
        fractions=(0.5, 0.2, 0.3),
        min_count=1,
        embedding_dim=3,
        batch_size=100,
        name="shop",
    )
    assert table.spec.dense_names == ("visits",)
    assert table.spec.sparse_names == ("user_id", "price", "city", "member")
    np.testing.assert_array_equal(table.encode(df)["dense"][:, 0], df["visits"])
    sides = [set(table.frame(split)["user_id"]) for split in ("train", "validation", "test")]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]
    city = {v for v in table.frame("train")["city"] if v is not None}
    assert table.spec.table("city").vocabulary_size == 2 + len(city)
    assert {t.embedding_dim for t in table.spec.tables} == {3}
    assert len(next(table.train.as_numpy_iterator())[1]) == 100
    assert (table.config.name, table.config.train.batch_size) == ("shop", 100)


def test_what_was_decided_is_told(table: tfdlrm.TableData) -> None:
    text, page = str(table), table._repr_html_()
    for said in ("user_id", "log1p", "the name says", "true or false", "split in the order of when", "480 ("):
        assert said in text
        assert said in page
    assert (
        "<script"
        not in tfdlrm.from_dataframe(
            pl.DataFrame({"<script>": ["a", "b"] * 10, "y": [0, 1] * 10}), label="y"
        )._repr_html_()
    )


@pytest.fixture(scope="module")
def exported(table: tfdlrm.TableData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = table.model(top_units=(8, 1))
    model.fit(table.train, epochs=8, verbose=0)
    return model, table.export(model, tmp_path_factory.mktemp("models") / "visits")


def test_a_model_learns() -> None:
    """Of a hidden rule of user, price and tags, most is found in a few thousand rows."""
    table = tfdlrm.from_dataframe(visits(5000), label="rating >= 4", drop=["when"], embedding_dim=4, batch_size=64)
    model = table.model(top_units=(16, 1))
    model.fit(table.train, epochs=3, verbose=0)
    features, labels = table.arrays("test")
    answers = model.predict(features, batch_size=1024, verbose=0)
    assert tfdlrm.evaluate_binary(labels, answers).auc_low > 0.65
    assert model.evaluate(table.test, verbose=0, return_dict=True)["auc"] > 0.65


def test_the_exported_model_answers_raw_rows_as_the_model_does(
    table: tfdlrm.TableData, exported: tuple[Any, Path]
) -> None:
    """Old rows, and rows of values that training did not see."""
    model, path = exported
    served = tf.saved_model.load(str(path)).signatures["serving_default"]

    def answers(frame: Any) -> np.ndarray:
        raw = table.as_raw(frame)
        numbers = {n: tf.constant(raw[n].to_numpy(), tf.float32) for n in table.encoder.columns.numbers}
        texts = {n: tf.constant(raw[n].to_list()) for n in table.encoder.columns.strings}
        return served(**numbers, **texts)["probability"].numpy()

    for frame in (visits(), visits(50, seed=9).assign(city="Oslo", user_id=10**7)):
        with serving_rows(model, table.untouched_rows):
            wanted = model.predict(table.encode(frame), verbose=0)
        np.testing.assert_allclose(answers(frame), wanted, atol=1e-6)
    # Without a value that training did not see, the model itself says the same.
    wanted = model.predict(table.arrays("train")[0], verbose=0)
    np.testing.assert_allclose(answers(table.frame("train")), wanted, atol=1e-6)


def test_the_version_is_whole(table: tfdlrm.TableData, exported: tuple[Any, Path]) -> None:
    path = exported[1]
    assert path.name == "1"
    assert (path / "assets.extra" / "tfdlrm.json").is_file()
    assert table.serve_command(path.parent).endswith(
        f"--model_name visits --model_base_path {path.parent} --rest_api_port 8501"
    )


def test_a_model_of_another_table_is_not_exported(table: tfdlrm.TableData, df: pd.DataFrame, tmp_path: Path) -> None:
    other = tfdlrm.from_dataframe(df, label="rating >= 4", drop=["when", "city"], embedding_dim=4)
    with pytest.raises(SpecError, match="the encoder and the model must have the same"):
        table.export(other.model(top_units=(4, 1)), tmp_path)


def test_models_by_name_and_setting(table: tfdlrm.TableData) -> None:
    assert isinstance(table.model("logistic_regression"), tfdlrm.LogisticRegression)
    wide = table.model(embedding_dim=6, top_units=(4, 1))
    assert tuple(wide.bottom_units) == (16, 6)
    with pytest.raises(UserError, match="top_unit"):
        table.model(top_unit=(4, 1))
    with pytest.raises(UserError, match="Did you mean `dlrm`"):
        table.model("dlmr")


def simple(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"city": ["a", "b"] * 20, "n": [0.5, 1.5] * 20, "y": [0, 1] * 20, **columns})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {}, "`label` must name the column that holds 0 and 1. Columns: city, n, y."),
        ({}, {"label": "z"}, "`label` must name a column of `df`. Received: `z`."),
        (
            {"y": [0, 1] * 19 + [None, 1]},
            {"label": "y"},
            "label `y` must be there in every row. Received: 1 rows without",
        ),
        ({"y": [1.0, 5.0] * 20}, {"label": "y"}, "label `y` must hold 0 and 1. Received: numbers from 1 to 5."),
        ({"y": ["no", "yes"] * 20}, {"label": "y"}, "label `y` must hold 0 and 1. Received: String, such as 'no'."),
        (
            {"y": ["yes", ""] * 20},
            {"label": "y == yes"},
            'label `y` must be there in every row. Received: "" in row 1.',
        ),
        ({"y": [0] * 40}, {"label": "y"}, "labels of the training rows must be of two classes, 0 and 1. Received: 0"),
        (
            {},
            {"label": "y", "drop": ["cty"]},
            "`drop` must name a column of `df`. Received: `cty`. Did you mean `city`?",
        ),
        ({}, {"label": "y", "drop": "city"}, "`drop` must be a list of columns. Received: the text 'city'."),
        ({}, {"label": "y", "dense": ["n"], "sparse": ["n"]}, "column `n` must be asked for as one thing only."),
        ({}, {"label": "y", "dense": ["y"]}, "column `y` must be asked for as one thing only."),
        ({}, {"label": "y", "dense": ["city"]}, "column `city` must hold numbers. Received: String."),
        (
            {},
            {"label": "y", "drop": ["city"]},
            "`df` must have a sparse column, since every model has embedding tables.",
        ),
        (
            {},
            {"label": "y", "split": "days"},
            '`split` must be "random", "order", {"time": column} or {"key": column}.',
        ),
        ({}, {"label": "y", "split": {"time": "z"}}, "`split` must name a column of `df`. Received: `z`."),
        ({}, {"label": "y", "split": {"key": "z"}}, "`split` must name a column of `df`. Received: `z`."),
        (
            {"t": [None, 1] * 20},
            {"label": "y", "split": {"time": "t"}},
            "`t`, by which rows are split, must be there in",
        ),
        ({}, {"label": "y", "fractions": (0.5, 0.1, 0.1)}, "`fractions` must be three shares that add up to 1"),
        ({}, {"label": "y", "name": "a b"}, "`name`"),
        ({"label": ["u", "v"] * 20}, {"label": "y"}, "a feature must not be called `label`"),
        (
            {},
            {"label": "y", "recipe": "x.toml"},
            "`label` must not be given beside `recipe`",
        ),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError, SpecError)) as caught:
        tfdlrm.from_dataframe(simple(**change), **options)
    assert str(caught.value).startswith(message)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="`df` must have rows. Received: none."):
        tfdlrm.from_dataframe(simple().head(0), label="y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\nnope = 1\n", "recipe: in `data`: unknown key `nope`"),
        ("[data]\ndrop_negatives = 0.5\n", "`data.drop_negatives` must be absent from the recipe of a table in memory"),
        ("a = \n", "recipe: not TOML"),
    ],
)
def test_a_recipe_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tfdlrm.from_dataframe(simple(), recipe=text)
    assert str(caught.value).startswith(message)


def test_labels_by_rule() -> None:
    for label, column in (("y == yes", ["no", "yes"] * 20), ("y", [False, True] * 20), ("y > 2", [1, 3] * 20)):
        table = tfdlrm.from_dataframe(simple(y=column), label=label, split="order")
        assert table.arrays("test")[1][:, 0].tolist() == [0, 1, 0, 1]


def test_text_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    table = tfdlrm.from_dataframe(simple(city=["a\nb", "c"] * 20), label="y")
    with pytest.raises(DataError, match="column `city` must hold no end of a line to be written as CSV"):
        table.write_csv(tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()
    with pytest.raises(DataError, match="`split` must be one of train, validation, test. Received: 'valid'"):
        table.arrays("valid")
