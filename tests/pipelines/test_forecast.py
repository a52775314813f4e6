"""What --dry-run says beforehand, beside what a run then is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tfdlrm.pipelines.forecast import forecast
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.byte_sizes import bytes_in_words
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.errors import DataError

SMALL = ["model.embedding_dim=4", "model.bottom_units=[8, 4]", "model.top_units=[8, 1]"]


def config(*settings: str) -> RunConfig:
    return load_config(None, [*SMALL, *settings])


def said(config: RunConfig, path: Path, stages: tuple[str, ...] = ("prepare", "train")) -> dict[str, str]:
    return {
        name.strip(): text.strip()
        for name, _, text in (s.partition(":") for s in forecast(config, WorkDir(path), stages))
    }


def test_planted_rows_and_the_most_that_vocabularies_can_be(tmp_path: Path) -> None:
    lines = said(config("data.planted.rows=5000", "data.coding.min_count=4", "train.epochs=3"), tmp_path / "new")
    assert lines["would run"] == f"prepare, train in {tmp_path / 'new'}"
    assert lines["rows"] == "5,000, planted"
    assert lines["training"].startswith("4,000 samples an epoch, 3 epochs")
    # 26 tables of two reserved rows and a value for every four of 4,000 samples.
    assert lines["tables"].startswith(f"at most {26 * (2 + 1000):,} rows, at most ")
    assert (
        lines["prepared"].startswith(f"about {5000 * 4 * 40 / 2**10:,.1f} KiB".replace(".0 ", " "))
        or "KiB" in lines["prepared"]
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("optimizer", "slot_bytes"), [("sgd", 0), ("rowwise_adagrad", 4), ("adagrad", 16)])
def test_hashed_tables_are_known_with_their_slots(tmp_path: Path, optimizer: str, slot_bytes: int) -> None:
    lines = said(
        config('data.coding.kind="hash"', "data.coding.buckets=65534", f'train.embedding.name="{optimizer}"'), tmp_path
    )
    rows = 26 * 65536
    assert lines["tables"].startswith(f"{rows:,} rows, ")
    assert f", {bytes_in_words(rows * (16 + slot_bytes))} with" in lines["tables"]


def test_rows_of_files_are_estimated_by_their_beginning(tmp_path: Path) -> None:
    line = "\t".join(["1", *["3"] * 13, *["68fd1e64"] * 26]) + "\n"
    (tmp_path / "plain.txt").write_text(line * 20_000)
    with gzip.open(tmp_path / "packed.gz", "wt") as file:
        file.write(line * 10)
    raw = f'data.raw=["{tmp_path / "plain.txt"}", "{tmp_path / "packed.gz"}"]'
    text = said(config(raw), tmp_path / "run")["rows"]
    rows = int(text.split()[1].replace(",", ""))
    assert rows == pytest.approx(20_010, rel=0.01)
    assert "in 2 files of" in text
    missing = said(config('data.raw=["/nowhere/day_0"]'), tmp_path / "run")
    assert missing["rows"] == "unknown: /nowhere/day_0 is not there" and "tables" not in missing


@pytest.mark.parametrize(
    ("settings", "training"),
    [
        (['data.split.by="random"'], 4000),
        (['data.split.by="fold"', "data.split.folds=4"], 3750),
        (['data.split.by="days"', "data.split.days=5"], 4000),
        (['data.split.by="whole_and_half"'], 5000),
    ],
)
def test_samples_by_split(tmp_path: Path, settings: list[str], training: int) -> None:
    assert said(config("data.planted.rows=5000", *settings), tmp_path)["training"].startswith(f"{training:,} samples")


def test_tables_that_are_shared_and_vocabularies_of_all_rows(tmp_path: Path) -> None:
    shared = 'data.sparse=[{name="a", table="t", hotness=2}, {name="b", table="t"}]'
    base = ["data.planted.rows=5000", "data.coding.min_count=1", shared]
    assert said(config(*base), tmp_path)["tables"].startswith(f"at most {2 + 3 * 4000:,} rows")
    everywhere = said(config(*base, 'data.vocabulary_rows="all"'), tmp_path)
    assert everywhere["tables"].startswith(f"at most {2 + 3 * 5000:,} rows")


def test_most_steps_bound_the_time(tmp_path: Path) -> None:
    asked = config("data.planted.rows=100000000", "train.max_steps=1000", "train.batch_size=2000")
    assert said(asked, tmp_path)["train"].startswith("about 2 min at 20,000 rows/s")


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b"1\t" * 5000)[:25]], ids=["none", "cut"])
def test_a_damaged_gzip_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "day_0.gz").write_bytes(content)
    with pytest.raises(DataError, match="day_0.gz: cannot be read as gzip"):
        said(config(f'data.raw=["{tmp_path / "day_0.gz"}"]'), tmp_path / "run")


def test_stages_that_cost_the_same_for_few_rows(tmp_path: Path) -> None:
    small = config("data.planted.rows=5000")
    assert (
        said(small, tmp_path, ("train", "export", "verify"))["others"]
        == "about 20 s for a small model (export, verify)"
    )
    assert "others" not in said(small, tmp_path)
