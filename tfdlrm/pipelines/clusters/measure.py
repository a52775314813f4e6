"""`cluster measure`: how long steps take on clusters of this machine, and the planner's cost model fitted to them."""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.distribute.cost_model import StepMeasurement, fit_cost_model
from tfdlrm.pipelines.cli import CheckFailed
from tfdlrm.pipelines.clusters.arguments import read_job
from tfdlrm.pipelines.clusters.run import run_locally
from tfdlrm.pipelines.console import Console
from tfdlrm.pipelines.table import say_tables
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.report.html import Table
from tfdlrm.spec.arguments import positives
from tfdlrm.spec.errors import ConfigError

RESULTS = "steps.json"
_ROUNDS = 4


def add_parser(subparsers: Any) -> None:
    """Add the command to those of `cluster`."""
    parser = subparsers.add_parser(
        "measure",
        description=__doc__.partition(": ")[2],
        help="time steps on clusters of this machine, for the planner",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="recipe of the cluster (TOML; default: cluster_local)")
    add("--work-dir", type=Path, metavar="DIR", default=Path("runs/measure"), help="new folder (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the cluster or the run; repeatable")
    add("--servers", type=positives, default=(1, 2, 4), metavar="N,N,...", help="numbers of servers (default: 1,2,4)")
    add("--workers", type=positives, default=(1, 2), metavar="N,N,...", help="numbers of workers (default: 1,2)")
    add("--batch-sizes", type=positives, default=(512, 2048), metavar="N,N,...", help="default: 512,2048")
    add("--widths", type=positives, default=(16, 64), metavar="N,N,...", help="of tables (default: 16,64)")
    add("--steps", type=int, default=40, metavar="N", help="steps of each, after as many others (default: 40)")
    parser.set_defaults(run=run, stages="prepare,train")


def run(args: argparse.Namespace) -> int:
    """Train on each cluster in turn, time its steps, and fit.

    Raises:
        CheckFailed: a run failed; its folder has the logs.
        UserError: a recipe or an argument cannot be used.
    """
    folder: Path = args.work_dir
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"`--work-dir` must be new or empty. Received: {folder}.")
    console = Console(folder / "measure.log")
    measured: list[StepMeasurement] = []
    for workers, servers, batch_size, width in product(args.workers, args.servers, args.batch_sizes, args.widths):
        name = f"{workers}x{servers}_batch{batch_size}_width{width}"
        measured.append(_measured(args, folder / name, workers, servers, batch_size, width))
        console.say(f"{'measure:':<10} {name}: {1000 * measured[-1].seconds_per_step:,.1f} ms a step of each worker")
        steps = [json.loads(step.model_dump_json()) for step in measured]
        write_atomic(folder / RESULTS, json.dumps(steps, indent=1) + "\n")
    model = fit_cost_model(measured)
    rows = [
        [
            *(str(step.workers), str(step.servers), str(step.batch_size), str(step.ops)),
            *(f"{sum(step.lookups_per_server):,.0f}", f"{sum(step.wire_bytes_per_server) / 1e6:,.2f}"),
            *(f"{1000 * step.seconds_per_step:,.1f}", f"{1000 * model.predict(step).seconds:,.1f}"),
        ]
        for step in measured
    ]
    columns = ["workers", "servers", "batch", "operations", "lookups", "MB sent", "ms measured", "ms predicted"]
    say_tables(Table(model.caption, columns, rows))
    for number in ("step", "sample", "op", "lookup", "byte"):
        console.say(f"{'measure:':<10} seconds_per_{number} = {getattr(model, f'seconds_per_{number}'):.3g}")
    console.say(f"{'measure:':<10} steps in {folder / RESULTS}, for `cluster plan --measurements`")
    return 0


def _measured(
    args: argparse.Namespace, folder: Path, workers: int, servers: int, batch_size: int, width: int
) -> StepMeasurement:
    """Train for some rounds and return what the later ones took."""
    rows = args.steps * _ROUNDS * batch_size * workers
    changes = [
        *(f"workers={workers}", f"servers={servers}", f"train.batch_size={batch_size}"),
        *(f"model.embedding_dim={width}", f"model.bottom_units=[64, {width}]", "train.epochs=1"),
        *(f"train.checkpoint_steps={args.steps * workers}", "train.eval_every_steps=0"),
        # One unit a worker and round: each opens its rows anew, which is no part of a step.
        f"distribute.steps_per_unit={args.steps}",
        f"data.planted.rows={rows * 10 // 8}",  # eight in ten train
    ]
    own = argparse.Namespace(config=args.config, set=[*args.set, *changes], stages=args.stages, work_dir=folder)
    job = read_job(own)
    with WorkDir(folder).open(job.run):  # the chief opens it again, for itself
        pass
    if run_locally(job, own.set) != 0:
        raise CheckFailed(f"a run failed, and {folder} has its logs.")
    trained = WorkDir(folder).stage("train") or {}
    plan = json.loads((folder / "report" / "placement.json").read_text(encoding="utf-8"))
    # The first round waits for graphs to be made; the last is short.
    rates = [rate for each in trained["worker_rates"][1:-1] for rate in each.values()]
    seconds = sum(spent for _, spent in rates) / sum(steps for steps, _ in rates)
    for bulky in ("data", "raw", "checkpoints"):
        shutil.rmtree(folder / bulky)
    return StepMeasurement(**plan["work"], seconds_per_step=seconds)
