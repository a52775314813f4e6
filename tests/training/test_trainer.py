import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.models.build import build
from tfdlrm.spec.errors import DataError, SpecError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.train_config import TrainConfig
from tfdlrm.training.checkpoint import TrainState, checkpoints, load_checkpoint, read_train_state, save_checkpoint
from tfdlrm.training.checkpoint_files import read_state, state_text
from tfdlrm.training.divergence import DivergedError
from tfdlrm.training.trainer import compile_model, predict, train

SPEC = FeatureSpec(
    dense=[{"name": "I"}],
    sparse=[{"name": "a", "table": "a"}, {"name": "b", "table": "b", "hotness": 2}, {"name": "c", "table": "c"}],
    tables=[{"name": n, "vocabulary_size": v, "embedding_dim": 4} for n, v in (("a", 30), ("b", 20), ("c", 5))],
)
MODEL = ModelConfig(embedding_dim=4, bottom_units=(8, 4), top_units=(8, 1), dropout=0.2)


class Rows:
    """Rows in memory, in an order that follows from the epoch alone."""

    def __init__(self, rows=330, batch_size=32, seed=0):
        rng = np.random.default_rng(seed)
        self.rows, self.batch_size = rows, batch_size
        self.sparse = rng.integers(0, 5, (rows, 4)).astype(np.int32)
        self.dense = rng.normal(size=(rows, 1)).astype(np.float32)
        logit = self.dense[:, 0] + self.sparse[:, 0] - 2.0
        self.label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)[:, None]

    def batches(self, epoch, step):
        order = np.random.default_rng(epoch).permutation(self.rows)[step * self.batch_size :]
        features = {"dense": self.dense[order], "sparse": self.sparse[order]}
        return tf.data.Dataset.from_tensor_slices((features, self.label[order])).batch(self.batch_size)


def config(**changes):
    base = {
        "batch_size": 32,
        "epochs": 3,
        "embedding": {"name": "rowwise_adagrad", "learning_rate": 0.1},
        "dense": {"name": "adam", "learning_rate": 0.01},
        "schedule": {"warmup_steps": 5},
    }
    return TrainConfig.model_validate({**base, **changes})


def fresh(settings, seed=1):
    model = build(MODEL.name, SPEC, MODEL, seed=seed)
    compile_model(model, settings)
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "deepfm"}, r"the model must be DLRM. Received: DeepFM"),
        (
            {"top_units": (9, 1)},
            r"shape of `top/dense_0/kernel` must be \(10, 8\) as in .* Received: a model with \(10, 9\)",
        ),
        ({"interaction_itself": True, "top_units": (8, 1)}, r"shape of `top/dense_0/kernel` must be \(10, 8\)"),
        ({"top_units": (8, 8, 1)}, r"shape of `top/dense_1/kernel` must be \(8, 1\) .* with \(8, 8\)"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_and_nothing_is_changed(tmp_path, other, message):
    path = save_checkpoint(fresh(config()), tmp_path, TrainState(step=1))
    settings = MODEL.model_copy(update=other)
    model = build(settings.name, SPEC, settings, seed=2)
    compile_model(model, config())
    before = model.get_weights()
    with pytest.raises(DataError, match=message):
        load_checkpoint(model, path)
    for weight, value in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, value)


def test_weights_of_equal_shapes_that_mean_another_network_are_refused(tmp_path):
    def crossed(pair):
        model = build("wide_deep", SPEC, {"embedding_dim": 4, "top_units": (8, 1), "crosses": [pair], "cross_rows": 9})
        compile_model(model, config())
        return model

    path = save_checkpoint(crossed(("a", "b")), tmp_path, TrainState(step=1))
    with pytest.raises(DataError, match=r"`crosses` must be \[\['a', 'b'\]\] as in .* Received: \[\['a', 'c'\]\]"):
        load_checkpoint(crossed(("a", "c")), path)


