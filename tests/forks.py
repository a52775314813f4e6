"""Processes that begin with TensorFlow imported: forks of one that did it, since that takes seconds of CPU each time.

A fork is a process of its own that can be killed, stopped and waited for; it has none of the state of the tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.forking_python import PRELOADED, ROOT, end_as, run_program


class Fork:
    """One of them, with the words of `subprocess.Popen`; `output` is what it has written to both of its streams."""

    def __init__(self, forks: Forks, pid: int, log: Path) -> None:
        self._forks, self.pid, self._log = forks, pid, log
        self.returncode: int | None = None

    @property
    def output(self) -> str:
        return self._log.read_text()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout, self.output)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that is forked; it begins with the first fork and ends with `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process: subprocess.Popen[str] | None = None
        self._asking = threading.Lock()

    def start(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        out: Path | None = None,
    ) -> Fork:
        """Fork a process that does what `python <arguments>` would do: `-c <code> ...` or `-m <module> ...`.

        Args:
            arguments: As after `python`.
            env: Changes to the environment.
            log: Where both of its streams go. Defaults to a file of its own.
            out: Where its standard output goes instead.
        """
        self._count += 1
        log = self._folder / f"{self._count}.log" if log is None else log
        log.write_bytes(b"")
        # Commands would start themselves again for large pages, and import all that is here already.
        changes = {"TFDLRM_LARGE_PAGES": "0", **(env or {})}
        streams = [str(log if out is None else out), str(log)]
        pid = self.ask({"start": [str(argument) for argument in arguments], "env": changes, "streams": streams})
        assert pid is not None
        return Fork(self, pid, log)

    def ask(self, question: dict) -> int | None:
        with self._asking:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.forks", *PRELOADED],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            self._process.stdin.write(json.dumps(question) + "\n")
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def _run(arguments: list[str], env: dict[str, str], streams: list[str]) -> None:
    """Be the process that `python <arguments>` would be."""
    for stream, path in enumerate(streams, 1):
        # Appended to, so that two streams of one file do not write over each other.
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_program(arguments)


def main(preloaded: list[str]) -> None:
    """Import, then fork whenever asked to."""
    import importlib

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests, which end this process
    for name in preloaded:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    children: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            children.discard(pid)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), file=answers)
            continue
        pid = os.fork()
        if pid == 0:
            end_as(partial(_run, question["start"], question["env"], question["streams"]))
        children.add(pid)
        print(pid, file=answers)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
