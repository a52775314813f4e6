"""The program that stands for a fork behaves as the process that it stands for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forking_python
from tfdlrm.export import verify

pytestmark = pytest.mark.skipif(
    os.environ.get("TFDLRM_FORKS") != "1", reason="processes are started as users start them (TFDLRM_FORKS=1 forks)"
)
PRINT = [sys.executable, "-m", "tfdlrm.pipelines.prepare"]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def forks() -> set[int]:
    """Return the children of the process that forks, which is a child of this one."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    found = set()
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"tests.forking_python" in words and parent_of(parent_of(pid)) == os.getpid():
                found.add(pid)
        except (OSError, ValueError):
            continue
    return found


def test_the_check_in_a_fresh_process_is_the_one_that_forks() -> None:
    assert forking_python.FRESH_CHECK == verify._WITHOUT_KERAS


def test_streams_exit_codes_and_environment(tmp_path: Path) -> None:
    done = subprocess.run([*PRINT, "explain", "fb"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "fb" in done.stdout and done.stderr == ""
    done = subprocess.run([*PRINT, "explain", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("tfdlrm: ") or "invalid choice" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ['X'])"], env={"X": "y"}, capture_output=True
    )
    assert done.stdout == b"y\n"


def test_a_signal_reaches_it_and_it_dies_with_who_stands_for_it(tmp_path: Path) -> None:
    raw = tmp_path / "rows.txt"
    os.mkfifo(raw)  # whoever opens it waits
    command = [*PRINT, "run", "--recipe", "tfdlrm", "--raw", str(raw), "--out", str(tmp_path / "out")]
    before = forks()
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while not forks() - before:
            assert time.monotonic() < until and process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(0.5)  # in the midst of it
        process.send_signal(number)
        assert process.wait(60) == code
        process.communicate()
        while forks() - before:
            assert time.monotonic() < until
            time.sleep(0.01)