def test_training_learns_and_reports(tmp_path):
    rows, settings = Rows(2000, 32), config(epochs=4)
    model = fresh(settings)
    done, lines = [], []
    result = train(model, settings, rows, tmp_path, lambda: rows.batches(0, 0), done.append, lines.append)
    assert result.state.samples == sum(done) == 4 * 2000
    assert result.state.step == 4 * 63
    assert len(result.state.history) == len(lines) == 4
    assert result.last["log_loss"] < 0.55
    assert result.best["log_loss"] == min(e["log_loss"] for e in result.state.history)
    labels, probabilities, weights = predict(model, rows.batches(0, 0))
    assert weights is None
    assert -np.mean(np.log(np.where(labels == 1, probabilities, 1 - probabilities))) == pytest.approx(
        result.last["log_loss"], rel=1e-4
    )


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Return settings, rows, the trained model and the checkpoints of a run that was not cut."""
    rows, settings = Rows(), config(checkpoint_steps=4, keep_checkpoints=100)
    whole, folder = fresh(settings), tmp_path_factory.mktemp("whole")
    train(whole, settings, rows, folder, lambda: rows.batches(0, 0))
    return settings, rows, whole, checkpoints(folder)


@pytest.mark.parametrize("stop_at", [4, 11, 15])
def test_a_run_cut_anywhere_ends_as_if_it_had_not_been(uncut, tmp_path, stop_at):
    """Rounds of 4 steps, 11 steps an epoch: cuts inside an epoch and at its end."""
    settings, rows, whole, written = uncut
    kept = [p for p in written if int(p.name[5:]) <= stop_at]
    (tmp_path / "cut").mkdir()
    for path in kept:
        shutil.copytree(path, tmp_path / "cut" / path.name)
    resumed = fresh(settings)
    for table in SPEC.tables:  # other weights, so that only the checkpoint can bring the right ones
        resumed.embedding.set_table(table.name, np.ones([table.vocabulary_size, 4]))
    resumed.top.set_weights([np.zeros_like(w) for w in resumed.top.get_weights()])
    done = []
    result = train(resumed, settings, rows, tmp_path / "cut", lambda: rows.batches(0, 0), done.append)
    assert done[0] == read_train_state(kept[-1]).samples
    assert result.state.step == 33
    for first, second in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)
    for first, second in zip(whole.optimizer.weights, resumed.optimizer.weights, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-7)


def test_a_finished_run_is_not_trained_again(tmp_path):
    rows, settings = Rows(), config(epochs=1)
    first = train(fresh(settings), settings, rows, tmp_path, lambda: rows.batches(0, 0))
    again = train(fresh(settings, seed=5), settings, rows, tmp_path, lambda: rows.batches(0, 0))
    assert again.state == first.state
    assert again.best == first.best


def test_early_stopping_keeps_best_and_last(tmp_path):
    rows = Rows(200, 32)
    other = Rows(200, 32, seed=7)
    other.label = 1 - other.label  # what is learnt makes validation worse from the first epoch on
    settings = config(epochs=30, early_stopping=2, keep_checkpoints=1)
    result = train(fresh(settings), settings, rows, tmp_path, lambda: other.batches(0, 0))
    assert result.stopped_early
    losses = [entry["log_loss"] for entry in result.state.history]
    assert len(losses) < 30
    assert np.argmin(losses) == len(losses) - 3
    steps = [int(p.name[5:]) for p in checkpoints(tmp_path)]
    assert steps == [result.state.best_step, result.state.step]
    again = train(fresh(settings), settings, rows, tmp_path, lambda: other.batches(0, 0))
    assert again.state.step == result.state.step


def test_early_stopping_counts_steps_whatever_lies_between(tmp_path):
    rows = Rows(200, 32)  # 7 steps an epoch
    other = Rows(200, 32, seed=7)
    other.label = 1 - other.label
    settings = config(epochs=30, eval_every_steps=5, early_stopping_steps=15)
    result = train(fresh(settings), settings, rows, tmp_path, lambda: other.batches(0, 0))
    steps = [entry["step"] for entry in result.state.history]
    assert result.stopped_early and steps[:5] == [5, 7, 10, 14, 15]
    # Not the third validation after the best ends it, but the first that is 15 steps away.
    assert steps[-2] - result.state.best_step < 15 <= steps[-1] - result.state.best_step
    assert result.state.evaluations_without_gain > 3
    again = train(fresh(settings), settings, rows, tmp_path, lambda: other.batches(0, 0))
    assert again.state.step == result.state.step


def test_validation_inside_an_epoch(tmp_path):
    rows, settings = Rows(), config(epochs=1, eval_every_steps=3)
    result = train(fresh(settings), settings, rows, tmp_path, lambda: rows.batches(0, 0))
    assert [entry["step"] for entry in result.state.history] == [3, 6, 9, 11]


def test_training_ends_after_the_most_steps(tmp_path):
    rows, settings = Rows(), config(epochs=3, max_steps=14)  # of 11 an epoch
    result = train(fresh(settings), settings, rows, tmp_path, lambda: rows.batches(0, 0))
    assert (result.state.step, result.state.epoch, result.state.step_in_epoch) == (14, 1, 3)
    assert result.state.samples == 330 + 3 * 32
    assert [entry["step"] for entry in result.state.history] == [11, 14]
    assert not result.stopped_early
    # More steps go on from there, and end where a run without a stop does.
    longer = config(epochs=3, max_steps=40)
    resumed, whole = fresh(longer), fresh(longer)
    assert train(resumed, longer, rows, tmp_path, lambda: rows.batches(0, 0)).state.step == 33
    train(whole, longer, rows, tmp_path / "whole", lambda: rows.batches(0, 0))
    for first, second in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


def test_divergence_is_an_error_and_keeps_what_was_good(tmp_path):
    rows, settings = Rows(), config(checkpoint_steps=4)
    rows.dense[np.random.default_rng(0).permutation(330)[200]] = np.nan  # in the seventh step
    with pytest.raises(
        DivergedError,
        match="training loss became nan in step 7: batch 6 of epoch 0, counted from 0; in it, `I` of row 8 is nan. The",
    ):
        train(fresh(settings), settings, rows, tmp_path)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-0000000004"]
    model = fresh(settings)
    load_checkpoint(model, checkpoints(tmp_path)[0])
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_rate_that_is_too_large_is_told_by_the_first_batch_whose_loss_is_not_finite(tmp_path):
    """Found by taking the same steps one by one."""
    rows, settings = Rows(), config(dense={"name": "sgd", "learning_rate": 3e12}, schedule={})
    model = fresh(settings)
    alone = {"steps_per_epoch": 1, "verbose": 0}
    losses = [model.fit(rows.batches(0, step).take(1), **alone).history["loss"][0] for step in range(11)]
    first = int(np.flatnonzero(~np.isfinite(losses))[0])
    assert 0 < first < 10
    with pytest.raises(DivergedError, match=f"in step {first + 1}: batch {first} of .* all numbers in it are finite"):
        train(fresh(settings), settings, rows, tmp_path)


def test_a_long_round_ends_soon_after_the_loss_is_not_finite(tmp_path):
    rows, settings, done = Rows(3200), config(epochs=1, accumulation_steps=2), []
    rows.dense[np.random.default_rng(0).permutation(3200)[30 * 32]] = np.inf  # the first row of batch 30 of 100
    with pytest.raises(DivergedError, match="in step 31: batch 30 of epoch 0, .* `I` of row 0 is inf"):
        train(fresh(settings), settings, rows, tmp_path, progress=done.append)
    assert sum(done) == 40 * 32  # 20 steps a call


def test_weights_that_blow_up_in_the_last_step_are_not_saved(tmp_path):
    rows, settings = Rows(64, 32), config(epochs=1, dense={"name": "sgd", "learning_rate": 1e30})
    with pytest.raises(DivergedError, match="became"):
        train(fresh(settings), settings, rows, tmp_path)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize(("row", "what"), [(0, "predictions"), (29, "rows of a table")])
def test_a_table_that_blows_up_is_a_divergence(tmp_path, row, what):
    """Row 0 is read by the rows that validate, row 29 by none."""
    rows, settings = Rows(64, 32), config(epochs=1)
    model = fresh(settings)
    stack, done = model.embedding.stacks[0], []

    def blow_up(samples):
        done.append(samples)
        if sum(done) == rows.rows:  # after the last step
            stack.scatter_update(tf.IndexedSlices(tf.constant([[np.inf] * 4]), tf.constant([row])))

    with pytest.raises(DivergedError, match=f"{what} became infinite or nan between steps 0 and 2"):
        train(model, settings, rows, tmp_path, lambda: rows.batches(0, 0), progress=blow_up)
    assert checkpoints(tmp_path) == []


def saved(tmp_path):
    settings = config()
    model = fresh(settings)
    model.fit(Rows().batches(0, 0), verbose=0)
    return settings, model, save_checkpoint(model, tmp_path, TrainState(step=11, epoch=1))


def test_checkpoint_holds_logical_tables(tmp_path):
    _, model, path = saved(tmp_path)
    for number, table in enumerate(SPEC.tables):
        stored = np.load(path / f"{number:03d}.rows.npy")
        np.testing.assert_array_equal(stored, model.embedding.get_table(table.name))
        assert np.load(path / f"{number:03d}.accumulator.npy").shape == (table.vocabulary_size,)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_altered_files_are_named(tmp_path):
    settings, _, path = saved(tmp_path)
    file = path / "001.rows.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"001.rows.npy: missing or altered"):
        load_checkpoint(fresh(settings), path)
    file.unlink()
    with pytest.raises(DataError, match=r"001.rows.npy: missing or altered"):
        load_checkpoint(fresh(settings), path)


def test_another_spec_or_optimizer_is_refused_by_name(tmp_path):
    settings, _, path = saved(tmp_path)
    content = read_state(path)
    content["spec"]["tables"][1]["vocabulary_size"] = 21
    (path / "state.json").write_text(state_text(content))
    with pytest.raises(SpecError, match="`vocabulary_size` of tables `b` must be the same"):
        load_checkpoint(fresh(settings), path)
    settings, _, path = saved(tmp_path / "second")
    with pytest.raises(DataError, match="the optimizers must be .*'dense': '.*Received: .*'dense': 'SGD'"):
        load_checkpoint(fresh(config(dense={"name": "sgd"})), path)
    # Slots of equal name and shape: nothing but the optimizer's own name tells them apart.
    ftrl = fresh(config(embedding={"name": "ftrl"}))
    ftrl.optimizer._create_all_weights(ftrl.trainable_variables)
    path = save_checkpoint(ftrl, tmp_path / "third", TrainState(step=1))
    with pytest.raises(DataError, match="'embedding': 'Ftrl'.*Received: .*'embedding': 'Adagrad'"):
        load_checkpoint(fresh(config(embedding={"name": "adagrad"})), path)


def test_a_failed_write_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    settings = config()
    model = fresh(settings)
    model.optimizer._create_all_weights(model.trainable_variables)
    # A real full disk: the process may not write files beyond a size that the first table passes.
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))
    try:
        with pytest.raises(OSError):
            save_checkpoint(model, tmp_path, TrainState(step=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []
