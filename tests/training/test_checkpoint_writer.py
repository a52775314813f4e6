"""Checkpoints written on a thread: what they hold, what fails and when it is told, and what stays."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.data.test_prepare_resumed import on_a_small_disk
from tests.training.test_trainer import Rows, config, fresh
from tfdlrm.training.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_train_state,
    save_checkpoint,
)
from tfdlrm.training.checkpoint_files import NotFiniteError
from tfdlrm.training.checkpoint_writer import CheckpointWriter
from tfdlrm.training.divergence import DivergedError
from tfdlrm.training.free_memory import available_memory
from tfdlrm.training.trainer import train


@pytest.fixture(scope="module")
def model():
    """Return a model that has taken a few steps."""
    model = fresh(config())
    model.fit(Rows().batches(0, 0), verbose=0)
    return model


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.npy")}


def add_one(model) -> None:
    for weight in model.weights:
        weight.assign_add(tf.ones_like(weight))


def test_both_ways_write_the_same_files(model, tmp_path):
    """What is written is the model as it was when `save` returned, whatever happens to it meanwhile."""
    state = TrainState(step=11, history=[{"step": 3}])
    blocking = save_checkpoint(model, tmp_path / "blocking", state)
    written = dict(files(blocking))
    with CheckpointWriter(model, tmp_path / "background", keep=2) as writer:
        writer.save(state)
        state.history[0]["step"] = 4
        add_one(model)
    (path,) = checkpoints(tmp_path / "background")
    assert files(path) == written
    with np.load(path / "dense.npz") as one, np.load(blocking / "dense.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
    assert read_train_state(path).history == [{"step": 3}]
    load_checkpoint(model, path)
    assert [p.name for p in (tmp_path / "background").iterdir()] == [path.name]


def test_older_ones_go_once_the_new_one_is_complete(model, tmp_path):
    with CheckpointWriter(model, tmp_path, keep=1) as writer:
        for step in range(1, 6):
            writer.save(TrainState(step=step, best_step=2))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000000002", "step-0000000005"]


def test_pruning_never_takes_the_only_sound_one(model, tmp_path):
    """Where the newer ones fail to be written, or are damaged, the last good one stays."""
    writer = CheckpointWriter(model, tmp_path, keep=1)
    writer.save(TrainState(step=1))
    writer.wait()
    stack = model.embedding.stacks[0]
    before = stack.numpy()
    stack.scatter_update(tf.IndexedSlices(tf.constant([[np.nan] * 4]), tf.constant([3])))
    writer.save(TrainState(step=5))
    with pytest.raises(NotFiniteError, match="rows of a table became infinite or nan between steps 1 and 5"):
        writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    stack.assign(before)
    prune_checkpoints(tmp_path, keep=1, best_step=7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001"]
    writer.wait()  # told once
    with writer:
        writer.save(TrainState(step=6))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000006"]


def test_too_little_memory_for_a_copy_is_told_once_and_training_waits(model, tmp_path):
    lines: list[str] = []
    for room, kept in ((0, True), (None, True), (10**9, False)):
        lines.clear()
        folder = tmp_path / str(room)
        with CheckpointWriter(model, folder, 9, log=lines.append, memory=lambda room=room: room) as writer:
            for step in (1, 2):
                writer.save(TrainState(step=step))
                if kept:
                    assert len(checkpoints(folder)) == step
        assert len(checkpoints(folder)) == 2
        assert len(lines) == kept
        if kept:
            assert lines[0].startswith("checkpoints are written while training waits: a copy of 0.0 GB of rows is more")
    # 55 rows of 4 float32 and of one slot each: 1,100 bytes, 80% of 1,375.
    for room, said in ((1374, 1), (1375, 0)):
        lines.clear()
        with CheckpointWriter(
            model, tmp_path / str(room), 9, log=lines.append, memory=lambda room=room: room
        ) as writer:
            writer.save(TrainState(step=1))
        assert len(lines) == said


def test_memory_that_is_available():
    total = next(
        int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines() if "Total" in line
    )
    assert 0 < available_memory() < total


def test_a_table_that_blows_up_is_a_divergence_told_after_the_round_in_which_it_did(tmp_path):
    rows, settings, done = Rows(330, 32), config(epochs=1, checkpoint_steps=4), []
    model = fresh(settings)
    stack = model.embedding.stacks[0]

    def blow_up(samples):
        done.append(samples)
        if sum(done) == 8 * 32:  # after the second round; no row reads it
            stack.scatter_update(tf.IndexedSlices(tf.constant([[np.inf] * 4]), tf.constant([29])))

    with pytest.raises(DivergedError, match="rows of a table became infinite or nan between steps 4 and 8"):
        train(model, settings, rows, tmp_path, progress=blow_up)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000004"]


def test_checkpoints_by_the_clock_change_nothing_but_their_number(tmp_path):
    rows, settings = Rows(3200), config(epochs=1, checkpoint_seconds=1e-3, keep_checkpoints=100)
    model = fresh(settings)
    train(model, settings, rows, tmp_path / "often", lambda: rows.batches(0, 0))
    often = [int(path.name[5:]) for path in checkpoints(tmp_path / "often")]
    assert often == [20, 40, 60, 80, 100]
    other, seldom = fresh(settings), settings.model_copy(update={"checkpoint_seconds": 1e6})
    result = train(other, seldom, rows, tmp_path / "seldom", lambda: rows.batches(0, 0))
    assert [path.name for path in checkpoints(tmp_path / "seldom")] == ["step-0000000100"]
    for first, second in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(first, second, rtol=2e-4, atol=1e-6)
    ended = read_train_state(tmp_path / "often" / "step-0000000100")
    assert (ended.epoch, ended.samples, ended.round_samples) == (1, 3200, 0)
    assert ended.history[0]["training_loss"] == pytest.approx(result.state.history[0]["training_loss"], rel=1e-3)


FULL_DISK = """
import sys
import time
from pathlib import Path
from tests.training.test_trainer import Rows, config, fresh
from tfdlrm.pipelines.cli import run_command
from tfdlrm.training.checkpoint import checkpoints, load_checkpoint
from tfdlrm.training.trainer import train

