"""The supervisor with real processes: small shells that wait, end, count their starts, and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tfdlrm.distribute.processes import TaskProcess, tied
from tfdlrm.distribute.supervisor import Limits, Supervisor, Task

ROOT = Path(__file__).resolve().parents[2]
WAIT = "exec sleep 60"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Cluster:
    """A chief, two workers and a server that are shell scripts, under a supervisor; `$n` counts a task's starts."""

    def __init__(self, folder: Path, *, worker: str = WAIT, ps: str = WAIT, chief: str = WAIT, **limits: float) -> None:
        self.folder = folder
        self.scripts = [("chief", 0, chief), ("worker", 0, worker), ("worker", 1, WAIT), ("ps", 0, ps)]
        self.said: list[str] = []
        self.shown: list[str] = []
        self.pids: set[int] = set()
        self.may_finish = False
        self.supervisor = Supervisor(
            self.tasks,
            folder / "logs",
            Limits(**{"back_off": 0.02, "stop_seconds": 10, **limits}),
            self.said.append,
            self.shown.append,
            lambda outcome: self.pids.update(outcome.process_ids.values()),
        )

    def tasks(self) -> Sequence[Task]:
        return [
            Task(
                role,
                index,
                ("sh", "-c", f"echo x >> {role}{index}.starts; n=$(wc -l < {role}{index}.starts); {script}"),
                os.environ,
                restarts_alone=role == "worker",
                may_finish=self.may_finish and role == "worker",
            )
            for role, index, script in self.scripts
        ]

    def run(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.chdir(self.folder)
        code = self.supervisor.run()
        assert len(self.pids) >= 4 and not any(alive(pid) for pid in self.pids)
        return code

    def starts(self, name: str) -> int:
        return len((self.folder / f"{name}.starts").read_text().splitlines())


def once(what: str, then: str = WAIT) -> str:
    """Return a script that does something at its first start only."""
    return f"if [ $n = 1 ]; then sleep 0.3; {what}; fi; {then}"


def when(names: str, starts: int, then: str = "exit 0") -> str:
    """Return a script that waits until all of the named tasks have been started so often."""
    waits = [f"until [ $(cat {name}.starts | wc -l) -ge {starts} ]; do sleep 0.05; done" for name in names.split()]
    return "; ".join([*waits, "sleep 0.3", then])


def test_chief_that_ends_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, chief="echo one; sleep 0.3; echo two; exit 0")
    assert cluster.run(monkeypatch) == 0
    assert cluster.shown == ["one", "two"]
    assert (cluster.said, cluster.supervisor.outcome.deaths) == ([], {})
    assert "one\ntwo\n" in (tmp_path / "logs" / "chief-0.log").read_text()


def test_killed_worker_is_started_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, worker=once("kill -9 $$"), chief=when("worker0", 2))
    assert cluster.run(monkeypatch) == 0
    assert [cluster.starts(name) for name in ("chief0", "worker0", "worker1", "ps0")] == [1, 2, 1, 1]
    log = tmp_path / "logs" / "worker-0.log"
    assert cluster.said == [
        f"worker-0 was ended by SIGKILL; its log: {log}",
        "starting worker-0 again in 0.02 s (1 of at most 10)",
    ]
    assert log.read_text().count(" started\n") == 2
    assert cluster.supervisor.outcome.as_dict() == {
        **{"deaths": {"worker": 1}, "task_restarts": 1, "restarts": 0, "exit_code": 0},
        **{"why": "worker-0 was ended by SIGKILL", "process_ids": {}},
    }


