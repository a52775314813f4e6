"""Apache Beam prepares what the local engine prepares, byte by byte, however it is run."""

from __future__ import annotations

import gzip
import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tfdlrm.data.beam_prepare import prepare_with_beam
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig, DenseColumn, SparseColumn, load_config
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.published import RECIPES as PUBLISHED
from tfdlrm.spec.raw import RawFormat, SideTable, Split

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason='apache-beam is not installed (extra "beam")'
)
TWO_PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
SIZES = {"chunk_bytes": 60_000, "part_bytes": 130_000}
SMALL = {"rows_per_block": 100, "rows_per_shard": 450}


@pytest.fixture(scope="module")
def criteo(tmp_path_factory) -> list[Path]:
    """Three files of 2,400 generated rows, one of them packed, with two bad rows."""
    folder = tmp_path_factory.mktemp("raw")
    write_planted(folder / "rows.txt", 2400, seed=3)
    lines = (folder / "rows.txt").read_text().splitlines()
    lines[700] = lines[700].replace("\t", " ", 1)
    lines[2100] = "7" + lines[2100][1:]
    paths = [folder / "day_0", folder / "day_1.gz", folder / "day_2"]
    paths[0].write_text("\n".join(lines[:900]))
    paths[1].write_bytes(gzip.compress(("\n".join(lines[900:1700]) + "\n").encode()))
    paths[2].write_bytes(("\r\n".join(lines[1700:]) + "\r\n").encode())
    return paths


def files_of(directory: Path) -> dict[str, bytes]:
    """Return all files of a prepared directory but its manifest."""
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != MANIFEST}


def assert_same(local: Path, beam: Path) -> None:
    """Assert that two directories are equal but for the name of the engine."""
    ours, theirs = files_of(beam), files_of(local)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    manifests = [Manifest.load(folder).model_dump() for folder in (local, beam)]
    assert [manifest["recipe"].pop("engine") for manifest in manifests] == ["local", "beam"]
    assert manifests[0] == manifests[1]
    Manifest.load(beam).verify(beam)
    assert not list(beam.parent.glob("*.partial")) and not list(beam.parent.glob(".*"))


RECIPES = {
    "vocabulary": DataConfig(coding=TableCoding(min_count=3), split=Split(by="days", days=0)),
    "hash": DataConfig(coding=TableCoding(kind="hash", buckets=1000), split=Split(by="hash", key="C3")),
    "all rows": DataConfig(
        coding=TableCoding(max_values=50), vocabulary_rows="all", split=Split(by="whole_and_half", fractions=(1, 0, 0))
    ),
}


@needs_beam
@pytest.mark.parametrize("name", ["hash", "all rows"])
def test_beam_equals_the_local_engine(tmp_path, criteo, name):
    data = RECIPES[name].model_copy(update={**SMALL, "max_bad_share": 0.001})
    local = prepare(data, criteo, tmp_path / "local", 8, chunk_bytes=SIZES["chunk_bytes"])
    beam = prepare_with_beam(data, criteo, tmp_path / "beam", 8, **SIZES)
    assert sum(split.rows for split in local.splits.values()) >= 2398
    assert len(files_of(tmp_path / "beam")["bad_rows.tsv"].splitlines()) == 2
    assert beam == Manifest.load(tmp_path / "beam")
    assert_same(tmp_path / "local", tmp_path / "beam")


@needs_beam
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_recipes(tmp_path, criteo, name):
    """Their transforms, orders of ids and rows left out, some of which depend on the file or the number of a row."""
    published = load_config(None, [f'data.recipe="{name}"']).data
    data = published.model_copy(update={**SMALL, "max_bad_share": 0.001})
    prepare(data, criteo, tmp_path / "local", 8)
    prepare_with_beam(data, criteo, tmp_path / "beam", 8, **SIZES)
    assert_same(tmp_path / "local", tmp_path / "beam")


@needs_beam
def test_other_processes_make_the_same(tmp_path, criteo):
    data = RECIPES["vocabulary"].model_copy(update={**SMALL, "max_bad_share": 0.001})
    prepare(data, criteo, tmp_path / "local", 8)
    prepare_with_beam(data, criteo, tmp_path / "beam", 8, pipeline_options=TWO_PROCESSES, **SIZES)
    assert_same(tmp_path / "local", tmp_path / "beam")


@needs_beam
def test_real_rows(tmp_path, shared_data):
    path = shared_data("criteo_kaggle/train.txt")
    data = DataConfig(coding=TableCoding(min_count=4), rows_per_block=500, rows_per_shard=2000)
    prepare(data, [path], tmp_path / "local", 8)
    prepare_with_beam(data, [path], tmp_path / "beam", 8, chunk_bytes=300_000, part_bytes=600_000)
    assert_same(tmp_path / "local", tmp_path / "beam")


