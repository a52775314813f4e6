"""Recipes by name: what they refuse, and how a file builds on them."""

from __future__ import annotations

import pytest

from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import load_config
from tfdlrm.spec.derive import encoding_of, refuse_unstated_rows
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.recipes import RECIPE_NAMES, named_recipe


@pytest.mark.parametrize("dataset", ["kaggle", "terabyte"])
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_file_may_name_a_recipe_and_be_written_back(name, dataset, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(f'[data]\nrecipe = "{name}"\ndataset = "{dataset}"\n')
    config = load_config(path)
    assert config.data == named_recipe(name, dataset)
    path.write_text(config_toml(config))
    assert load_config(path) == config


def test_a_file_changes_single_settings(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[data]\nrecipe = "fb"\n[data.coding]\nmodulus = 7\noov_row = 3\n[data.split]\ndays = 3\n')
    data = load_config(path, ["data.drop_negatives=0.5"]).data
    assert (data.coding.modulus, data.coding.oov_row, data.coding.id_order) == (7, 3, "first_seen")
    assert (data.split.by, data.split.days, data.drop_negatives) == ("days", 3, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torchrek",), "`recipe` must be one of fb, .*Received: 'torchrek'. Did you mean `torchrec`?"),
        (("fb", "criteo"), "`dataset` must be one of kaggle, terabyte. Received: 'criteo'"),
        (("nvidia", "kaggle", 10), "`max_ind_range` must be left out of the recipe `nvidia`. Received: 10"),
        (("fb", "kaggle", None, 3), "`min_count` must be left out of the recipe `fb`. Received: 3"),
        (("torchrec", "kaggle", None, 3), "`min_count` must be left out of the recipe `torchrec` for kaggle"),
        (("fb", "kaggle", 0), "`max_ind_range` must be at least 1. Received: 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        named_recipe(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nrecipe = "nvida"\n', "Did you mean `nvidia`"),
        ("[data]\nrecipe = 3\n", "`recipe` must be one of .*Received: 3"),
        ('[data]\ndataset = "kaggle"\n', "`data.dataset` must go with `data.recipe`"),
        ('[data]\nrecipe = "fb"\ndataset = "kagle"\n', "Did you mean `kaggle`"),
    ],
)
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_published_numbers():
    assert named_recipe("fb", "terabyte").coding.modulus == 10_000_000
    assert named_recipe("fb").coding.modulus is None
    assert named_recipe("nvidia").coding.min_count == 15
    tables = encoding_of(named_recipe("torchrec", "terabyte")).tables
    assert (tables["C1"].id_modulus, tables["C6"].id_modulus) == (40_000_000, 3)


@pytest.mark.parametrize(
    ("unseen", "wrong"),
    [
        (None, "`export.unseen`, for table `C1`: `unseen` must say what a value without a row counts as"),
        ("rare", '`unseen` must not be "rare" where no value is rare'),
        ("missing", None),
        ("zeros", None),
        (12, None),
    ],
)
def test_export_needs_a_policy_where_a_recipe_has_no_row(unseen, wrong):
    config = load_config(None, ["data.recipe=fb"])
    config = config.model_copy(update={"export": config.export.model_copy(update={"unseen": unseen})})
    assert is_refused(config) == (wrong is not None)
    if wrong is not None:
        with pytest.raises(ConfigError, match=wrong):
            refuse_unstated_rows(config)


@pytest.mark.parametrize(
    ("name", "needs_one"), [("fb", True), ("tfm", True), ("nvidia", False), ("torchrec", False), ("tfdlrm", False)]
)
def test_which_recipes_need_a_policy(name, needs_one):
    """A recipe needs one exactly where some coding has no row for a value never seen."""
    config = load_config(None, [f"data.recipe={name}"])
    codings = encoding_of(config.data).tables.values()
    assert any(coding.oov_row is None for coding in codings) == needs_one
    assert is_refused(config) == needs_one
    assert not needs_one or all(coding.serving("zeros").oov_row == -1 for coding in codings)


def is_refused(config) -> bool:
    try:
        refuse_unstated_rows(config)
    except ConfigError:
        return True
    return False


def test_codings_check_themselves():
    with pytest.raises(SpecError, match='`kind` must not be "modulo" where `value` is not "hex"'):
        TableCoding(kind="modulo", value="string", buckets=3)
    with pytest.raises(SpecError, match="`id_modulus` must be above the reserved rows"):
        TableCoding(id_modulus=1)
    rare = TableCoding(min_count=3, oov_row=None, rare_row=4)
    assert rare.serving("rare").oov_row == 4
    keyed = TableCoding(missing_key=0, oov_row=None)
    assert keyed.serving("missing", missing_row=9).oov_row == 9
    assert keyed.serving("missing").oov_row == -1  # nothing was missing, so it adds nothing
    assert keyed.serving("zeros", missing_row=9).oov_row == -1
    assert keyed.serving(7).oov_row == 7
    assert TableCoding(oov_row=3).serving(None).oov_row == 3
    assert TableCoding.model_validate_json(keyed.model_dump_json()) == keyed
