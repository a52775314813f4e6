import csv
import errno
import gzip

import numpy as np
import pytest

from tests.data.packed_samples import as_arrays, make_spec
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.examples import example_dataset
from tfdlrm.data.generators.random_rows import RandomRows
from tfdlrm.data.generators.write import write_criteo, write_prepared
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.reader import RawReader
from tfdlrm.spec.criteo import DENSE_COLUMNS, SPARSE_COLUMNS, criteo_spec
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import CRITEO_FORMAT

CRITEO = criteo_spec([7, 2**32] + [300_000] * 24, 4)


@pytest.mark.parametrize(("form", "read"), [("packed", packed_dataset), ("example", example_dataset)])
def test_prepared_rows_are_the_rows(tmp_path, form, read):
    spec = make_spec(hotness=(1, 3), weighted=True)
    rows = RandomRows(spec, seed=5)
    done = []
    manifest = write_prepared(
        tmp_path, spec, {"train": rows.batches(500), "test": ()}, {"generator": "random"}, form, done.append
    )
    assert Manifest.load(tmp_path) == manifest
    manifest.verify(tmp_path)
    manifest.encoding.check(spec)
    assert done == [500]
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 500, "test": 0}
    assert manifest.recipe == {"generator": "random"}
    (batch,) = read(tmp_path, "train", 500)
    (expected,) = rows.batches(500)
    for name, array in as_arrays(batch).items():
        np.testing.assert_array_equal(array, expected[name])


def test_nothing_prepared_is_left_after_a_fault(tmp_path):
    spec = make_spec()
    bad = {"dense": np.zeros((1, 2)), "sparse": np.full((1, 4), 1000), "label": np.zeros(1)}
    with pytest.raises(DataError, match="must hold -1 or ids below the rows of their table"):
        write_prepared(tmp_path, spec, {"train": [bad]}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["packed", "example"])
def test_what_was_there_stays_until_all_rows_are(tmp_path, form):
    spec, target = make_spec(), tmp_path / "rows"
    before = write_prepared(target, spec, {"train": RandomRows(spec).batches(50)}, {}, form)

    def interrupted():
        yield from RandomRows(spec, seed=1).batches(50)
        before.verify(target)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared(target, spec, {"train": interrupted()}, {}, form)
    before.verify(target)
    assert Manifest.load(target) == before
    assert list(tmp_path.iterdir()) == [target]
    after = write_prepared(target, spec, {"test": RandomRows(spec).batches(7)}, {}, form)
    after.verify(target)
    assert {path.name for path in target.glob("train*")} == set()
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_folder(tmp_path):
    spec, target = make_spec(), tmp_path / "rows"

    def batches():
        with pytest.raises(ConfigError, match="rows: another process is preparing it"):
            write_prepared(target, spec, {"train": RandomRows(spec, seed=1).batches(5)}, {})
        yield from RandomRows(spec).batches(50)

    manifest = write_prepared(target, spec, {"train": batches()}, {})
    assert manifest.splits["train"].rows == 50
    manifest.verify(target)


def test_a_full_disk_keeps_nothing(tmp_path):
    spec = make_spec()

    def full():
        yield from RandomRows(spec).batches(50)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="the disk is full. Nothing of the rows is kept."):
        write_prepared(tmp_path / "rows", spec, {"train": full()}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_text_is_that_of_criteo(tmp_path, name):
    rows = RandomRows(CRITEO, seed=5)
    assert write_criteo(tmp_path / name, CRITEO, rows.batches(300))[0] == 300
    (expected,) = rows.batches(300)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "rt", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t"))
    assert len(lines) == 300
    for line, dense, sparse, label in zip(lines, expected["dense"], expected["sparse"], expected["label"], strict=True):
        assert line[0] == str(int(label[0]))
        assert [int(text) for text in line[1:14]] == [int(np.exp(4 * float(x))) - 1 for x in dense]
        assert [int(text, 16) for text in line[14:]] == sparse.tolist()
        assert {len(text) for text in line[14:]} == {8}


def test_text_goes_through_the_reader(tmp_path):
    count, rate = write_criteo(tmp_path / "rows.tsv", CRITEO, RandomRows(CRITEO).batches(300))
    reader = RawReader(CRITEO_FORMAT, [tmp_path / "rows.tsv"], dense=DENSE_COLUMNS, strings=SPARSE_COLUMNS)
    (chunk,) = reader
    assert len(chunk.frame) == count == 300
    assert chunk.frame["label"].mean() == pytest.approx(rate)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (make_spec(), "raw text must have Criteo's columns, I1 to I13 and C1 to C26. Received: 2 dense and 2 sparse"),
        (criteo_spec([5] * 26, 4, [1] * 25 + [3]), "one id a column. Received: bags of 3 in `C26`"),
        (criteo_spec([2**32 + 1] * 26, 4), "tables of raw text must have at most 4294967296 rows"),
    ],
)
def test_text_that_cannot_be(tmp_path, spec, message):
    with pytest.raises(ConfigError) as error:
        write_criteo(tmp_path / "rows.tsv", spec, [])
    assert message in str(error.value)
    assert not (tmp_path / MANIFEST).exists()
    assert list(tmp_path.iterdir()) == []