@needs_beam
def test_shared_tables_in_first_seen_order_with_all_work_done_twice(tmp_path, criteo):
    data = DataConfig(
        coding=TableCoding(min_count=2, id_order="first_seen"),
        sparse=tuple(SparseColumn(name=f"C{i}", table=f"t{i % 5}") for i in range(1, 27)),
        split=Split(by="fold", folds=4, fold=1),
        max_bad_share=0.001,
        **SMALL,
    )
    prepare(data, criteo, tmp_path / "local", 8)
    prepare_with_beam(data, criteo, tmp_path / "beam", 8, pipeline_options=["--direct_runner_bundle_repeat=1"], **SIZES)
    assert_same(tmp_path / "local", tmp_path / "beam")


def write_ratings(folder: Path) -> tuple[list[Path], DataConfig]:
    """Write rows with a header, quotes, weights, bags of words and a side table; return them and their recipe."""
    rng = random.Random(5)
    (folder / "items.txt").write_text("".join(f"i{n}|k{n % 3}\n" for n in range(20)))
    paths = [folder / "a.csv", folder / "b.csv"]
    for path in paths:
        lines = ["user,item,stars,tags,weight,age"]
        for _ in range(500):
            tags = "|".join(f"wörd{rng.randrange(5000)}" for _ in range(rng.randrange(4)))
            age = rng.choice(["", f"{rng.gauss(40, 9):.3f}"])
            lines.append(
                f'"u {rng.randrange(90)}",i{rng.randrange(25)},{rng.randint(1, 5)},{tags},{rng.random():.2f},{age}'
            )
        path.write_text("\n".join(lines) + "\n")
    side = SideTable(file=str(folder / "items.txt"), key="item", delimiter="|", columns=("item", "kind"))
    return paths, DataConfig(
        format=RawFormat(
            header=True, delimiter=",", quote='"', label="stars >= 4", weight="weight", side_tables=(side,)
        ),
        dense=(DenseColumn(name="age", transform="standardize"),),
        sparse=(
            SparseColumn(name="user"),
            SparseColumn(name="tags", separator="|", hotness=2),
            SparseColumn(name="kind"),
        ),
        coding=TableCoding(value="string", min_count=2),
        rows_per_block=64,
        rows_per_shard=300,
    )


@needs_beam
def test_words_bags_weights_and_side_tables(tmp_path):
    paths, data = write_ratings(tmp_path)
    local = prepare(data, paths, tmp_path / "local", 8, chunk_bytes=4000)
    beam = prepare_with_beam(data, paths, tmp_path / "beam", 8, chunk_bytes=4000, part_bytes=9000)
    ours, theirs = files_of(tmp_path / "beam"), files_of(tmp_path / "local")
    assert [name for name in theirs if name.startswith("vocabulary/") and ours[name] != theirs[name]] == []
    assert beam.statistics == local.statistics and beam.statistics["dropped_values"]["tags"] > 0
    assert beam.spec == local.spec and beam.splits.keys() == local.splits.keys()
    for split in local.splits:
        assert [s.file for s in beam.splits[split].shards] == [s.file for s in local.splits[split].shards]
        batches = [
            list(packed_dataset(tmp_path / engine, split, 100, shuffle=False).as_numpy_iterator())
            for engine in ("beam", "local")
        ]
        for (our_features, *our_others), (their_features, *their_others) in zip(*batches, strict=True):
            np.testing.assert_array_equal(our_features["sparse"], their_features["sparse"])
            np.testing.assert_array_equal(our_others, their_others)
            # Mean and deviation are merged in another order.
            np.testing.assert_allclose(our_features["dense"], their_features["dense"], rtol=1e-6, atol=1e-7)


@pytest.fixture
def bucket(tmp_path):
    """Return a folder that Beam reads and writes as `bucket://`, with renames that refuse to replace."""
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.localfilesystem import LocalFileSystem

    root = tmp_path / "bucket"
    root.mkdir()

    class Bucket(LocalFileSystem):
        """A local folder that has files and no folders, as object stores do."""

        @classmethod
        def scheme(cls):
            return "bucket"

        def open(self, path, *args, **options):
            try:
                return super().open(here(path), *args, **options)
            except FileNotFoundError as error:
                raise BeamIOError("no such object", {path: error}) from None

        def create(self, path, *args, **options):
            return super().create(here(path), *args, **options)

        def rename(self, sources, targets):
            if any(Path(here(target)).exists() for target in targets):
                raise BeamIOError("there is one already")
            for target in targets:
                Path(here(target)).parent.mkdir(parents=True, exist_ok=True)
            super().rename([here(source) for source in sources], [here(target) for target in targets])

        def exists(self, path):
            return Path(here(path)).is_file()

        def metadata(self, path):
            return super().metadata(here(path))

        def delete(self, paths):
            for path in paths:
                Path(here(path)).unlink()

        def match(self, patterns, limits=None):
            prefix = patterns[0].removesuffix("**")
            found = sorted(path for path in Path(here(prefix)).rglob("*") if path.is_file())
            files = [metadata(f"bucket://{path.relative_to(root).as_posix()}") for path in found]
            return [type("Result", (), {"metadata_list": files})]

    def metadata(url: str):
        return type("Metadata", (), {"path": url})

    def here(url: str) -> str:
        return str(root / url.removeprefix("bucket://"))

    yield root
    del Bucket  # Beam finds it among all subclasses, and so it must live until now


