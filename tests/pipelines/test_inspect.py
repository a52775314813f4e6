"""The command: tables, a page that needs no other file, and damage named in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.data.packed_samples import make_sample, make_spec
from tests.pipelines.small_runs import call, refusal
from tests.report.test_html import Checker
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.pipelines import inspect
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.raw import Split


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    write_planted(folder / "rows.tsv", 2000)
    config = DataConfig(split=Split(by="days", days=5), rows_per_block=128, rows_per_shard=500)
    prepare(config, [folder / "rows.tsv"], folder / "data", 8)
    return folder / "data"


@pytest.fixture
def copy(data, tmp_path) -> Path:
    shutil.copytree(data, tmp_path / "copy")
    return tmp_path / "copy"


def test_text_page_and_figures(data, tmp_path):
    page, figures = tmp_path / "pages" / "data.html", tmp_path / "data.json"
    outcome = call(inspect.main, data, "--verify", "--html", page, "--json", figures, "--top", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("All 6 shards are as manifest.json says.")
    for words in (
        "click rate",
        "day 5",
        "Embedding tables",
        "used in training",
        "unseen",
        "Jensen-Shannon",
        "I13",
    ):
        assert words in outcome.out
    found = json.loads(figures.read_text())
    assert found["read_rows"] == 2000
    assert all(len(table["top"]) <= 3 for table in found["tables"])
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|url\(", text)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.loads) == 5  # plots
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in checker.loads)
    assert {"Splits", "Tables", "Drift", "Most used rows of C9", "day 3"} <= set(checker.texts)
    assert found["tables"][0]["top"][0]["value"] in checker.texts
    assert [path.name for path in page.parent.iterdir()] == ["data.html"]


def test_a_sample_is_called_one(data):
    outcome = call(inspect.main, data, "--rows", 500, "--split", "train")
    assert outcome.code == 0
    assert re.search(r"From \d,?\d* of 1,600 rows, in blocks spread evenly over the shards", outcome.out)
    assert "validation" not in outcome.out


@pytest.mark.parametrize("spec", [make_spec(dense=0), make_spec(hotness=(), dense=1)], ids=["no numbers", "no ids"])
def test_one_kind_of_feature_may_be_missing(tmp_path, spec):
    make_sample(tmp_path, rows=200, spec=spec, validation=50, test=0)
    outcome = call(inspect.main, tmp_path, "--html", tmp_path / "page.html")
    assert (outcome.code, outcome.err) == (0, "")


def test_an_empty_split_alone(tmp_path):
    make_sample(tmp_path, rows=200, test=0)
    outcome = call(inspect.main, tmp_path, "--split", "test", "--html", tmp_path / "page.html")
    assert (outcome.code, outcome.err) == (0, "")


def test_verify_names_the_damaged_file(copy):
    manifest = Manifest.load(copy)
    name = manifest.splits["train"].shards[2].file
    shard = copy / name
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])  # in a checksum that no row depends on
    assert call(inspect.main, copy).code == 0
    assert refusal(copy, "--verify", main=inspect.main) == (
        f"{shard}: damaged: its SHA-256 is not the one in manifest.json."
    )
    shard.write_bytes(whole)
    vocabulary = copy / "vocabulary" / "00003.npz"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1])
    assert refusal(copy, "--verify", main=inspect.main).startswith(f"{vocabulary}: must be the vocabulary of table")


def test_damage_is_found_without_verify_where_rows_are_read(copy):
    shard = copy / Manifest.load(copy).splits["train"].shards[1].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = refusal(copy, main=inspect.main)
    assert re.fullmatch(rf"{shard}: block \d at byte \d+ is not the one that manifest.json names\.", line)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--split", "trian"],
            "`split` must be one of train, validation, test. Received: `trian`. Did you mean `train`?",
        ),
        (["--rows", 0], "`rows` must be at least 1. Received: 0."),
        (["--html", "."], ".: a directory, where a file must be."),
    ],
)
def test_bad_arguments(data, argv, line):
    assert refusal(data, *argv, main=inspect.main) == line


def test_a_folder_that_holds_no_data_set(tmp_path):
    line = refusal(tmp_path / "none", main=inspect.main)
    assert line == f"{tmp_path / 'none'}: not a prepared data set (no manifest.json)."


def test_as_a_process(data, forks):
    process = forks.start("-m", "tfdlrm.pipelines.inspect", data, "--rows", 100)
    assert process.wait() == 0, process.output
    assert "Embedding tables" in process.output
