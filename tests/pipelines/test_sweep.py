"""Sweeps in real processes: killed and gone on with, crashes and refusals told, results that other commands take."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
import tomli_w
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests.pipelines.small_runs import TINY, call, refusal
from tfdlrm.pipelines import criteo, sweep
from tfdlrm.pipelines.parsers import python_command
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.sweeping.search import SweepResult
from tfdlrm.pipelines.sweeping.spending import spent_by
from tfdlrm.pipelines.sweeping.trial import limited_config
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.tuning import search
from tfdlrm.tuning.results import rows_seen
from tfdlrm.tuning.sweep_config import sweep_config

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {**TINY, "train": {**TINY["train"], "embedding": {"name": "adagrad", "learning_rate": 0.05}}}
KILLED = {"name": "tests.tuning.models:Killed"}
WIDE = {"embedding_dim": 512, "bottom_units": [8, 512]}
NOT_FINITE = {"embedding_l2": 1e38}
OWN = {"embedding_dim": 4}
SWEEP = {
    "name": "tiny",
    "config": "rows.toml",
    "algorithm": "random",
    "trials": 4,
    "budget": {"bytes_per_trial": "1MB"},
    "early_stopping": {"check_rows": 640, "patience_rows": 640},
    "space": {"model": {"choice": [KILLED, WIDE, NOT_FINITE, OWN]}},
}


class Done(NamedTuple):
    config: Path
    killed: dict[str, bytes]
    result: SweepResult


def write(folder: Path, **changes: object) -> Path:
    (folder / "rows.toml").write_text(tomli_w.dumps(RECIPE), encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps({**SWEEP, **changes}), encoding="utf-8")
    return path


def finished(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (root / "trials").glob("*/result.json")}


long = pytest.mark.skipif("TFDLRM_SOAK" not in os.environ, reason="a minute each: taken by `make sweep-check`")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """Run a sweep: killed once a trial has ended and another runs, then gone on with to its end."""
    folder = tmp_path_factory.mktemp("sweep")
    config, root = write(folder), folder / "run"
    command = [sys.executable, "-m", "tfdlrm.pipelines.sweep", "--config", config, "--work-dir", root]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not finished(root) or len(list((root / "trials").glob("*/log.txt"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (root / ".sweep.lock").open() as lock:  # what it started ends with it, a moment later
        fcntl.flock(lock, fcntl.LOCK_EX)
    killed = finished(root)
    yield Done(config, killed, search(config, work_dir=root, quiet=True))


def test_killed_it_goes_on(done: Done) -> None:
    # What had ended was not run again, and no trial counts twice.
    assert done.killed.items() <= finished(done.result.work_dir).items()
    assert 1 <= len(done.killed) < 4
    assert done.result.trials["trial"].to_list() == ["0", "1", "2", "3"]
    assert {json.dumps(value) for value in SWEEP["space"]["model"]["choice"]} == set(done.result.trials["model"])


def test_no_trial_ends_the_sweep(done: Done) -> None:
    ended = {row["model"]: row for row in done.result.trials.to_dicts()}
    crashed, wide, diverged, own = (ended[json.dumps(value)] for value in (KILLED, WIDE, NOT_FINITE, OWN))
    assert (crashed["status"], wide["status"], diverged["status"]) == ("failed", "refused", "failed")
    assert "SIGKILL" in crashed["reason"]
    assert "MiB of weights and slots, over the 976.56 KiB a trial may" in wide["reason"]
    assert "loss became" in diverged["reason"]
    assert own["status"] == "completed" and own["reason"] == ""
    # What was trained before the crash was spent.
    assert crashed["rows"] > 0 and crashed["rows"] % 640 == 0
    # Refused before it trained: nothing of it was.
    assert wide["rows"] == 0 and wide["bytes"] > 1_000_000


def test_bytes_are_those_of_the_tables_and_their_slots(done: Done) -> None:
    (own,) = done.result.trials.filter(pl.col("status") == "completed").to_dicts()
    (rows,) = (path for path in (done.result.work_dir / "rows").iterdir() if path.is_dir())
    spec = json.loads((rows / "data" / "manifest.json").read_text())["spec"]
    assert own["table_bytes"] == sum(table["vocabulary_size"] for table in spec["tables"]) * 4 * 4
    bottom, interaction = (2 + 1) * 8 + (8 + 1) * 4, 4 + 3
    dense = 4 * (bottom + (interaction + 1) * 16 + (16 + 1) * 1)
    # Adagrad keeps one value beside each of the tables' weights, SGD none beside the others.
    assert own["bytes"] == 2 * own["table_bytes"] + dense


def test_rows_are_prepared_once_and_trainings_are_not_kept(done: Done) -> None:
    root = done.result.work_dir
    assert len([path for path in (root / "rows").iterdir() if path.is_dir()]) == 1
    assert not list(root.glob("trials/*/seed-*"))  # nor those of the trial that was killed


def test_memory_of_the_parent_is_noted(done: Done) -> None:
    assert done.result.trials["parent_bytes"].null_count() == 0
    assert done.result.trials["parent_bytes"].min() > 10_000_000


def test_the_best_recipe_is_one(done: Done) -> None:
    root, best = done.result.work_dir, done.result.best
    assert best is not None and best.values == {"model": OWN}
    config = load_config(root / "best.toml")
    assert config.name == "rows-best"
    assert config.model_copy(update={"name": "rows"}) == done.result.best_config
    # It is chosen as the trial was: by validations every 640 samples, to the end of patience.
    given = load_config(done.config.parent / "rows.toml")
    chosen = {"eval_every_steps": 10, "early_stopping_steps": 10}
    assert done.result.best_config == given.model_copy(update={"train": given.train.model_copy(update=chosen)})
    outcome = call(criteo.main, "--config", root / "best.toml", "--dry-run")
    assert outcome.code == 0, outcome


def test_the_table_is_written(done: Done) -> None:
    table = pl.read_csv(done.result.work_dir / "trials.csv")
    assert table["status"].to_list() == done.result.trials["status"].to_list()
    assert table["log_loss"].drop_nulls().to_list() == pytest.approx(
        done.result.trials["log_loss"].drop_nulls().to_list()
    )


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images, self.text, self.links = [], [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        self.links += [found[key] for key in ("src", "href") if found.get(key)]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole(done: Done) -> None:
    page = Page()
    page.feed((done.result.work_dir / "index.html").read_text(encoding="utf-8"))
    captions = [image["alt"] for image in page.images]
    assert [caption.split()[0] for caption in captions] == ["Parallel", "AUC", "AUC"]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    words = "".join(page.text)
    for heading in ("Summary", "All trials", "Pareto fronts", "Failed and refused", "Settings"):
        assert heading in words
    assert "SIGKILL" in words


def test_tensorboard_has_values_and_metrics(done: Done) -> None:
    best = done.result.best
    assert best is not None
    events = EventAccumulator(str(done.result.work_dir / "tensorboard" / best.trial)).Reload()
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    value = float(make_ndarray(events.Tensors("log_loss")[0].tensor_proto))
    assert value == pytest.approx(best.mean("log_loss"))


def test_a_finished_sweep_has_nothing_to_do(done: Done) -> None:
    before = finished(done.result.work_dir)
    outcome = call(sweep.main, "--config", done.config, "--work-dir", done.result.work_dir)
    assert outcome.code == 0, outcome
    assert "4 done before" in outcome.out
    assert f"{python_command()} -m tfdlrm.pipelines.criteo --config {done.result.work_dir / 'best.toml'}" in outcome.out
    assert finished(done.result.work_dir) == before


def test_another_sweep_is_refused_there(done: Done) -> None:
    root = done.result.work_dir
    said = refusal("--config", done.config, "--work-dir", root, "--set", "train.epochs=3", main=sweep.main)
    assert "holds another sweep: `recipe.train.epochs` is 1 there and 3 now." in said
    said = refusal("--config", done.config, "--work-dir", done.config.parent, main=sweep.main)
    assert "`--work-dir` must be new, empty or a sweep's own." in said


def test_what_cannot_work_is_told_before_any_trial(tmp_path: Path) -> None:
    space = {"model": {"choice": [{"embedding_dim": 8}]}}
    said = refusal("--config", write(tmp_path, space=space), "--work-dir", tmp_path / "a", main=sweep.main)
    assert '`space`, {"model": {"embedding_dim": 8}}: ' in said and "bottom_units" in said
    path = write(tmp_path)
    said = refusal("--config", path, "--work-dir", tmp_path / "b", "--set", "train.bach_size=3", main=sweep.main)
    assert "in `train`: unknown key `bach_size`. Did you mean `batch_size`?" in said
    assert not list(tmp_path.glob("*/trials"))


def test_dry_run(tmp_path: Path) -> None:
    space = {
        "model.name": {"choice": ["dlrm", "dcn_v2"]},
        "model.cross_layers": {"low": 1, "high": 4, "when": {"model.name": ["dcn_v2"]}},
        "train.dense.learning_rate": {"low": 0.001, "high": 0.1, "sampling": "log"},
    }
    path = write(tmp_path, space=space)
    outcome = call(sweep.main, "--config", path, "--work-dir", tmp_path / "run", "--dry-run", "--trials", "7")
    assert outcome.code == 0, outcome
    for words in (
        "tiny: random, 7 trials, 1 seed(s)",
        '["dlrm", "dcn_v2"]',
        "0.001 to 0.1, log",
        "bytes_per_trial 1MB",
    ):
        assert words in outcome.out
    assert not (tmp_path / "run").exists()


@long
def test_two_workers_of_hyperband(tmp_path: Path) -> None:
    """A chief proposes, two workers run trials; the better of two halves goes on from its checkpoint."""
    recipe = RunConfig.model_validate(RECIPE)
    # A choice of numbers comes back from the chief as it was, which its network would round.
    space = {"train.embedding.learning_rate": {"choice": [0.01, 0.05]}}
    values = {"algorithm": "hyperband", "trials": 3, "hyperband": {"shares": 2, "factor": 2}, "space": space}
    result = search(values, recipe=recipe, work_dir=tmp_path / "run", workers=2, quiet=True)
    trials = SweepFolder(tmp_path / "run").results()
    logs = {path.name: path.read_text() for path in (tmp_path / "run" / "logs").iterdir()}
    assert [trial.share for trial in trials] == [0.5, 0.5, 1.0], logs
    assert {trial.worker for trial in trials[:2]} == {"worker0", "worker1"}
    assert {trial.values["train.embedding.learning_rate"] for trial in trials} == {0.01, 0.05}
    better = min(trials[:2], key=lambda trial: trial.mean("log_loss"))
    assert trials[2].goes_on_from == better.trial and trials[2].values == better.values
    # The last one trained on the other half alone.
    assert (better.rows, trials[2].rows) == (19 * 64, 2400) and rows_seen(trials) == 19 * 64 + 2400
    # It has the validation of the first half, which it did not see again; a fresh training ends with its only one.
    assert trials[2].mean("log_loss") <= better.mean("log_loss")
    assert result.best is not None and result.best.trial == "2"
    spent = trials[2].spent[0]
    assert (spent.rows, spent.rows_before) == (2400, 19 * 64) and spent.seconds > better.spent[0].seconds > 0
    assert not list((tmp_path / "run").glob("trials/*/seed-*"))


@long
def test_a_trial_whose_time_is_up_is_judged_as_it_is(tmp_path: Path) -> None:
    recipe = RunConfig.model_validate({**RECIPE, "train": {**RECIPE["train"], "epochs": 1000}})
    space = {"train.embedding.learning_rate": {"choice": [0.01, 0.02]}}
    budget = {"seconds_per_trial": 0.5, "seconds": 0.1}
    values = {"algorithm": "random", "trials": 2, "seeds": 2, "space": space, "budget": budget}
    result = search(values, recipe=recipe, work_dir=tmp_path / "run", quiet=True)
    # A second trial would have been beyond the seconds of the sweep.
    assert result.trials["status"].to_list() == ["completed"]
    assert 0 < result.trials["rows"][0] < 1000 * 2400
    assert result.trials["seeds"].to_list() == [2] and result.trials["log_loss_spread"][0] > 0
    assert result.best_config.train.max_steps is None


def test_limits_of_a_trial() -> None:
    config = RunConfig.model_validate({"train": {"batch_size": 64, "epochs": 2}, "seed": 5})

    def limited(share: float = 1.0, number: int = 0, **settings: object) -> RunConfig:
        return limited_config(config, sweep_config({"space": {}, **settings}), 1000, share, number)

    assert limited().train.max_steps == 2 * 16
    assert limited(share=0.25).train.max_steps == 8
    assert limited(budget={"rows_per_trial": 650}).train.max_steps == 11
    assert limited(budget={"rows_per_trial": 10**9}).train.max_steps == 32
    stopped = limited(early_stopping={"check_rows": 200, "patience_rows": 500}).train
    # 2.5 times the 192 samples that lie between validations.
    assert (stopped.eval_every_steps, stopped.early_stopping, stopped.early_stopping_steps) == (3, 0, 8)
    assert limited(objective="auc").train.monitor == "auc"
    assert (limited().seed, limited(number=2).seed) == (5, 7)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    config, root = write(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "tfdlrm.pipelines.sweep", "--config", config, "--work-dir", root]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (root / "logs" / "check.txt").is_file():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert f"-m tfdlrm.pipelines.sweep --config {config} --work-dir {root}" in said.splitlines()[-1]


@long
def test_killed_in_mid_training_rows_count_once(tmp_path: Path) -> None:
    space = {"train.epochs": {"choice": [12]}}
    config, root = write(tmp_path, trials=1, space=space), tmp_path / "run"
    config.write_text(config.read_text().replace("patience_rows = 640", "patience_rows = 1000000"), encoding="utf-8")
    command = [sys.executable, "-m", "tfdlrm.pipelines.sweep", "--config", config, "--work-dir", root]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    folder = root / "trials" / "0"
    while not any(own.rows > 1280 for own in spent_by(folder).seeds):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (root / ".sweep.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    killed = spent_by(folder)
    assert killed.seeds[0].rows < 12 * 2400 and list(folder.glob("seed-*/checkpoints/step-*"))
    search(config, work_dir=root, quiet=True)
    (result,) = SweepFolder(root).results()
    assert result.status == "completed" and rows_seen([result]) == result.rows == 12 * 2400
    # The seconds of both processes, of which this one knows but the second.
    assert result.seconds > killed.seconds + result.spent[0].seconds - killed.seeds[0].seconds
    assert result.spent[0].seconds > killed.seeds[0].seconds > 0


def test_a_chief_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the folder as a sweep alone does, and refuses what it would not do."""
    for name, value in (("IP", "localhost"), ("PORT", "1")):
        monkeypatch.setenv(f"KERASTUNER_ORACLE_{name}", value)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    config, root = write(tmp_path), tmp_path / "run"
    started = ("--config", config, "--work-dir", root)
    assert call(sweep.main, "--config", config, "--dry-run").code == 0
    assert "`--overwrite` must not be given to a chief" in refusal(*started, "--overwrite", main=sweep.main)
    assert "`--workers` must not be given to a chief" in refusal(*started, "--workers", "2", main=sweep.main)
    assert not root.exists()
    root.mkdir()
    with (root / ".sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another sweep is using this work dir." in refusal(*started, main=sweep.main)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    assert "`--workers` must not be given to a worker" in refusal("--work-dir", root, "--workers", "2", main=sweep.main)


def test_a_mistyped_recipe_is_told_with_its_path(tmp_path: Path) -> None:
    said = refusal("--config", write(tmp_path, config="row.toml"), "--dry-run", main=sweep.main)
    assert f"`config` must be a recipe: {tmp_path / 'row.toml'} is none" in said
    said = refusal("--config", write(tmp_path, config="dmo"), "--dry-run", main=sweep.main)
    assert said.endswith("Received: dmo. Did you mean `demo`?")