@needs_beam
def test_urls_are_read_and_written(tmp_path, criteo, bucket):
    data = RECIPES["vocabulary"].model_copy(update={**SMALL, "max_bad_share": 0.001})
    for path in criteo:
        (bucket / path.name).write_bytes(path.read_bytes())
    urls = [f"bucket://{path.name}" for path in criteo]
    prepare(data, criteo, tmp_path / "local", 8)
    beam = prepare_with_beam(data, urls, "bucket://made/data", 8, **SIZES)
    made = bucket / "made" / "data"
    ours, theirs = files_of(made), files_of(tmp_path / "local")
    for name, content in theirs.items():
        if name == "bad_rows.tsv":
            content = content.replace(str(criteo[0].parent).encode(), b"bucket:/")
        assert ours.pop(name) == content, name
    assert ours == {}
    assert [file["path"] for file in beam.recipe["raw"]] == urls
    Manifest.load(made).verify(made)
    assert not [path for path in (bucket / "made" / "data.partial").rglob("*") if path.is_file()]
    with pytest.raises(ConfigError, match="holds prepared data"):
        prepare_with_beam(data, urls, "bucket://made/data", 8, **SIZES)
    again = prepare_with_beam(data, urls, "bucket://made/data/", 8, overwrite=True, **SIZES)
    assert again == beam
    with pytest.raises(DataError, match="bucket://gone.txt: cannot be read"):
        prepare_with_beam(data, ["bucket://gone.txt"], "bucket://made/other", 8)


@needs_beam
def test_what_is_done_is_not_done_again(tmp_path, criteo):
    data = RECIPES["hash"].model_copy(update={"max_bad_share": 0.001})
    phases = []
    prepare_with_beam(data, criteo, tmp_path / "beam", 8, **SIZES)
    again = prepare_with_beam(
        data, criteo, tmp_path / "beam", 4, progress=lambda name, rows: phases.append(name) or (lambda rows: None)
    )
    assert phases == [] and again.spec.tables[0].embedding_dim == 4
    assert prepare(data, criteo, tmp_path / "beam", 8).recipe["engine"] == "beam"  # either engine's will do
    with pytest.raises(ConfigError, match="prepared by another recipe"):
        prepare_with_beam(RECIPES["vocabulary"], criteo, tmp_path / "beam", 8)


@needs_beam
@pytest.mark.parametrize("share", [0.0, 0.0005])
def test_a_bad_row_too_many(tmp_path, criteo, share):
    data = RECIPES["vocabulary"].model_copy(update={"max_bad_share": share})
    with pytest.raises(DataError) as local:
        prepare(data, criteo, tmp_path / "local", 8)
    with pytest.raises(DataError) as beam:
        prepare_with_beam(data, criteo, tmp_path / "beam", 8, **SIZES)
    assert str(beam.value) == str(local.value)
    assert "day_0:701:" in str(beam.value)
    assert list(tmp_path.iterdir()) == []


@needs_beam
@pytest.mark.parametrize("fault", ["cut", "corrupt", "empty", "missing"])
def test_a_broken_file(tmp_path, criteo, fault):
    whole = criteo[1].read_bytes()
    path = tmp_path / "day_1.gz"
    content = {"cut": whole[:-2000], "corrupt": whole[:5000] + b"\0" * 40 + whole[5040:], "empty": gzip.compress(b"")}
    if fault != "missing":
        path.write_bytes(content[fault])
    raw = [criteo[0], path]
    messages = []
    for run in (prepare, prepare_with_beam):
        with pytest.raises(DataError) as error:
            run(RECIPES["hash"].model_copy(update={"max_bad_share": 0.5}), raw, tmp_path / "data", 8)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and str(path) in messages[0] and "\n" not in messages[1]
    assert [found for found in tmp_path.iterdir() if found != path] == []


@needs_beam
def test_settings_that_cannot_work(tmp_path, criteo):
    timed = DataConfig(format=RawFormat(columns=("label", "t"), time="t"), split=Split(by="time"))
    with pytest.raises(ConfigError, match=r'`split.by` must not be "time"'):
        prepare_with_beam(timed, criteo, tmp_path / "data", 8)
    unknown = DataConfig(sparse=(SparseColumn(name="C27"),))
    with pytest.raises(ConfigError, match="no column `C27`"):
        prepare_with_beam(unknown, criteo, tmp_path / "data", 8)
    for raw, out in (([*criteo, "nowhere://b/day_0"], tmp_path / "data"), (criteo, "nowhere://b/data")):
        with pytest.raises(ConfigError, match="nowhere://b/da.*: no file system for this URL"):
            prepare_with_beam(RECIPES["hash"], raw, out, 8)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="must be empty or hold prepared data"):
        prepare_with_beam(RECIPES["hash"], criteo, tmp_path / "data", 8)
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_without_beam_it_says_how_to_install_it(tmp_path, criteo, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ConfigError, match=r'pip install "tfdlrm\[beam\]"'):
        prepare_with_beam(DataConfig(), criteo, tmp_path / "data", 8)
    assert list(tmp_path.iterdir()) == []
