"""Which prepared rows come from which day, file or slice, against the codes of all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.data.packed_samples import make_encoding, make_spec
from tfdlrm.data.manifest import BlockInfo, Manifest, ShardInfo, SplitInfo
from tfdlrm.data.parts import Part, parts_of
from tfdlrm.data.splits import SPLIT_NAMES, SplitPlan, in_split
from tfdlrm.spec.raw import Split

FILES = [10, 25, 5]


def make_manifest(split: Split | None, shard_rows: int = 16, **changes: Any) -> Manifest:
    """Return the manifest of rows from `FILES` split so; none of its shards exists."""
    rows = dict.fromkeys(SPLIT_NAMES, 20)
    recipe: dict[str, Any] = {}
    if split is not None:
        recipe = {
            "settings": {"split": split.model_dump(mode="json")},
            "raw": [{"path": f"/somewhere/day_{i}", "rows": n} for i, n in enumerate(FILES)],
        }
        if split.by not in ("hash", "time"):
            codes = SplitPlan.make(split, FILES).codes_of_rows(np.arange(sum(FILES)))
            rows = {name: int(in_split(codes, name).sum()) for name in SPLIT_NAMES}
    splits = {}
    for name, count in rows.items():
        sizes = [min(shard_rows, count - start) for start in range(0, count, shard_rows)]
        shards = [
            ShardInfo(
                file=f"{name}-{i:05d}.tfrecord",
                rows=size,
                bytes=100,
                sha256="0" * 64,
                blocks=(BlockInfo(100, size, "0" * 16),),
            )
            for i, size in enumerate(sizes)
        ]
        splits[name] = SplitInfo(rows=count, positives=0, shards=tuple(shards))
    spec = make_spec()
    fields = {"spec": spec, "encoding": make_encoding(spec), "recipe": recipe, "splits": splits}
    return Manifest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("split", "kind"),
    [
        (Split(by="order"), "file"),
        (Split(by="days", days=0), "file"),
        (Split(by="days", days=7), "day"),
        (Split(by="days", days=3, last_day="validation_first"), "day"),
        (Split(by="fold", folds=4, fold=1), "file"),
    ],
)
def test_parts_are_the_rows_of_each_slice(split, kind):
    """Each part is held against the numbers, counted within its split, of the raw rows of its slice."""
    parts = parts_of(make_manifest(split), SPLIT_NAMES)
    assert parts.kind == kind
    codes = SplitPlan.make(split, FILES).codes_of_rows(np.arange(sum(FILES)))
    if kind == "day":
        sizes = [len(part) for part in np.array_split(np.arange(sum(FILES)), split.days)]
        slice_of = np.repeat([f"day {i + 1}" for i in range(split.days)], sizes)
    else:
        slice_of = np.repeat([f"day_{i}" for i in range(len(FILES))], FILES)
    found = {name: [] for name in SPLIT_NAMES}
    for part in parts.items:
        found[part.split] += [part.name] * (part.stop - part.start)
        assert part.stop == len(found[part.split])
    for name in SPLIT_NAMES:
        assert found[name] == slice_of[in_split(codes, name)].tolist()


def test_one_file_is_cut_into_slices_of_time():
    manifest = make_manifest(Split(by="order"))
    recipe = {**manifest.recipe, "raw": [{"path": "train.txt", "rows": sum(FILES)}]}
    parts = parts_of(manifest.model_copy(update={"recipe": recipe}), SPLIT_NAMES)
    assert parts.kind == "slice"
    assert parts.items[0] == Part("rows 0 to 10%", "train", 0, 4)
    assert sum(part.stop - part.start for part in parts.items) == sum(FILES)


def test_rows_of_several_splits_are_taken_once():
    parts = parts_of(make_manifest(Split(by="whole_and_half")), SPLIT_NAMES)
    assert {part.split for part in parts.items} == {"train"}
    assert sum(part.stop - part.start for part in parts.items) == sum(FILES)


@pytest.mark.parametrize(
    "manifest",
    [
        make_manifest(None),
        make_manifest(Split(by="hash", key="x")),
        make_manifest(Split(by="time")),
        make_manifest(Split(by="order"), statistics={"bad_rows": {"blank line": 1}}),
    ],
    ids=["no recipe", "hash", "time", "bad rows"],
)
def test_shards_where_the_place_of_rows_is_not_known(manifest):
    parts = parts_of(manifest, ["validation", "test"])
    assert parts.kind == "shard"
    expected = [
        (shard.file.removesuffix(".tfrecord"), name, shard.rows)
        for name in ("validation", "test")
        for shard in manifest.splits[name].shards
    ]
    assert [(part.name, part.split, part.stop - part.start) for part in parts.items] == expected


def test_many_shards_are_taken_in_groups(monkeypatch):
    monkeypatch.setattr("tfdlrm.data.parts.MOST_PARTS", 7)
    parts = parts_of(make_manifest(None, shard_rows=1), SPLIT_NAMES).items  # 60 shards
    assert [part.stop - part.start for part in parts] == [9, 9, 2] * 3
    assert parts[0] == Part("train-00000 to train-00008", "train", 0, 9)
    assert parts[5] == Part("validation-00018 to validation-00019", "validation", 18, 20)
