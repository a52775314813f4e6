"""MLPerf's log of a run, read by MLPerf's own parser and checked by its own rules."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tfdlrm.pipelines.run_logs.mlperf import mlperf_log
from tfdlrm.spec.config import RunConfig
from tfdlrm.training.checkpoint import TrainState
from tfdlrm.training.events import Event

pytest.importorskip("mlperf_logging", reason="mlperf-logging is not installed")

CONFIG = RunConfig.model_validate(
    {"seed": 7, "train": {"batch_size": 100, "embedding": {"name": "adagrad", "learning_rate": 0.5}}}
)


def write(file: Path, ends: bool = True) -> None:
    """Log two epochs of ten steps, each with a validation at its end."""
    state = TrainState()
    with mlperf_log(file, CONFIG, 1000, 200) as listen:
        listen(Event.RUN_STARTS, state)
        for epoch in range(2):
            listen(Event.EPOCH_STARTS, state)
            state.step, state.epoch = 10 * (epoch + 1), epoch + 1
            listen(Event.ROUND_ENDS, state)
            listen(Event.VALIDATION_STARTS, state)
            state.history.append({"auc": 0.7 + epoch / 10})
            listen(Event.VALIDATION_ENDS, state)
            listen(Event.EPOCH_ENDS, state)
        if ends:
            listen(Event.RUN_ENDS, state)


def events(file: Path) -> list[dict]:
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("ruleset", ["2.0.0", "2.1.0"])  # the last that have this benchmark; then came dlrm_dcnv2
def test_the_rules_of_the_dlrm_benchmark_are_kept(tmp_path: Path, ruleset: str) -> None:
    file = tmp_path / "mlperf.log"
    write(file)
    assert keeps_rules(file, ruleset)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "eval_accuracy" not in line))
    assert not keeps_rules(file, ruleset)


def keeps_rules(file: Path, ruleset: str) -> bool:
    from mlperf_logging.compliance_checker import mlp_compliance

    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=True)
    return mlp_compliance.main(str(file), f"training_{ruleset}/common.yaml", checker)[0]


def test_events_tell_what_happened(tmp_path: Path) -> None:
    file = tmp_path / "mlperf.log"
    write(file)
    found = events(file)
    values = {event["key"]: event["value"] for event in found}
    assert (values["global_batch_size"], values["seed"]) == (100, 7)
    assert (values["train_samples"], values["eval_samples"]) == (1000, 200)
    assert (values["opt_name"], values["opt_base_learning_rate"]) == ("adagrad", 0.5)
    accuracies = [(e["metadata"]["epoch_num"], e["value"]) for e in found if e["key"] == "eval_accuracy"]
    assert accuracies == [(1.0, 0.7), (2.0, pytest.approx(0.8))]
    counts = Counter(event["key"] for event in found)
    assert {key: counts[key] for key in ("epoch_start", "epoch_stop", "block_start", "block_stop", "eval_stop")} == (
        dict.fromkeys(["epoch_start", "epoch_stop", "block_start", "block_stop", "eval_stop"], 2)
    )
    order = [event["key"] for event in found if event["key"] in ("init_start", "init_stop", "run_start", "run_stop")]
    assert order == ["init_start", "init_stop", "run_start", "run_stop"]
    assert found[-1]["metadata"]["status"] == "success"
    assert [event["time_ms"] for event in found] == sorted(event["time_ms"] for event in found)


def test_a_run_that_is_cut_short_is_aborted(tmp_path: Path) -> None:
    file = tmp_path / "mlperf.log"
    write(file, ends=False)
    assert events(file)[-1]["key"] == "run_stop" and events(file)[-1]["metadata"]["status"] == "aborted"
