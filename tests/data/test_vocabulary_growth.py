"""Days prepared one after another: ids of known values stay, state travels, and what cannot grow is refused by name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.files import sha256_of
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.prepare import prepare
from tfdlrm.data.untouched_rows import untouched_rows
from tfdlrm.data.vocabulary_growth import new_rows
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError, DataError, SpecError, UserError

COLUMNS = ("word", "code", "size", "bag", "hashed")
MISSING, RARE = 0, 1


def day_of(number: int, rows: int = 400) -> list[dict[str, str]]:
    """Return rows whose values drift from day to day."""
    rng = np.random.default_rng(number)
    made = []
    for _ in range(rows):
        value = int(rng.geometric(0.05)) + 12 * number
        bag = [f"t{number + int(rng.integers(6))}" for _ in range(rng.integers(0, 3))]
        row = {"y": str(rng.integers(2)), "price": f"{rng.normal(number, 1):.3f}", "word": f"w{value}"}
        row |= {"code": f"{(value * 0x9E3779B97F4A7C15) % 2**64:016x}", "size": str(value**2), "bag": "|".join(bag)}
        made.append({**row, "hashed": f"h{value}"})
    return made


def write_day(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe(**changes: Any) -> DataConfig:
    base = {
        "format": {"header": True, "label": "y"},
        "dense": [{"name": "price", "transform": "standardize"}],
        "sparse": [
            {"name": "word", "value": "string"},
            {"name": "code", "value": "hex"},
            {"name": "size", "value": "number"},
            {"name": "bag", "value": "string", "separator": "|", "hotness": 3},
            {"name": "hashed", "value": "string", "kind": "hash", "buckets": 16},
        ],
        "coding": {"min_count": 2},
        "split": {"fractions": [0.75, 0.1, 0.15]},
        "rows_per_block": 50,
    }
    return DataConfig.model_validate({**base, **changes})


def values_of(rows: list[dict[str, str]], column: str) -> list[str]:
    texts = [row[column] for row in rows]
    return [part for text in texts for part in text.split("|") if part] if column == "bag" else texts


def ids_of(encoder: FeatureEncoder, column: str, values: list[str]) -> dict[str, int]:
    """Return the row of each value, by the encoder that a model is exported with."""
    raw: dict[str, tf.Tensor] = {name: tf.constant([""] * len(values)) for name in encoder.columns.strings}
    raw |= {name: tf.constant([np.nan] * len(values)) for name in encoder.columns.numbers}
    kind = tf.float32 if column in encoder.columns.numbers else tf.string
    raw[column] = tf.constant([float(v) for v in values] if kind == tf.float32 else values, kind)
    start, _ = encoder.spec.id_columns[column]
    return dict(zip(values, encoder.encode(raw)["sparse"].numpy()[:, start].tolist(), strict=True))


class Chain:
    """Three days, each prepared from the one before, in `<folder>/run<k>/data`."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder = folder
        self.days = [day_of(number) for number in (1, 2, 3)]
        self.raw = [write_day(folder / f"day{n}.tsv", rows) for n, rows in enumerate(self.days, start=1)]
        self.manifests = [prepare(recipe(), [self.raw[0]], self.data(1), 4)]
        for number in (2, 3):
            growth = {"from_run": str(folder / f"run{number - 1}"), **rules}
            self.manifests.append(prepare(recipe(growth=growth), [self.raw[number - 1]], self.data(number), 4))

    def data(self, number: int) -> Path:
        return self.folder / f"run{number}" / "data"

    def encoder(self, number: int) -> FeatureEncoder:
        return FeatureEncoder.load(self.data(number))

    def counts(self, number: int, column: str) -> Counter[str]:
        rows = self.days[number - 1]
        return Counter(values_of(rows[: len(rows) * 3 // 4], column))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("days"))


@pytest.mark.parametrize("column", ["word", "code", "bag"])
def test_known_values_keep_their_rows_and_frequent_new_ones_get_one(chain: Chain, column: str) -> None:
    every = sorted({value for rows in chain.days for value in values_of(rows, column)})
    ids = {number: ids_of(chain.encoder(number), column, every) for number in (1, 2, 3)}
    known: set[str] = set()
    for number in (1, 2, 3):
        counts = chain.counts(number, column)
        known |= {value for value, count in counts.items() if count >= 2}
        assert {value for value in every if ids[number][value] > RARE} == known
        assert {ids[number][value] for value in set(every) - known} <= {RARE}
        table = chain.manifests[number - 1].spec.table(column)
        assert sorted(ids[number][value] for value in known) == list(range(2, table.vocabulary_size))
        if number > 1:
            kept = {value: row for value, row in ids[number - 1].items() if row > RARE}
            assert {value: ids[number][value] for value in kept} == kept
            came = sorted(set(row for row in ids[number].values() if row > RARE) - set(kept.values()))
            assert new_rows(chain.data(number), chain.manifests[number - 1])[column].tolist() == came
            told = chain.manifests[number - 1].statistics["growth"][column]
            assert told["kept"] == len(kept) and told["admitted"] == len(came) and told["evicted"] == 0


def test_the_most_frequent_new_value_comes_first(chain: Chain) -> None:
    counts = chain.counts(2, "word")
    ids = ids_of(chain.encoder(2), "word", list(counts))
    before = chain.manifests[0].spec.table("word").vocabulary_size
    new = sorted((value for value in counts if ids[value] >= before), key=lambda value: ids[value])
    assert len(new) > 5
    assert [counts[value] for value in new] == sorted((counts[value] for value in new), reverse=True)


def test_packed_rows_hold_the_grown_ids(chain: Chain) -> None:
    for number in (2, 3):
        manifest, rows = chain.manifests[number - 1], chain.days[number - 1]
        assert manifest.splits["train"].rows == 300
        (features, _) = next(iter(packed_dataset(chain.data(number), "train", 300, manifest=manifest)))
        words = [row["word"] for row in rows[:300]]
        ids = ids_of(chain.encoder(number), "word", sorted(set(words)))
        np.testing.assert_array_equal(features["sparse"].numpy()[:, 0], [ids[word] for word in words])


def test_versions_name_their_parents(chain: Chain) -> None:
    for number, manifest in enumerate(chain.manifests, start=1):
        assert manifest == Manifest.load(chain.data(number))
        assert manifest.vocabulary_version == number
        parent = None if number == 1 else sha256_of(chain.data(number - 1) / "encoder.json")
        assert manifest.vocabulary_parent == parent
    assert chain.manifests[0].growth.sha256 == {}
    for table, checksum in chain.manifests[1].growth.sha256.items():
        place = list(chain.manifests[1].encoding.tables).index(table)
        assert checksum == sha256_of(chain.data(2) / "vocabulary" / f"{place:05d}.growth.npz")
    assert set(chain.manifests[1].growth.sha256) == {"word", "code", "size", "bag"}


def test_hashed_tables_and_dense_statistics_stay(chain: Chain) -> None:
    assert len({manifest.spec.table("hashed").vocabulary_size for manifest in chain.manifests}) == 1
    stats = [chain.encoder(number).dense_stats["price"] for number in (1, 2, 3)]
    prices = np.array([row["price"] for row in chain.days[0][:300]], np.float32)
    assert stats[0] == stats[1] == stats[2]
    assert stats[0].mean == pytest.approx(prices.mean(), abs=1e-5)


def test_rows_that_an_earlier_day_trained_are_not_untouched(tmp_path: Path) -> None:
    """Day 1 has rare words and missing codes, day 2 neither."""
    first = [{"y": "1", "word": f"w{i // 2}", "code": "" if i % 9 == 0 else "0a"} for i in range(79)]
    second = [{"y": "0", "word": f"w{i % 3}", "code": "0a"} for i in range(80)]
    sparse = [{"name": "word", "value": "string"}, {"name": "code", "value": "hex"}]
    settings = recipe(dense=[], sparse=sparse, split={"fractions": [1, 0, 0]})
    parent = prepare(settings, [write_day(tmp_path / "1.tsv", first)], tmp_path / "run1" / "data", 4)
    growth = {"growth": {"from_run": str(tmp_path / "run1")}}
    grown = settings.model_validate({**settings.model_dump(), **growth})
    manifest = prepare(grown, [write_day(tmp_path / "2.tsv", second)], tmp_path / "run2" / "data", 4)
    assert untouched_rows(parent) == {"word": [MISSING], "code": [RARE]}
    assert manifest.growth.read_before == {"word": (RARE,), "code": (MISSING,)}
    assert untouched_rows(manifest) == {"word": [MISSING], "code": [RARE]}
    alone = prepare(settings, [tmp_path / "2.tsv"], tmp_path / "alone", 4)
    assert untouched_rows(alone) == {"word": [MISSING, RARE], "code": [MISSING, RARE]}


def test_values_not_seen_for_days_give_their_rows_to_others(tmp_path: Path) -> None:
    chain = Chain(tmp_path, evict_after=2, max_new_rows=5)
    every = sorted({value for rows in chain.days for value in values_of(rows, "word")})
    ids = {number: ids_of(chain.encoder(number), "word", every) for number in (1, 2, 3)}
    own = {number: {value: row for value, row in ids[number].items() if row > RARE} for number in ids}
    assert set(own[1]) <= set(own[2]) and len(own[2]) == len(own[1]) + 5
    gone = set(own[2]) - set(own[3])
    assert gone == {v for v in own[1] if not chain.counts(2, "word")[v] and not chain.counts(3, "word")[v]}
    came = {value: row for value, row in own[3].items() if value not in own[2]}
    freed = {own[2][value] for value in gone}
    assert len(gone) >= 5 == len(came) and set(came.values()) == set(sorted(freed)[:5])
    told = chain.manifests[2].statistics["growth"]["word"]
    assert told["evicted"] == len(gone) and told["reused_rows"] == 5
    assert chain.manifests[2].spec.table("word") == chain.manifests[1].spec.table("word")


def test_a_broken_off_run_goes_on_to_the_same_bytes(chain: Chain, tmp_path: Path) -> None:
    settings = recipe(growth={"from_run": str(chain.folder / "run1")})

    def interrupted(phase: str, rows: int) -> Any:
        if phase == "encode":
            raise KeyboardInterrupt
        return lambda done: None

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, [chain.raw[1]], tmp_path / "data", 4, progress=interrupted)
    assert not (tmp_path / "data").exists()
    prepare(settings, [chain.raw[1]], tmp_path / "data", 4)
    files = sorted(path.relative_to(chain.data(2)) for path in chain.data(2).rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "data") for path in (tmp_path / "data").rglob("*.*"))
    for file in files:
        assert (tmp_path / "data" / file).read_bytes() == (chain.data(2) / file).read_bytes(), file


def test_what_was_prepared_from_another_parent_is_not_taken_for_the_same(chain: Chain, tmp_path: Path) -> None:
    parent, settings = tmp_path / "parent", recipe(growth={"from_run": str(tmp_path / "parent")})
    shutil.copytree(chain.folder / "run1", parent)
    prepare(settings, [chain.raw[1]], tmp_path / "data", 4)
    assert prepare(settings, [chain.raw[1]], tmp_path / "data", 4) == chain.manifests[1]
    shutil.rmtree(parent)
    with pytest.raises(DataError, match="`data.growth.from_run` must be a run with prepared data.*parent/data/manif"):
        prepare(settings, [chain.raw[1]], tmp_path / "data", 4)
    prepare(recipe(), [chain.raw[2]], parent / "data", 4)
    with pytest.raises(ConfigError, match=r"by another recipe: `data.growth.from_run` with another manifest.json than"):
        prepare(settings, [chain.raw[1]], tmp_path / "data", 4)
    with pytest.raises(ConfigError, match=r"by another recipe: `data.growth.evict_after` 0, now 3"):
        rules = {"from_run": str(chain.folder / "run1"), "evict_after": 3}
        prepare(recipe(growth=rules), [chain.raw[1]], tmp_path / "data", 4)
    with pytest.raises(ConfigError, match="by another recipe: `data.growth"):
        prepare(recipe(), [chain.raw[1]], tmp_path / "data", 4)


def test_damaged_state_is_named(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.folder / "run2", tmp_path / "run2")
    state = tmp_path / "run2" / "data" / "vocabulary" / "00001.growth.npz"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    settings = recipe(growth={"from_run": str(tmp_path / "run2")})
    with pytest.raises(DataError, match=r"00001\.growth\.npz: damaged: its SHA-256"):
        prepare(settings, [chain.raw[2]], tmp_path / "data", 4)
    state.unlink()
    with pytest.raises(DataError, match=r"00001\.growth\.npz: cannot be read"):
        prepare(settings, [chain.raw[2]], tmp_path / "data", 4)
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.partial").exists()


WORD = {"name": "word", "value": "string"}
OTHERS: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "fewer features": ({"sparse": [WORD]}, ConfigError, "the same sparse names in the same order"),
    "other bags": (
        {"sparse": [*({"name": n, "value": "string"} for n in ("word", "code", "size", "bag", "hashed"))]},
        ConfigError,
        "`hotness` of sparse `bag` must be the same in the run .*run1 and this one. Received: 3 and 1.",
    ),
    "other transform": ({"dense": [{"name": "price"}]}, ConfigError, "`transform` of dense `price` must be the same"),
    "other coding": (
        {"coding": {"min_count": 5}},
        ConfigError,
        "coding must be that of .*run1.*: `tables.word.min_count` is 2 there. Received: 5.",
    ),
    "shared rows": (
        {"coding": {"min_count": 2, "id_modulus": 50}},
        SpecError,
        "`id_modulus` of table `word` must not be given for a vocabulary that grows",
    ),
    "no rare row": (
        {"coding": {"oov_row": None, "rare_row": 0}},
        SpecError,
        "`oov_row` and `rare_row` of table `word` must be one row below `first_id`",
    ),
    "rare row of a value": (
        {"coding": {"oov_row": 2, "rare_row": 2}},
        SpecError,
        "must be one row below `first_id`.* Received: 2, 2 and 2.",
    ),
    "expanded": (
        {"sparse": [{**WORD, "expand": {}, "hotness": 3}]},
        SpecError,
        "`expand` of feature `word` must not be given for a vocabulary that grows",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_cannot_grow_is_refused_by_name(chain: Chain, tmp_path: Path, case: str) -> None:
    changes, kind, words = OTHERS[case]
    settings = recipe(**changes, growth={"from_run": str(chain.folder / "run1")})
    with pytest.raises(kind, match=words):
        prepare(settings, [chain.raw[1]], tmp_path / "data", 4)
    assert list(tmp_path.iterdir()) == []


def test_the_parent_is_only_read(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run1").rglob("*")}
    content = {path: path.read_bytes() for path in before if path.is_file()}
    prepare(recipe(growth={"from_run": str(tmp_path / "run1")}), [chain.raw[2]], tmp_path / "again", 4)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run1").rglob("*")} == before
    assert {path: path.read_bytes() for path in content} == content
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["vocabulary_version"] == 2
