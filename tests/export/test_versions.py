from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tfdlrm.export.versions import publish_version, published_versions
from tfdlrm.spec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write(directory: Path) -> None:
    (directory / "variables").mkdir()
    (directory / "variables" / "data").write_bytes(b"x")


def test_numbers_go_on_from_the_highest(tmp_path):
    for name in ("00000012", "7", "tmp", "3.5", "-4", "١٣", ".9"):
        (tmp_path / name).mkdir()
    assert published_versions(tmp_path) == [7, 12]
    assert publish_version(tmp_path, write) == tmp_path / "13"
    assert publish_version(tmp_path, write, version=20) == tmp_path / "20"
    assert publish_version(tmp_path, write) == tmp_path / "21"
    assert (tmp_path / "21" / "variables" / "data").read_bytes() == b"x"


def test_no_folder_has_no_versions(tmp_path):
    assert published_versions(tmp_path / "absent") == []


@pytest.mark.parametrize("taken", ["5", "005"])
def test_a_number_is_given_once(tmp_path, taken):
    (tmp_path / taken).mkdir()
    with pytest.raises(ConfigError, match=r"`version` must be a free number. Received: 5, which .* has already"):
        publish_version(tmp_path, write, version=5)
    assert [path.name for path in tmp_path.iterdir()] == [taken]


@pytest.mark.parametrize("version", [-1, 2**63])
def test_numbers_servers_cannot_read(tmp_path, version):
    with pytest.raises(ConfigError, match="must be at least 0 and below 2\\^63"):
        publish_version(tmp_path, write, version=version)


def test_base_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for base in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(ConfigError, match="`base` must be a folder"):
            publish_version(base, write)


def test_failed_writer_leaves_nothing(tmp_path):
    def fail(directory: Path) -> None:
        write(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        publish_version(tmp_path, fail)
    assert list(tmp_path.iterdir()) == []


def test_it_is_blessed_when_it_is_whole_and_has_no_number(tmp_path):
    seen = []

    def bless(directory: Path) -> None:
        assert (directory / "variables" / "data").read_bytes() == b"x"
        seen.append((directory.parent, published_versions(tmp_path)))

    assert publish_version(tmp_path, write, bless=bless) == tmp_path / "1"
    assert seen == [(tmp_path, [])]

    def refuse(directory: Path) -> None:
        raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        publish_version(tmp_path, write, bless=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_nothing_numeric_while_it_is_written(tmp_path):
    seen: list[list[int]] = []

    def look(directory: Path) -> None:
        assert directory.parent == tmp_path
        seen.append(published_versions(tmp_path))

    publish_version(tmp_path, look)
    assert seen == [[]]


def test_a_number_taken_meanwhile_is_left_alone(tmp_path):
    def another(directory: Path) -> None:
        write(directory)
        write_into = tmp_path / "1"
        write_into.mkdir()
        (write_into / "theirs").write_text("")

    assert publish_version(tmp_path, another).name == "2"
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["theirs"]
    (tmp_path / "1" / "theirs").unlink()
    (tmp_path / "1").rmdir()
    with pytest.raises(ConfigError, match="must be a free number"):
        publish_version(tmp_path, another, version=1)


def test_concurrent_exports_get_numbers_of_their_own(tmp_path):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(publish_version(tmp_path, write))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(path.name) for path in found) == list(range(1, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(n) for n in range(1, 9)]


def test_leftovers_of_a_killed_writer_go_and_those_of_others_stay(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tfdlrm.export.versions import publish_version\n"
        "def write(directory):\n"
        "    (directory / 'half').write_text('x'); print('writing', flush=True); time.sleep(60)\n"
        "publish_version(Path(sys.argv[1]), write)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert published_versions(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".mine.tmp").mkdir()
    assert publish_version(tmp_path, write).name == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "1"]
