"""Does a sweep find settings that are better on rows it never saw? Killed once on the way, its memory watched.

    python -m benchmarks.sweep_proof [--trials 20] [--rows 60000] [--work-dir DIR] [--json FILE]

A sweep over planted rows, killed with SIGKILL after a few trials and gone on with by the same command. Then the recipe
and the best of the sweep are trained anew with three seeds that no trial had, and judged on test rows that no trial
looked at. It fails (exit code 1) unless the found settings have the lower mean log loss there, no trial that had ended
was run again, and the memory of the process that ran the trials grew by at most a tenth over them.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w

from tfdlrm.pipelines.cli import recipe
from tfdlrm.spec.config import load_config, stated_values
from tfdlrm.tuning.sweep_config import load_sweep

_SEEDS = (1001, 1002, 1003)
_MOST_GROWTH = 0.10


def main() -> int:
    """Run the sweep, then judge what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="trials of the sweep (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=60_000, help="planted rows (default: %(default)s)")
    parser.add_argument("--kill-after", type=int, default=5, help="trials before the kill (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, help="where everything lies (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures to a file")
    args = parser.parse_args()
    if args.work_dir is not None:
        return _prove(args, args.work_dir)
    with tempfile.TemporaryDirectory(prefix="tfdlrm-sweep-") as folder:
        return _prove(args, Path(folder))


def _prove(args: argparse.Namespace, folder: Path) -> int:
    root = folder / "sweep"
    command = [sys.executable, "-m", "tfdlrm.pipelines.sweep", "--work-dir", str(root), "--trials", str(args.trials)]
    command += ["--set", f"data.planted.rows={args.rows}"]
    started = time.monotonic()
    before = _killed(command, root, args.kill_after)
    subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    after = {path.parent.name: path.read_bytes() for path in (root / "trials").glob("*/result.json")}
    trials = pl.read_csv(root / "trials.csv")
    figures: dict[str, Any] = {
        "trials": trials.height,
        "completed": int((trials["status"] == "completed").sum()),
        "sweep_seconds": seconds,
        "trials_before_the_kill": len(before),
        "run_again": sorted(name for name, content in before.items() if after.get(name) != content),
        # The two processes are not one: what may not grow is each over its own trials.
        "memory": [
            _memory(trials.filter(pl.col("trial").is_in([int(name) for name in names])))
            for names in (set(before), after.keys() - before.keys())
            if names
        ],
    }
    base = load_config(recipe("demo"), [f"data.planted.rows={args.rows}", *load_sweep(recipe("sweep")).set])
    default = folder / "default.toml"
    default.write_text(tomli_w.dumps(stated_values(base)), encoding="utf-8")
    for name, path in (("default", default), ("found", root / "best.toml")):
        figures[name] = [_judged(path, seed, folder / f"{name}-{seed}") for seed in _SEEDS]
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n", encoding="utf-8")
    return _verdict(figures, args.trials)


def _killed(command: list[str], root: Path, trials: int) -> dict[str, bytes]:
    """Start the sweep, kill it once some trials have ended, and return what they left."""
    process = subprocess.Popen(command)
    while len(list((root / "trials").glob("*/result.json"))) < trials:
        if process.poll() is not None:
            raise SystemExit(f"the sweep ended by itself, with exit code {process.returncode}")
        time.sleep(0.1)
    time.sleep(2)  # so that the next trial is under way
    process.send_signal(signal.SIGKILL)
    process.wait()
    return {path.parent.name: path.read_bytes() for path in (root / "trials").glob("*/result.json")}


def _memory(trials: pl.DataFrame) -> dict[str, float]:
    own = trials.sort("trial")["parent_bytes"].to_list()
    return {"first": own[0], "last": own[-1], "largest": max(own), "growth": max(own) / own[0] - 1}


def _judged(config: Path, seed: int, work_dir: Path) -> dict[str, float]:
    """Train a recipe with a seed and return its metrics on test rows."""
    command = [sys.executable, "-m", "tfdlrm.pipelines.criteo", "--config", str(config), "--work-dir", str(work_dir)]
    command += ["--stages", "prepare,train,evaluate", "--set", f"seed={seed}", "--set", "evaluate.baseline=false"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    judged = json.loads((work_dir / "metrics.json").read_text(encoding="utf-8"))["stages"]["evaluate"]
    assert judged["split"] == "test"
    metrics = judged["metrics"][judged["exported"]]
    return {"seed": seed, "log_loss": metrics["log_loss"], "auc": metrics["auc"]}


def _verdict(figures: dict[str, Any], trials: int) -> int:
    mean = {name: np.mean([one["log_loss"] for one in figures[name]]) for name in ("default", "found")}
    faults = []
    if not mean["found"] < mean["default"]:
        faults.append(f"test log loss {mean['found']:.5f}, no lower than the default's {mean['default']:.5f}")
    if figures["run_again"]:
        faults.append(f"trials run again: {figures['run_again']}")
    if figures["trials"] != trials:
        faults.append(f"{figures['trials']} trials in place of {trials}")
    growth = max(own["growth"] for own in figures["memory"])
    if growth > _MOST_GROWTH:
        faults.append(f"memory grew by {growth:.1%}")
    print(
        f"test log loss: default {mean['default']:.5f}, found {mean['found']:.5f}; "
        f"memory of the parent grew by {growth:.1%} at most"
    )
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
