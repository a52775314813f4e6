"""A `python` that forks: commands of the package begin with TensorFlow imported, which takes seconds of CPU each time.

The tests start hundreds of processes, themselves and through the commands they test: servers, workers, checks in a
fresh process. `install` puts a program in the place of `sys.executable` which asks one process, that has imported what
they import, to fork, and then stands for the fork: streams, environment, folder and limits are its own, signals are
passed on, the fork dies with it, and its exit code is the fork's. Whatever is no command of the package, or runs in
namespaces of its own, is started as ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
# What most of the programs of the tests import. Nothing may begin a thread here: it would be missing in the forks.
PRELOADED = ("tfdlrm.pipelines.run", "tfdlrm.distribute.strategies")
# The whole of what `tfdlrm.export.verify` starts; the tests compare the two.
FRESH_CHECK = """
import sys
sys.modules["tf_keras"] = None
from tfdlrm.export.verify import main
sys.exit(main())
"""
LIMITS = ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_CORE")
# No package is imported by it, so that it costs 20 ms.
PROGRAM = """#!{real} -IS
import json, os, resource, signal, socket, sys

def namespaces():
    return [os.readlink("/proc/self/ns/" + kind) for kind in ("mnt", "net", "pid", "user")]

arguments = sys.argv[1:]
of_package = arguments[:1] == ["-m"] and arguments[1].startswith("tfdlrm.")
fresh_check = arguments[:2] == ["-c", {fresh_check!r}]
if not (of_package or fresh_check) or namespaces() != {namespaces!r}:
    os.execv({real!r}, [{real!r}, *arguments])
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
wanted = dict(
    arguments=arguments,
    env=dict(os.environ),
    cwd=os.getcwd(),
    cpus=sorted(os.sched_getaffinity(0)),
    limits={{name: resource.getrlimit(getattr(resource, name)) for name in {limits!r}}},
)
text = json.dumps(wanted).encode()
socket.send_fds(connection, [len(text).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(text)
answers = connection.makefile()
pid = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def install(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that is forked and put the program in the place of `sys.executable`.

    Args:
        folder: Where program and socket lie; its path must be short, as sockets have it.

    Returns:
        The process; it ends when its standard input is closed.
    """
    address = str(folder / "s")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forking_python", address],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it listens
    program = folder / "python"
    namespaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid", "user")]
    program.write_text(
        PROGRAM.format(
            real=sys.executable, namespaces=namespaces, address=address, limits=LIMITS, fresh_check=FRESH_CHECK
        ),
        encoding="utf-8",
    )
    program.chmod(0o755)
    sys.executable = str(program)
    return process


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += connection.recv(1 << 20)
    return json.loads(text), streams


def _become(wanted: dict, streams: list[int], connection: socket.socket) -> None:
    """Be the process that `python <arguments>` would be, as long as the one that stands for it lives."""
    os.setsid()
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    if connection in select.select([connection], [], [], 0)[0]:
        os._exit(1)  # gone before there was anyone to tell
    for stream, file in enumerate(streams):
        os.dup2(file, stream)
        os.close(file)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"], TFDLRM_LARGE_PAGES="0")
    os.sched_setaffinity(0, wanted["cpus"])
    for name, limit in wanted["limits"].items():
        resource.setrlimit(getattr(resource, name), tuple(limit))
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watched = [os.isatty(stream) or wanted["env"].get("PYTHONUNBUFFERED") for stream in (1, 2)]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (
        os.fdopen(stream, "w", buffering=1 if stream == 2 or live else -1, closefd=False)
        for stream, live in zip((1, 2), watched, strict=True)
    )
    sys.path[0] = wanted["cwd"] if wanted["arguments"][0] == "-m" else ""
    run_program(wanted["arguments"])


def run_program(arguments: list[str]) -> None:
    """Do what `python <arguments>` does: `-m <module> ...` or `-c <code> ...`."""
    import runpy

    kind, program, *others = arguments
    sys.argv = [kind, *others]
    sys.orig_argv = [sys.executable, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


def end_as(program: Callable[[], None]) -> NoReturn:
    """Run a program and end this process as Python ends after it."""
    import traceback

    code = 0
    try:
        program()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120  # as Python ends where its output cannot be written
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(address: str) -> None:
    """Listen, and fork for every connection until standard input is closed."""
    import importlib

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    print("listening", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    alive: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, woken, 0], [], [])[0]
        if 0 in ready:
            break
        if woken in ready:
            os.read(woken, 4096)
            _tell_ends(alive)
        if listener in ready:
            connection, _ = listener.accept()
            wanted, streams = _receive(connection)
            for name in PRELOADED:  # for the first one only
                importlib.import_module(name)
            pid = os.fork()
            if pid == 0:
                listener.close()
                end_as(partial(_become, wanted, streams, connection))
            for file in streams:
                os.close(file)
            connection.sendall(f"{pid}\n".encode())
            alive[pid] = connection
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _tell_ends(alive: dict[int, socket.socket]) -> None:
    while alive:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        connection = alive.pop(pid)
        with contextlib.suppress(OSError):  # who stood for it has been killed
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
