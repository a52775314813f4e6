"""A training process killed with SIGKILL and started again ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.pipelines.small_runs import write_recipe
from tfdlrm.data.planted import write_planted

ROOT = Path(__file__).resolve().parents[2]


def start(recipe: Path, raw: Path, work_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tfdlrm.pipelines.criteo", "--config", recipe, "--raw", raw]
    return subprocess.Popen(
        [*command, "--work-dir", work_dir, "--stages", "prepare,train"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def steps(work_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (work_dir / "checkpoints").glob("step-*"))


def contents(checkpoint: Path) -> dict[str, bytes | dict[str, bytes]]:
    """Return all weights and slots of a checkpoint; an archive's own bytes hold times."""
    found: dict[str, bytes | dict[str, bytes]] = {}
    for path in checkpoint.iterdir():
        if path.suffix == ".npz":
            with np.load(path) as file:
                found[path.name] = {name: file[name].tobytes() for name in file.files}
        elif path.suffix == ".npy":
            found[path.name] = path.read_bytes()
    return found


def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    training = {"deterministic": True, "epochs": 2, "batch_size": 64, "checkpoint_steps": 50, "keep_checkpoints": 100}
    recipe, raw = write_recipe(tmp_path, train=training, model={"dropout": 0.1}), tmp_path / "rows.tsv"
    write_planted(raw, 6000)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"

    other = start(recipe, raw, undisturbed)
    process = start(recipe, raw, disturbed)
    deadline = time.monotonic() + 240
    while not steps(disturbed) or steps(disturbed)[-1] < 50:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = steps(disturbed)[-1]
    assert 50 <= killed_at < 150  # 4,800 samples: 75 steps an epoch

    output = finish(start(recipe, raw, disturbed))
    assert f"going on from step-{killed_at:010d}" in output
    finish(other)
    assert steps(disturbed) == steps(undisturbed) == [50, 75, 100, 150]
    for step in steps(undisturbed)[-2:]:
        name = f"step-{step:010d}"
        assert contents(disturbed / "checkpoints" / name) == contents(undisturbed / "checkpoints" / name)
    assert not list((disturbed / "checkpoints").glob(".tmp*"))