disk, writing = Path(sys.argv[1]), sys.argv[2]
rows, settings = Rows(), config(checkpoint_steps=4, epochs=1, keep_checkpoints=9, checkpoint_writing=writing)
model = fresh(settings)

seen = 0

def fill(samples):
    global seen
    seen += samples
    if seen > 4 * settings.batch_size and not (disk / "filler").exists():
        until = time.monotonic() + 60
        while not (disk / "run" / "step-0000000004").exists():  # it may still be written, in the background
            assert time.monotonic() < until
            time.sleep(0.01)
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

code = run_command(lambda: train(model, settings, rows, disk / "run", progress=fill) and 0)
assert [path.name for path in (disk / "run").iterdir()] == ["step-0000000004"], list((disk / "run").iterdir())
load_checkpoint(model, checkpoints(disk / "run")[0])
(disk / "filler").unlink()
assert train(model, settings, rows, disk / "run").state.step == 11
sys.exit(code)
"""


@pytest.mark.parametrize("writing", ["background", "blocking"])
def test_a_full_disk_is_one_line_and_the_checkpoints_before_stay(tmp_path, writing):
    if on_a_small_disk(tmp_path, "1M", "true").returncode:
        pytest.skip("no small file system can be mounted here")
    done = on_a_small_disk(tmp_path, "200k", sys.executable, "-c", FULL_DISK, str(tmp_path), writing)
    lines = [line for line in done.stderr.splitlines() if line.startswith("tfdlrm: ")]
    assert (done.returncode, lines) == (2, ["tfdlrm: No space left on device."]), done.stderr
    assert "Traceback" not in done.stderr
