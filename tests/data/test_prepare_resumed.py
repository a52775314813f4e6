"""Prepared data do not depend on how often the run was killed, on memory, or on what fits on the disk at first."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tfdlrm.data import parsing_pass
from tfdlrm.data.files import temporary_name
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.partial import partial_data, partial_folder
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import Split

ROOT = Path(__file__).parents[2]
ROWS = 6000
VOCABULARY = DataConfig(
    coding=TableCoding(min_count=2), split=Split(by="days", days=4), rows_per_block=64, rows_per_shard=700
)
HASHED = VOCABULARY.model_copy(update={"coding": TableCoding(kind="hash", buckets=100)})
CHUNK_BYTES = 40_000  # some 38 chunks

# A process that prepares, and tells on standard output where it is, so that it can be killed there.
PROGRAM = """
import sys
from pathlib import Path
from tfdlrm.data import parsing_pass
from tfdlrm.data.prepare import prepare
from tfdlrm.spec.config import DataConfig

parsing_pass.CHUNKS_PER_SEGMENT = 5

def progress(phase, rows):
    print(phase, flush=True)
    return lambda rows: print(phase, rows, flush=True)

data = DataConfig.from_json(sys.stdin.read())
sizes = {"chunk_bytes": int(sys.argv[3]), "memory_bytes": int(sys.argv[4])}
prepare(data, [sys.argv[1]], sys.argv[2], 4, progress=progress, **sizes)
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    write_planted(path, ROWS, seed=3)
    return path


@pytest.fixture
def short_segments(monkeypatch) -> None:
    monkeypatch.setattr(parsing_pass, "CHUNKS_PER_SEGMENT", 5)


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def start(data: DataConfig, raw: Path, directory: Path, memory_bytes: int = 1 << 29) -> subprocess.Popen[str]:
    arguments = [str(raw), str(directory), str(CHUNK_BYTES), str(memory_bytes)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    process.stdin.write(data.model_dump_json())
    process.stdin.close()
    return process


def test_killed_twice_the_result_is_the_same(tmp_path, raw, short_segments):
    prepare(VOCABULARY, [raw], tmp_path / "whole", 4, chunk_bytes=CHUNK_BYTES)
    target = tmp_path / "data"
    segments, notes = (partial_folder(target) / name for name in ("segments", "shards"))
    kill_when(segments, 2, start(VOCABULARY, raw, target))
    parsed = {path.name: path.stat().st_ino for path in segments.iterdir() if path.name.isdigit()}
    assert len(parsed) >= 2
    kill_when(notes, 2, start(VOCABULARY, raw, target))
    assert {name: (segments / name).stat().st_ino for name in parsed} == parsed
    files = [json.loads(note.read_text())["shard"]["file"] for note in notes.glob("*.json")]
    shards = {file: (partial_folder(target) / "out" / file).stat() for file in files}
    assert len(shards) >= 2
    assert start(VOCABULARY, raw, target).wait() == 0
    assert content(target) == content(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "whole"]
    for file, was in shards.items():  # a finished shard is never written again
        now = (target / file).stat()
        assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)


def kill_when(folder: Path, entries: int, process: subprocess.Popen[str]) -> None:
    """Kill a process once a folder has that many entries; it must not have ended before."""
    while process.poll() is None:
        names = [p.name for p in folder.iterdir()] if folder.exists() else []
        if sum(name.isdigit() or name.endswith(".json") for name in names) >= entries:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL


def test_memory_does_not_change_the_result(tmp_path, raw, short_segments, monkeypatch):
    prepare(VOCABULARY, [raw], tmp_path / "much", 4, chunk_bytes=CHUNK_BYTES)
    phases = []

    def progress(phase: str, rows: int):
        phases.append(phase)
        return lambda rows: None

    prepare(VOCABULARY, [raw], tmp_path / "little", 4, chunk_bytes=CHUNK_BYTES, memory_bytes=100_000, progress=progress)
    assert phases == ["count", "vocabulary", "look up", "encode"]
    assert content(tmp_path / "little") == content(tmp_path / "much")


def test_other_settings_start_anew(tmp_path, raw):
    target = tmp_path / "data"

    def interrupted(phase: str, rows: int):
        if phase == "encode":
            raise KeyboardInterrupt
        return lambda rows: None

    with pytest.raises(KeyboardInterrupt):
        prepare(VOCABULARY, [raw], target, 4, progress=interrupted, chunk_bytes=CHUNK_BYTES)
    assert partial_folder(target).exists() and not target.exists()
    manifest = prepare(HASHED, [raw], target, 4, chunk_bytes=CHUNK_BYTES)
    manifest.verify(target)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_finished_shard_that_was_damaged_is_not_believed(tmp_path, raw):
    target = tmp_path / "data"

    def interrupted(phase: str, rows: int):
        def done(rows: int) -> None:
            notes = list(partial_folder(target).glob("shards/*.json"))
            if phase == "encode" and notes:
                raise KeyboardInterrupt

        return done

    with pytest.raises(KeyboardInterrupt):
        prepare(VOCABULARY, [raw], target, 4, progress=interrupted, chunk_bytes=CHUNK_BYTES)
    shard = next((partial_folder(target) / "out").glob("*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard.name}: damaged since it was written"):
        prepare(VOCABULARY, [raw], target, 4, chunk_bytes=CHUNK_BYTES)


def test_two_writers_of_one_directory(tmp_path, raw):
    process = start(VOCABULARY, raw, tmp_path / "data")
    assert process.stdout.readline().strip() == "count"
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ConfigError, match="data: another process is preparing it"):
            prepare(VOCABULARY, [raw], tmp_path / "data", 4)
    finally:
        process.send_signal(signal.SIGCONT)
        process.stdout.read()
        assert process.wait() == 0
    Manifest.load(tmp_path / "data").verify(tmp_path / "data")


