"""The table of published recipes in docs/data.md says what the recipes do."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.recipes import RECIPE_NAMES, named_recipe

TRANSFORMS = {
    "log1p": "ln(x + 1), negative and missing 0",
    "log_file_minimum": "ln(x - the file's minimum + 2), missing as 0",
    "log3_half": "ln(x + 3) as float16, missing 0",
}
LAST_DAYS = {
    "test_first": "first half tests, second validates",
    "validation_first": "first half validates, second tests",
    "test": "tests",
}
ORDERS = {"first_seen": "first seen", "count": "by count", "count_digits": "by count"}


def written() -> dict[str, dict[str, str]]:
    """Return the cells of the table by recipe and title."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = re.search(r"^\| \| `fb`.*?\n\n", text, re.MULTILINE | re.DOTALL)[0]
    (_, *names), _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line
    )
    return {name.strip("`"): {row[0]: row[place] for row in rows} for place, name in enumerate(names, start=1)}


def facts(data: DataConfig) -> dict[str, str]:
    """Return what the cells must say of a recipe."""
    coding, split, modulo = data.coding, data.split, data.sparse[0].kind == "modulo"
    ids = [ORDERS[coding.id_order], f"from {coding.first_id}"]
    ids += ["modulo the tables' rows"] if data.sparse[0].id_modulus else []
    hashes = "as they are" if coding.modulus is None else f"modulo {coding.modulus:,}"
    if split.by == "whole_and_half":
        last_day = "every row trains, the second half validates and tests, too"
    else:
        last_day = LAST_DAYS[split.last_day]
    return {
        "rows left out": f"{data.drop_negatives:.1%} of those without a click" if data.drop_negatives else "none",
        "vocabulary counted on": "none"
        if modulo
        else {"all": "all rows", "train": "training rows"}[data.vocabulary_rows],
        "hashes": "modulo the tables' rows" if modulo else hashes,
        "order of ids": "none" if modulo else ", ".join(ids),
        "rare values": f"below {coding.min_count} times row {coding.rare_row}" if coding.has_rare else "have rows",
        "missing values": f"row {coding.missing_row}"
        if coding.missing_key is None
        else f"as value {coding.missing_key}",
        "unseen values": "as all others" if modulo else "no row" if coding.oov_row is None else f"row {coding.oov_row}",
        "numbers": TRANSFORMS[data.dense[0].transform],
        "last day": last_day,
    }


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_the_table_is_that_of_the_recipes(name):
    terabyte, kaggle = facts(named_recipe(name, "terabyte")), facts(named_recipe(name, "kaggle"))
    assert written()[name] == {
        title: said if kaggle[title] == said else f"{said} (Kaggle: {kaggle[title]})"
        for title, said in terabyte.items()
    }


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_days_are_files_or_sevenths(name):
    assert named_recipe(name, "terabyte").split.days == 0
    kaggle = named_recipe(name, "kaggle").split
    assert kaggle.by == "whole_and_half" or kaggle.days == 7
    assert (kaggle.odd_row == "second") == (name == "nvidia")