@pytest.mark.parametrize("role", ["ps", "chief"])
def test_lost_server_or_chief_restarts_all(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = when("ps0 worker0 worker1", 2)
    scripts = {"ps": once("kill -9 $$"), "chief": others}
    if role == "chief":
        scripts = {"chief": once("exit 138", others)}
    cluster = Cluster(tmp_path, **scripts)
    assert cluster.run(monkeypatch) == 0
    assert [cluster.starts(name) for name in ("chief0", "worker0", "worker1", "ps0")] == [2, 2, 2, 2]
    how = {"ps": "was ended by SIGKILL", "chief": "ended with exit code 138"}[role]
    assert cluster.said[0].startswith(f"{role}-0 {how}; its log: ")
    assert cluster.said[1:] == ["all stopped; starting again from the last checkpoint in 0.02 s (1 of at most 3)"]
    assert (cluster.supervisor.outcome.deaths, cluster.supervisor.outcome.restarts) == ({role: 1}, 1)


def test_a_server_that_ends_well_is_lost_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, ps=once("exit 0"), chief=when("ps0", 2))
    assert cluster.run(monkeypatch) == 0
    assert cluster.supervisor.outcome.deaths == {"ps": 1}


def test_a_task_that_may_finish_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, worker="exit 0", chief="sleep 0.5; exit 0")
    cluster.may_finish = True
    assert cluster.run(monkeypatch) == 0
    assert (cluster.said, cluster.starts("worker0")) == ([], 1)


def test_restarts_of_all_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, chief="exit 3", restarts=2)
    begin = time.monotonic()
    assert cluster.run(monkeypatch) == 1
    assert time.monotonic() - begin >= 0.02 + 0.04
    assert cluster.starts("chief0") == 3
    assert cluster.said[-1] == "giving up: chief-0 ended with exit code 3, and all were started again 2 times already"


def test_a_worker_waits_twice_as_long_each_time_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = f"date +%s.%N >> times; if [ $n -lt 4 ]; then exit 1; fi; {WAIT}"
    cluster = Cluster(tmp_path, worker=worker, chief=when("worker0", 4), back_off=0.4, longest_back_off=1.0)
    assert cluster.run(monkeypatch) == 0
    first, *later = (float(line) for line in (tmp_path / "times").read_text().split())
    assert len(later) == 3
    for wait in (0.4, 0.8, 1.0):
        second = later.pop(0)
        assert second - first >= wait
        first = second
    assert [line.partition(" (")[0] for line in cluster.said[1::2]] == [
        f"starting worker-0 again in {wait} s" for wait in ("0.4", "0.8", "1")
    ]
    assert [cluster.starts(name) for name in ("chief0", "worker1", "ps0")] == [1, 1, 1]


def test_a_worker_that_waits_is_no_process_of_the_run(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    scripts = {"chief": "sleep 1; exit 0", "worker": "exit 1", "ps": WAIT}
    tasks = [Task(role, 0, ("sh", "-c", script), os.environ, role == "worker") for role, script in scripts.items()]
    supervisor = Supervisor(
        lambda: tasks, tmp_path, Limits(back_off=30), print, note=lambda outcome: seen.append({*outcome.process_ids})
    )
    begin = time.monotonic()
    assert supervisor.run() == 0
    assert time.monotonic() - begin < 20
    assert seen == [{"chief-0", "worker-0", "ps-0"}, {"chief-0", "ps-0"}, set()]


def test_restarts_of_workers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, worker="exit 1", task_restarts=2)
    assert cluster.run(monkeypatch) == 1
    assert cluster.starts("worker0") == 3
    expected = "giving up: worker-0 ended with exit code 1, and single tasks were started again 2 times already"
    assert cluster.said[-1] == expected


@pytest.mark.parametrize("role", ["chief", "worker", "ps"])
def test_a_mistake_of_the_user_is_not_tried_again(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path, **{role: "exit 2"})
    assert cluster.run(monkeypatch) == 2
    assert cluster.starts(f"{role}0") == 1
    assert cluster.supervisor.outcome.restarts == cluster.supervisor.outcome.task_restarts == 0


def test_final_codes_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Cluster(tmp_path, chief="exit 7", final_codes=frozenset({0, 2, 7})).run(monkeypatch) == 7


