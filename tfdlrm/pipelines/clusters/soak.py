"""`cluster soak`: runs whose processes are killed at random, and a check that nothing is lost but time."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import CheckFailed, load_tensorflow, recipe
from tfdlrm.pipelines.clusters.arguments import read_job
from tfdlrm.pipelines.console import Console
from tfdlrm.spec.arguments import natural, positive, positive_number
from tfdlrm.spec.errors import ConfigError

RESULTS = "soak.json"
_TRAINER_SHARE = 0.2  # of the kills hit a trainer on one device


def add_parser(subparsers: Any) -> None:
    """Add the command to those of `cluster`."""
    parser = subparsers.add_parser(
        "soak",
        description=__doc__.partition(": ")[2],
        help="kill processes of a run at random, and check that nothing is lost",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="recipe of the cluster (TOML; default: cluster_soak)")
    add("--work-dir", type=Path, metavar="DIR", default=Path("runs/soak"), help="new folder (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change the cluster or the run; repeatable")
    add("--minutes", type=positive_number, default=15, metavar="N", help="at most so long (default: %(default)s)")
    add("--kills", type=positive, default=20, metavar="N", help="kills, all together (default: %(default)s)")
    add("--seed", type=natural, default=0, metavar="N", help="of who is killed and when (default: %(default)s)")
    add(
        "--band",
        type=positive_number,
        default=0.01,
        metavar="AUC",
        help="how far a final AUC may be from that of the run without kills (default: %(default)s)",
    )
    parser.set_defaults(run=run, stages="prepare,train")


def run(args: argparse.Namespace) -> int:
    """Run once in peace, once on one device and once on a cluster under kills, and compare.

    Raises:
        CheckFailed: an epoch is lost, a run went on from the wrong place, an AUC is out of the band, a loss was not
            noticed, or the time is up.
        UserError: a recipe or an argument cannot be used.
    """
    args.config = args.config or recipe("cluster_soak")
    job = read_job(args)
    folder: Path = args.work_dir
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"`--work-dir` must be new or empty. Received: {folder}.")
    load_tensorflow()
    from tfdlrm.pipelines.clusters.fire import ClusterUnderFire, TrainerUnderFire

    deadline = time.monotonic() + 60 * args.minutes
    console = Console(folder / "soak.log")
    chance = random.Random(args.seed)
    of_trainer = round(_TRAINER_SHARE * args.kills)
    console.say(f"soak:      {args.kills} kills, seed {args.seed}, at most {args.minutes:g} minutes, in {folder}")
    runs = {
        "quiet": (ClusterUnderFire(job, args.set, folder / "quiet"), 0),
        "trainer": (TrainerUnderFire(job, args.set, folder / "trainer"), of_trainer),
        "cluster": (ClusterUnderFire(job, args.set, folder / "cluster"), args.kills - of_trainer),
    }
    reports, wrong = {}, []
    for name, (under_fire, kills) in runs.items():
        report = reports[name] = under_fire.run(kills, chance, deadline)
        found = under_fire.faults(report)
        if name != "quiet" and abs(report.auc - reports["quiet"].auc) > args.band:
            found.append(f"AUC {report.auc:.4f} is more than {args.band:g} from {reports['quiet'].auc:.4f}")
        wrong += [f"{name}: {fault}" for fault in found]
        hit = ", ".join(f"{count} x {role}" for role, count in sorted(Counter(k.role for k in report.kills).items()))
        console.say(
            f"{name + ':':<10} {report.steps} steps, {report.repeated_steps} of them twice, AUC {report.auc:.4f}; "
            f"{len(report.kills)} kills ({hit or 'none'}), {report.recoveries} recoveries in {report.seconds:,.0f} s"
        )
    made = sum(len(report.kills) for report in reports.values())
    recovered = sum(report.recoveries for report in reports.values())
    content = {name: asdict(report) for name, report in reports.items()}
    summary = {"kills": made, "recoveries": recovered, "faults": wrong, "seed": args.seed, "runs": content}
    write_atomic(folder / RESULTS, json.dumps(summary, indent=1) + "\n")
    console.say(f"soak:      {made} kills, {recovered} recoveries")
    if wrong:
        raise CheckFailed("; ".join(wrong))
    console.say(f"soak:      no epoch lost, no wrong resume, every AUC within {args.band:g} of the run without kills")
    return 0
