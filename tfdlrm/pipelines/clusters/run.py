"""`cluster run`: a chief, workers and parameter servers on this machine, kept alive until the run is done."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.distribute.local_tasks import limits_of, local_tasks
from tfdlrm.distribute.supervisor import Outcome, Supervisor
from tfdlrm.pipelines.cli import load_tensorflow, refuse_unreadable
from tfdlrm.pipelines.clusters import task
from tfdlrm.pipelines.clusters.arguments import Job, add_job_arguments, read_job
from tfdlrm.pipelines.console import Console
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.tf_config import VARIABLE

RESULTS = "cluster.json"
_ROOT = Path(__file__).resolve().parents[3]


def add_parser(subparsers: Any) -> None:
    """Add the command to those of `cluster`."""
    parser = subparsers.add_parser(
        "run",
        description=__doc__.partition(": ")[2],
        help="run on processes of this machine; with TF_CONFIG in the environment: as `task`",
        allow_abbrev=False,
    )
    add_job_arguments(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start afresh in a work dir that holds a run; rows prepared by an equal recipe are kept",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the cluster, or, where the environment says that this process is one of its tasks, that task.

    Returns:
        The chief's exit code; 1 where it was started again as often as the recipe allows.

    Raises:
        UserError: a recipe or an argument cannot be used.
    """
    if VARIABLE in os.environ:
        if args.overwrite:
            raise ConfigError(
                f"`--overwrite` must not be given where `{VARIABLE}` says who is in the cluster: a chief that is "
                "started again would start afresh."
            )
        return task.run(args)
    job = read_job(args)
    if "prepare" in job.stages:
        refuse_unreadable(job.run)
    # What would be refused is refused before a process is started. The chief opens it again, for itself.
    with WorkDir(job.work_dir).open(job.run, args.overwrite, _fits(job) if args.overwrite else lambda: None):
        pass
    return run_locally(job, args.set)


def run_locally(job: Job, overrides: list[str], note: Callable[[Outcome], None] = lambda outcome: None) -> int:
    """Run a cluster on this machine and leave what happened in `logs/cluster.json` of the work dir.

    Args:
        job: What to run.
        overrides: The `--set` texts that it was read with, for the tasks.
        note: Called with what happened so far whenever that changes.

    Returns:
        As `run`.
    """
    cluster, logs = job.cluster, job.work_dir / "logs"
    console = Console(logs / "cluster.log")
    argv = [sys.executable, "-m", "tfdlrm.pipelines.cluster", "task", "--config", str(job.file)]
    argv += ["--work-dir", str(job.work_dir), "--stages", ",".join(job.stages)]
    for override in overrides:
        argv += ["--set", override]

    def keep(outcome: Outcome) -> None:
        write_atomic(logs / RESULTS, json.dumps(outcome.as_dict(), indent=1) + "\n")
        note(outcome)

    supervisor = Supervisor(
        lambda: local_tasks(cluster, argv, task_environment()),
        logs,
        limits_of(cluster),
        say=lambda line: console.say(f"{'cluster:':<10} {line}"),
        show=say,
        note=keep,
    )
    servers = f" and {cluster.servers} parameter servers" if cluster.servers else ""
    console.say(f"{'cluster:':<10} {cluster.workers} workers{servers}, logs in {logs}")
    code = supervisor.run()
    console.say(f"{'cluster:':<10} {_in_words(supervisor.outcome)}")
    return code


def task_environment() -> dict[str, str]:
    """Return the environment of a process of ours: this package in reach, and its lines at once."""
    paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}


def _fits(job: Job) -> Callable[[], None]:
    """Return the check that what is about to be dropped can be replaced: it loads TensorFlow, so only where asked."""

    def check() -> None:
        load_tensorflow()
        from tfdlrm.pipelines.run import refuse_misfit

        refuse_misfit(job.run)

    return check


def _in_words(outcome: Outcome) -> str:
    deaths = ", ".join(f"{count} x {role}" for role, count in sorted(outcome.deaths.items())) or "none"
    return (
        f"ended with exit code {outcome.code}; lost: {deaths}; started again: {outcome.task_restarts} x one worker, "
        f"{outcome.restarts} x all"
    )
