"""The store of versions on a real directory: what is loaded, when, and what answers meanwhile."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.store import ModelStore
from tfdlrm.serving.version_policy import All, Latest, Specific
from tfdlrm.spec.errors import DataError


@dataclasses.dataclass(frozen=True)
class Loaded:
    version: int
    text: str


def load_text(path: Path, version: int) -> Loaded:
    """A loader of models that are one line of text: the store does not look into what it serves."""
    text = (path / "saved_model.pb").read_text()
    if "broken" in text:
        raise StatusError(Code.DATA_LOSS, f"{text} in\n{path.name}")
    return Loaded(version, text)


def write(base: Path, name: str, text: str = "fine") -> None:
    """Publish as an export does: under another name, then renamed."""
    temporary = base / f".{name}.tmp"
    temporary.mkdir(parents=True)
    (temporary / "saved_model.pb").write_text(text)
    temporary.rename(base / name)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    write(tmp_path / "m", "1")
    store = ModelStore("m", tmp_path / "m", load_text, poll_seconds=0)
    store.start()
    return store


def states(store: ModelStore) -> list[tuple[int, str, str]]:
    return [(status.version, status.state, status.code.name) for status in store.statuses()]


def test_the_latest_version_is_served(store):
    write(store.base_path, "9")
    write(store.base_path, "00000010")
    assert store.servable().version == 1
    store.poll()
    assert store.servable().version == 10
    assert store.servable(10).version == 10
    assert states(store) == [(10, "AVAILABLE", "OK"), (1, "END", "OK")]
    for version in (1, 9):
        with pytest.raises(StatusError, match=rf"Servable not found for request: Specific\(m, {version}\)"):
            store.servable(version)
    with pytest.raises(StatusError, match="Could not find version 9 of model m"):
        store.statuses(9)


@pytest.mark.parametrize("name", ["2.partial", "tmp-2", "-2", "2a", " 2", "\u0662", str(2**63)])
def test_other_names_are_no_versions(store, name):
    write(store.base_path, name)
    (store.base_path / "3").write_text("a file, not a directory")
    store.poll()
    assert states(store) == [(1, "AVAILABLE", "OK")]


def test_a_broken_version_keeps_the_old_one_and_is_shown(store):
    write(store.base_path, "2", "broken")
    store.poll()
    assert store.servable().version == 1
    assert states(store) == [(2, "END", "DATA_LOSS"), (1, "AVAILABLE", "OK")]
    assert store.statuses(2)[0].message == "broken in 2"
    write(store.base_path, "3")
    store.poll()
    assert store.servable().version == 3


def test_a_failed_version_is_tried_again_when_its_files_have_come_to_rest(store):
    path = store.base_path / "2"
    path.mkdir()
    store.poll()
    assert states(store)[0] == (2, "END", "UNKNOWN")
    (path / "saved_model.pb").write_text("broken")
    store.poll()
    assert states(store)[0] == (2, "END", "UNKNOWN"), "its files have only just changed"
    store.poll()
    assert states(store)[0] == (2, "END", "DATA_LOSS")
    (path / "saved_model.pb").write_text("fine now")
    store.poll()
    store.poll()
    assert store.servable().text == "fine now"


def test_a_failed_version_is_tried_a_few_times_a_minute_apart(tmp_path, monkeypatch):
    tried = []

    def load(path: Path, version: int) -> Loaded:
        tried.append(version)
        return load_text(path, version)

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    write(tmp_path / "m", "1")
    store = ModelStore("m", tmp_path / "m", load, poll_seconds=0)
    store.start()
    write(store.base_path, "2", "broken")
    for _ in range(1200):
        store.poll()
        now[0] += 1.0
    assert tried == [1] + [2] * 6


def test_where_nothing_answers_older_versions_are_tried(tmp_path):
    write(tmp_path / "m", "1")
    write(tmp_path / "m", "2", "broken")
    store = ModelStore("m", tmp_path / "m", load_text, poll_seconds=0)
    store.start()
    assert states(store) == [(2, "END", "DATA_LOSS"), (1, "AVAILABLE", "OK")]


def test_removing_the_latest_version_goes_back_to_the_one_before(store):
    write(store.base_path, "2")
    store.poll()
    shutil.rmtree(store.base_path / "2")
    store.poll()
    assert store.servable().version == 1
    assert states(store) == [(2, "END", "OK"), (1, "AVAILABLE", "OK")]


def test_the_last_version_outlives_its_files(store):
    shutil.rmtree(store.base_path / "1")
    store.poll()
    assert store.servable().version == 1
    shutil.rmtree(store.base_path)
    store.poll()
    assert store.servable().version == 1


def test_a_version_is_not_loaded_again_when_its_files_change(store):
    (store.base_path / "1" / "saved_model.pb").write_text("other")
    store.poll()
    assert store.servable().text == "fine"


@pytest.mark.parametrize(
    ("policy", "first", "second"),
    [
        (Latest(2), {3, 2}, {5, 3}),
        (Latest(0), {3}, {5}),
        (All(), {1, 2, 3}, {1, 3, 5}),
        (Specific(frozenset({1, 2, 5, 9})), {1, 2}, {1, 5}),
    ],
    ids=["latest 2", "latest", "all", "specific"],
)
def test_policies(tmp_path, policy, first, second):
    base = tmp_path / "m"
    for version in "123":
        write(base, version)
    store = ModelStore("m", base, load_text, poll_seconds=0, policy=policy)
    store.start()
    assert store.available == first
    assert {store.servable(version).version for version in first} == first
    assert store.servable().version == max(first)
    write(base, "5")
    shutil.rmtree(base / "2")
    store.poll()
    assert store.available == second
    assert store.servable().version == max(second)
    assert {version for version, state, _ in states(store) if state == "END"} == first - second


def test_versions_no_longer_wanted_stay_until_one_that_is_wanted_answers(tmp_path):
    base = tmp_path / "m"
    for version in "12":
        write(base, version)
    store = ModelStore("m", base, load_text, poll_seconds=0, policy=Latest(2))
    store.start()
    for version in "12":
        shutil.rmtree(base / version)
    write(base, "3", "broken")
    store.poll()
    assert store.available == {1, 2}
    write(base, "4")
    store.poll()
    assert store.available == {4}


def test_a_policy_that_finds_nothing_is_told(tmp_path):
    write(tmp_path / "m", "1")
    store = ModelStore("m", tmp_path / "m", load_text, poll_seconds=0, policy=Specific(frozenset({7})))
    with pytest.raises(DataError, match="none of those asked for: Specific"):
        store.start()


def test_retries_as_asked_for(tmp_path, monkeypatch):
    now, tried = [0.0], []

    def load(path: Path, version: int) -> Loaded:
        tried.append(now[0])
        return load_text(path, version)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    write(tmp_path / "m", "1", "broken")
    store = ModelStore("m", tmp_path / "m", load, poll_seconds=0, retries=2, retry_seconds=3)
    for _ in range(20):
        store.poll()
        now[0] += 1.0
    assert tried == [0, 3, 6]


def test_the_old_version_answers_while_the_new_one_loads(tmp_path):
    begun, release = threading.Event(), threading.Event()

    def load(path: Path, version: int) -> Loaded:
        if version == 2:
            begun.set()
            assert release.wait(30)
        return load_text(path, version)

    write(tmp_path / "m", "1")
    store = ModelStore("m", tmp_path / "m", load, poll_seconds=0.01)
    store.start()
    write(store.base_path, "2")
    assert begun.wait(30)
    assert states(store) == [(2, "LOADING", "OK"), (1, "AVAILABLE", "OK")]
    assert store.servable().version == 1
    release.set()
    end = time.monotonic() + 30
    while store.servable().version != 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert states(store) == [(2, "AVAILABLE", "OK"), (1, "END", "OK")]
    store.stop()


def test_the_list_of_ended_versions_stays_short(store):
    gc.freeze()  # as the server does: each swap collects, and what the other tests imported is much
    try:
        for version in range(2, 30):
            write(store.base_path, str(version))
            store.poll()
    finally:
        gc.unfreeze()
    assert [status.version for status in store.statuses()] == list(range(29, 8, -1))


def test_a_path_with_nothing_to_serve(tmp_path):
    def start(path: Path) -> None:
        ModelStore("m", path, load_text, poll_seconds=0).start()

    with pytest.raises(DataError, match="`model_base_path` must be a directory. Received: .*nowhere"):
        start(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold a model in a directory with a number for a name"):
        start(tmp_path / "empty")
    write(tmp_path / "m", "1", "broken")
    with pytest.raises(DataError, match="must hold a version that loads. .* version 1: broken in 1") as error:
        start(tmp_path / "m")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="It is itself a version: give its parent"):
        start(tmp_path / "m" / "1")


def test_an_unreadable_directory_changes_nothing(store):
    os.rename(store.base_path, store.base_path.with_name("away"))
    store.poll()
    os.rename(store.base_path.with_name("away"), store.base_path)
    write(store.base_path, "2")
    store.poll()
    assert store.servable().version == 2
