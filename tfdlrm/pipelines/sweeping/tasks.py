"""A sweep by several processes: KerasTuner's chief proposes, workers run trials; here, or on machines with one disk."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

from tfdlrm.distribute.ports import free_ports
from tfdlrm.distribute.processes import TaskProcess, end_all
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.spec.errors import ConfigError, MachineError

TAKEN = "TFDLRM_SWEEP_TAKEN"
"""Set where the process that started a chief has taken the sweep's folder."""
ID, ADDRESS, PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
_LOOK, _CHIEF_PATIENCE, _PATIENCE = 0.1, 3.0, 5.0
_RESTARTS = 3
_WAIT = 600.0
Role = Literal["alone", "chief", "worker"]


def role_of(environment: Mapping[str, str] = os.environ) -> Role:
    """Return what this process is in a sweep, as KerasTuner's environment variables say it.

    Raises:
        ConfigError: some of them are missing.
    """
    if ADDRESS not in environment:
        return "alone"
    for name in (PORT, ID):
        if name not in environment:
            raise ConfigError(f"`{name}` must be set where `{ADDRESS}` is. Received: none.")
    return "chief" if "chief" in environment[ID] else "worker"


def wait_for_settings(folder: SweepFolder, seconds: float = _WAIT) -> None:
    """Wait until a chief has checked the space and prepared the rows.

    Raises:
        ConfigError: it has not within that time.
    """
    deadline = time.monotonic() + seconds
    while not folder.checked_file.is_file():
        if time.monotonic() > deadline:
            raise ConfigError(f"{folder.root}: no chief has prepared this sweep. Start it with {ID}=chief.")
        time.sleep(_LOOK)


def run_tasks(folder: SweepFolder, workers: int, look: Callable[[], None]) -> None:
    """Start a chief and workers on this machine, and wait until all trials have ended.

    A worker that dies is started again, and given its trial again.

    Args:
        folder: The sweep's; checked.
        workers: How many.
        look: Called now and then.

    Raises:
        MachineError: the chief, or a worker again and again, ended with a fault.
    """
    cores = max(1, (os.cpu_count() or 1) // workers)
    common = {
        **os.environ,
        ADDRESS: "localhost",
        PORT: str(free_ports(1)[0]),
        TAKEN: "1",
        # A worker's share of the processors, unless they are shared out already.
        "TF_NUM_INTRAOP_THREADS": os.environ.get("TF_NUM_INTRAOP_THREADS", str(cores)),
        "TF_NUM_INTEROP_THREADS": os.environ.get("TF_NUM_INTEROP_THREADS", str(cores)),
    }
    chief = _start(folder, "chief", common)
    running = {name: _start(folder, name, common) for name in (f"worker{i}" for i in range(workers))}
    restarts = 0
    try:
        while running:
            time.sleep(_LOOK)
            look()
            if chief.poll() not in (None, 0):
                raise MachineError(f"the chief of the sweep ended with exit code {chief.code}{_said(folder, 'chief')}")
            for name, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                if code == 0:
                    continue
                restarts += 1
                if restarts > _RESTARTS:
                    raise MachineError(f"{name} ended with exit code {code}{_said(folder, name)}")
                running[name] = _start(folder, name, common)
        # It looks only now and then whether there is someone left to propose to.
        deadline = time.monotonic() + _CHIEF_PATIENCE
        while chief.poll() is None and time.monotonic() < deadline:
            time.sleep(_LOOK)
    finally:
        end_all([chief, *running.values()], _PATIENCE)
        look()


def _start(folder: SweepFolder, name: str, environment: Mapping[str, str]) -> TaskProcess:
    argv = [sys.executable, "-m", "tfdlrm.pipelines.sweep", "--work-dir", str(folder.root)]
    return TaskProcess(argv, {**environment, ID: name}, folder.root / "logs" / f"{name}.txt")


def _said(folder: SweepFolder, name: str) -> str:
    with suppress(OSError):
        lines = (folder.root / "logs" / f"{name}.txt").read_text(errors="replace").strip().splitlines()
        return f": {lines[-1].removeprefix('tfdlrm: ')}" if lines else ""
    return ""
