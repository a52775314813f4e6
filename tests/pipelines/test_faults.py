"""A run on damaged files: one line that names the file, exit code 2, and nothing trained on fewer rows."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.planted import write_planted
from tfdlrm.pipelines import criteo


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work dir with 1,000 prepared rows, and the recipe beside it."""
    folder = tmp_path_factory.mktemp("faults")
    recipe = write_recipe(
        folder, data={"planted": {"rows": 1000}, "rows_per_block": 64, "rows_per_shard": 300}, train={"epochs": 1}
    )
    outcome = call(criteo.main, "--config", recipe, "--work-dir", folder / "run", "--stages", "prepare")
    assert outcome.code == 0
    return folder / "run"


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "run"))


def boundary(run: Path) -> int:
    return Manifest.load(run / "data").splits["train"].shards[1].blocks[0].length


def cut_to(length: Callable[[Path], int]) -> Callable[[Path, Path], None]:
    return lambda run, shard: shard.write_bytes(shard.read_bytes()[: length(run)]) and None


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "cut in a header": (cut_to(lambda run: boundary(run) + 7), "train-00001.tfrecord: must hold"),
    "cut in a payload": (cut_to(lambda run: boundary(run) + 900), "train-00001.tfrecord: must hold"),
    "cut between records": (cut_to(boundary), "train-00001.tfrecord: must hold"),
    "cut to nothing": (cut_to(lambda run: 0), "train-00001.tfrecord: must hold"),
    "missing": (lambda run, shard: shard.unlink(), "train-00001.tfrecord: manifest.json names this shard, but"),
    "extra": (
        lambda run, shard: shutil.copy(shard, shard.with_name("train-00009.tfrecord")),
        "train-00009.tfrecord: a shard that manifest.json does not name",
    ),
}


@pytest.mark.parametrize("stages", ["prepare,train", "train"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_whole_stops_the_run(run: Path, damage: str, stages: str) -> None:
    do, words = DAMAGES[damage]
    do(run, run / "data" / "train-00001.tfrecord")
    line = refusal("--work-dir", run, "--stages", stages)
    assert line.startswith(f"{run}/data/{words}")
    assert not list((run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("where", [3, -2], ids=["length", "checksum of the payload"])
def test_a_flipped_bit_stops_training(run: Path, where: int) -> None:
    shard = run / "data" / "train-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[where] ^= 1
    shard.write_bytes(content)
    line = refusal("--work-dir", run, "--stages", "train")
    assert line.startswith(f"{shard}: block ") and "manifest.json" in line
    assert not list((run / "checkpoints").glob("step-*"))


def test_a_manifest_of_another_spec_stops_the_run(run: Path, tmp_path: Path) -> None:
    """Rows of other features in the place of the run's own."""
    sparse = [{"name": f"C{i}"} for i in range(1, 6)]
    recipe = write_recipe(tmp_path, data={"planted": {"rows": 1000}, "rows_per_block": 64, "sparse": sparse})
    other = tmp_path / "other"
    assert call(criteo.main, "--config", recipe, "--work-dir", other, "--stages", "prepare").code == 0
    shutil.copy(other / "data" / "manifest.json", run / "data" / "manifest.json")
    for stages in ("prepare,train", "train"):
        line = refusal("--work-dir", run, "--stages", stages)
        assert str(run / "data") in line, line
    shutil.rmtree(run / "data")
    shutil.copytree(other / "data", run / "data")
    for stages in ("prepare,train", "train"):
        line = refusal("--work-dir", run, "--stages", stages)
        assert line.startswith(f"{run / 'data'}: prepared by another recipe: `data.sparse` of 5 entries, now 26.")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:6], "gzip data is cut short."),
        (lambda content: content[: len(content) // 2], "gzip data is cut short."),
        (lambda content: content[:-3], "gzip data is cut short."),
        (lambda content: content[:5000] + bytes([content[5000] ^ 0xFF]) + content[5001:], "corrupt gzip data."),
        (lambda content: content[:-5] + bytes([content[-5] ^ 0xFF]) + content[-4:], "corrupt gzip data."),
        (lambda content: content + b"1\t2\t3\n", "corrupt gzip data."),
    ],
    ids=[
        "cut in its header",
        "cut in the middle",
        "cut in its trailer",
        "flipped byte",
        "wrong checksum",
        "more after it",
    ],
)
def test_a_damaged_raw_gzip_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    plain, raw = tmp_path / "rows.tsv", tmp_path / "day_1.gz"
    write_planted(plain, 300)
    raw.write_bytes(damage(gzip.compress(plain.read_bytes())))
    recipe = write_recipe(tmp_path)
    line = refusal("--config", recipe, "--raw", plain, raw, "--work-dir", tmp_path / "run", "--stages", "prepare")
    assert line == f"{raw}: {words}"
    assert not (tmp_path / "run" / "data").exists()