def test_a_partial_folder_is_gone_on_from_only_with_its_own_identity(tmp_path):
    target = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt), partial_data(target, {"a": 1}) as partial:
        (partial.out / "kept.txt").write_text("kept")
        (partial.out / "vocabulary").mkdir()
        temporary_name(partial.out / "vocabulary" / "half.npz").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), partial_data(target, {"a": 1}) as partial:
        assert [p.name for p in partial.out.rglob("*") if p.is_file()] == ["kept.txt"]
        raise KeyboardInterrupt
    with partial_data(target, {"a": 2}) as partial:
        assert list(partial.out.iterdir()) == []
        (partial.out / "whole.txt").write_text("whole")
    assert [p.name for p in target.iterdir()] == ["whole.txt"] and list(tmp_path.iterdir()) == [target]


# Runs a command in a namespace of its own in which a folder is a file system of a given size.
SMALL_DISK = 'mount -t tmpfs -o size="$2" tmpfs "$1" && shift 2 && "$@"'


def on_a_small_disk(folder: Path, size: str, *command: str) -> subprocess.CompletedProcess[str]:
    unshare = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    return subprocess.run(
        [*unshare, "sh", "-c", SMALL_DISK, "sh", str(folder), size, *command],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


FULL_DISK = """
import shutil, sys
from pathlib import Path
from tfdlrm.data import parsing_pass, prepare as module
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError

parsing_pass.CHUNKS_PER_SEGMENT = 5
module.refuse_full_disk = lambda folder, needed: None  # the estimate would refuse beforehand; fill the disk instead
raw, disk, filler_kb = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
data = DataConfig.from_json(sys.argv[4])
filler = disk / "filler"
filler.write_bytes(bytes(filler_kb * 1024))
try:
    module.prepare(data, [raw], disk / "data", 4, chunk_bytes=40_000)
    sys.exit("the disk was not full")
except DataError as error:
    print(error)
assert not (disk / "data").exists() and (disk / "data.partial").exists()
filler.unlink()
module.prepare(data, [raw], disk / "data", 4, chunk_bytes=40_000)
shutil.copytree(disk / "data", sys.argv[5])
"""


@pytest.mark.parametrize("filler_kb", [6200, 5300])
def test_a_full_disk_leaves_what_is_done(tmp_path, raw, short_segments, filler_kb):
    disk = tmp_path / "disk"
    disk.mkdir()
    if on_a_small_disk(disk, "1M", "true").returncode:
        pytest.skip("no small file system can be mounted here")
    prepare(VOCABULARY, [raw], tmp_path / "whole", 4, chunk_bytes=CHUNK_BYTES)
    arguments = [str(raw), str(disk), str(filler_kb), VOCABULARY.model_dump_json(), str(tmp_path / "copy")]
    done = on_a_small_disk(disk, "6500k", sys.executable, "-c", FULL_DISK, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{disk}: the disk is full. What is done so far is kept in {disk / 'data.partial'}")
    assert content(tmp_path / "copy") == content(tmp_path / "whole")


def test_too_little_room_is_refused_and_what_is_done_is_kept(tmp_path, raw, short_segments):
    prepare(VOCABULARY, [raw], tmp_path / "whole", 4, chunk_bytes=CHUNK_BYTES)
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [str(raw), str(disk), VOCABULARY.model_dump_json(), str(tmp_path / "copy")]
    done = on_a_small_disk(disk, "6500k", sys.executable, "-c", ROOM, *arguments)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("no small file system can be mounted here")
    assert done.returncode == 0, done.stderr
    assert re.match(rf"{disk}: must have some \d\.\d MB of free disk. Received: ", done.stdout)
    assert "What is done so far is kept" in done.stdout
    assert content(tmp_path / "copy") == content(tmp_path / "whole")


ROOM = """
import shutil, sys
from pathlib import Path
from tfdlrm.data import parsing_pass, prepare as module
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import MachineError

parsing_pass.CHUNKS_PER_SEGMENT = 5
raw, disk = Path(sys.argv[1]), Path(sys.argv[2])
data = DataConfig.from_json(sys.argv[3])
filler = disk / "filler"

def fill(phase, rows):
    def done(rows):
        # Enough for some segments and not for the rest, once two segments are there.
        if phase == "vocabulary" and (disk / "data.partial" / "segments" / "00000005").exists():
            filler.exists() or filler.write_bytes(bytes(max(shutil.disk_usage(disk).free - 1_200_000, 0)))
    return done

try:
    module.prepare(data, [raw], disk / "data", 4, chunk_bytes=40_000, progress=fill)
    sys.exit("there was room")
except MachineError as error:
    print(error)
segments = disk / "data.partial" / "segments"
before = {path.name: path.stat().st_ino for path in segments.iterdir() if path.name.isdigit()}
assert len(before) >= 2, before
filler.unlink()
module.prepare(data, [raw], disk / "data", 4, chunk_bytes=40_000)
shutil.copytree(disk / "data", sys.argv[4])
"""