def test_a_program_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    tasks = [Task("chief", 0, ("sleep", "60"), os.environ), Task("ps", 0, ("/no/such/program",), os.environ)]
    supervisor = Supervisor(lambda: tasks, tmp_path, Limits(), print)
    with pytest.raises(FileNotFoundError):
        supervisor.run()
    assert not any(alive(pid) for pid in supervisor.outcome.process_ids.values())
    assert supervisor.outcome.process_ids.keys() == {"chief-0"}


def test_what_a_task_has_started_ends_with_it(tmp_path: Path) -> None:
    process = TaskProcess(
        ("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; kill -9 $$"), os.environ, tmp_path / "log"
    )
    wait_for(lambda: process.poll() is not None)
    assert process.code == -signal.SIGKILL
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(child))


RUNNER = """
    import os, sys
    from pathlib import Path
    from tfdlrm.distribute.supervisor import Limits, Supervisor, Task

    folder, chief = Path(sys.argv[1]), sys.argv[2]
    scripts = [("chief", chief), ("worker", "exec sleep 60"), ("ps", "exec sleep 60")]
    tasks = [Task(r, 0, ("sh", "-c", s), os.environ, r == "worker") for r, s in scripts]
    def note(outcome):
        if len(outcome.process_ids) == 3:
            (folder / "new").write_text(" ".join(map(str, outcome.process_ids.values())))
            (folder / "new").rename(folder / "pids")
    limits = Limits(stop_seconds=float(sys.argv[3]))
    sys.exit(Supervisor(lambda: tasks, folder, limits, print, print, note).run())
"""


class Runner:
    """A supervisor in a process of its own."""

    def __init__(self, folder: Path, chief: str, stop_seconds: float = 10) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RUNNER), folder, chief, str(stop_seconds)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for((folder / "pids").exists)
        self.pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        assert all(alive(pid) for pid in self.pids)

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=20)
        assert not any(alive(pid) for pid in self.pids)
        return self.process.returncode, output


CHECKPOINTING = "trap 'echo saved; exit 143' TERM; echo ready; while true; do sleep 0.05; done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_chief_save(number: signal.Signals, tmp_path: Path) -> None:
    runner = Runner(tmp_path, CHECKPOINTING)
    wait_for(lambda: "ready" in (tmp_path / "chief-0.log").read_text())
    os.killpg(runner.process.pid, number)  # as a terminal does it: to the runner's group
    code, output = runner.end()
    assert code == 143
    assert output.splitlines()[-2:] == ["stopping: chief-0 has 10 s to write a checkpoint", "saved"]


def test_a_chief_without_a_handler_ends_by_the_signal(tmp_path: Path) -> None:
    runner = Runner(tmp_path, WAIT)
    runner.process.terminate()
    assert runner.end()[0] == 143


@pytest.mark.parametrize("again", [True, False])
def test_a_deaf_chief_is_ended(again: bool, tmp_path: Path) -> None:
    runner = Runner(tmp_path, "trap '' TERM; echo ready; while true; do sleep 0.05; done", 60 if again else 0.3)
    wait_for(lambda: "ready" in (tmp_path / "chief-0.log").read_text())
    runner.process.terminate()
    if again:
        time.sleep(0.3)
        runner.process.terminate()
    assert runner.end()[0] == 128 + signal.SIGKILL


def test_a_killed_runner_leaves_no_orphans(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "trap '' TERM; while true; do sleep 0.05; done")
    runner.process.kill()
    runner.process.wait()
    until = time.monotonic() + 5
    while [pid for pid in runner.pids if alive(pid)] and time.monotonic() < until:
        time.sleep(0.01)
    runner.process.stdout.close()
    assert runner.pids
    assert [pid for pid in runner.pids if alive(pid)] == []


def test_a_program_does_not_start_once_its_starter_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = tied(["touch", str(tmp_path / "made")], signal.SIGKILL)
    assert subprocess.run(command, check=False).returncode == 0
    (tmp_path / "made").unlink()
    command[command.index(str(os.getpid()))] = str(gone.pid)
    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGKILL
    assert not (tmp_path / "made").exists()
