from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfdlrm.pipelines.console import Console, progress_bars
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.errors import ConfigError, DataError

CONFIG = RunConfig()


def test_nothing_made_yet_means_any_configuration_will_do(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path / "run")
    with work_dir.open(CONFIG):
        pass
    other = CONFIG.model_copy(update={"seed": 5})
    with work_dir.open(other):
        assert load_config(work_dir.config_file) == other


@pytest.mark.parametrize("made", ["metrics.json", "data/manifest.json"])
def test_prepared_rows_bind_what_they_depend_on_and_no_more(tmp_path: Path, made: str) -> None:
    work_dir = WorkDir(tmp_path)
    with work_dir.open(CONFIG):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text('{"stages": {"prepare": {}}}')
    other = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"rows_per_block": 7})})
    with pytest.raises(ConfigError, match="another configuration: `data.rows_per_block`"), work_dir.open(other):
        pass
    model = CONFIG.model.model_copy(update={"dropout": 0.5})
    with work_dir.open(CONFIG.model_copy(update={"seed": 5, "model": model})):
        assert load_config(work_dir.config_file).model == model


def test_a_configuration_that_cannot_be_run_is_not_written_and_drops_nothing(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    with work_dir.open(CONFIG):
        work_dir.note_stage(CONFIG.name, "train", {})

    def refuse() -> None:
        raise ConfigError("no such model")

    other = CONFIG.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match="no such model"), work_dir.open(other, overwrite=True, check=refuse):
        pass
    assert load_config(work_dir.config_file) == CONFIG
    assert work_dir.stage("train") is not None


@pytest.mark.parametrize("made", ["metrics.json", "checkpoints/step-0000000005/state.json"])
def test_results_bind_the_configuration(tmp_path: Path, made: str) -> None:
    work_dir = WorkDir(tmp_path)
    with work_dir.open(CONFIG):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text('{"stages": {"train": {}}}')
    other = CONFIG.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match="another configuration: `seed` is 123 there and 5 now"), work_dir.open(other):
        pass
    assert load_config(work_dir.config_file) == CONFIG
    with work_dir.open(CONFIG.model_copy(update={"export": CONFIG.export.model_copy(update={"verify_rows": 7})})):
        assert load_config(work_dir.config_file).export.verify_rows == 7
    with work_dir.open(other, overwrite=True):
        assert not (tmp_path / made).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_with_other_files_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("precious")
    with (
        pytest.raises(ConfigError, match="must be new, empty or a run's own"),
        WorkDir(tmp_path).open(CONFIG, overwrite),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["logs"]
    assert (tmp_path / "logs" / "mine.txt").read_text() == "precious"


def test_a_directory_has_one_run_at_a_time(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    with work_dir.open(CONFIG):
        with pytest.raises(ConfigError, match="another run is using this work dir"), WorkDir(tmp_path).open(CONFIG):
            pass
        # The lock belongs to the process, so a killed one leaves nothing to clear away.
        code = (
            "import sys; from pathlib import Path; from tfdlrm.pipelines.work_dir import WorkDir\n"
            "from tfdlrm.spec.config import RunConfig\n"
            "with WorkDir(Path(sys.argv[1])).open(RunConfig()): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert "another run is using" in done.stderr
    with WorkDir(tmp_path).open(CONFIG):
        pass


def test_metrics_are_valid_json_whatever_the_values(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    assert work_dir.metrics() == {} and work_dir.stage("train") is None
    work_dir.note_stage("run", "prepare", {"rows": np.int64(3), "rate": np.float32(0.5), "path": tmp_path})
    work_dir.note_stage("run", "train", {"auc": float("nan"), "history": [{"loss": np.float64("inf")}], "ok": True})

    def no_constant(text: str) -> None:
        raise AssertionError(text)

    metrics = json.loads(work_dir.metrics_file.read_text(), parse_constant=no_constant)
    assert metrics["stages"] == {
        "prepare": {"rows": 3, "rate": 0.5, "path": str(tmp_path)},
        "train": {"auc": None, "history": [{"loss": None}], "ok": True},
    }
    assert work_dir.stage("train") == metrics["stages"]["train"]


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json: cannot be read"):
        WorkDir(tmp_path).metrics()


class Terminal:
    """A stream that says it is a terminal and keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_bars_show_rows_and_rate_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    console = Console(tmp_path / "logs" / "pipeline.log")
    with console.bars() as bar:
        advance = bar("train", 1000)
        for _ in range(4):
            advance(200)
            time.sleep(0.15)
        console.say("half way")
    assert "train" in err.text and "800 rows" in err.text and "/s" in err.text
    assert "half way" in out.text + err.text
    assert (tmp_path / "logs" / "pipeline.log").read_text().endswith("Z half way\n")


def test_bars_are_silent_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "pipeline.log")
    with console.bars() as bar:
        bar("train", 0)(10)
    console.say("done")
    assert capsys.readouterr() == ("done\n", "")


def test_long_phases_say_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    said = ""

    def wait_for_lines(count: int) -> None:
        nonlocal said
        deadline = time.monotonic() + 30
        while said.count("\n") < count and time.monotonic() < deadline:
            time.sleep(0.01)
            out, err = capsys.readouterr()
            assert out == ""
            said += err

    with progress_bars(False, first_line=0.2, next_lines=3600) as bar:
        bar("survey", 0)(7)  # over at once
        done = bar("count", 0)
        done(400)
        done(600)
        wait_for_lines(1)
        done = bar("vocabulary", 4000)
        done(1000)
        wait_for_lines(2)
    with progress_bars(False, first_line=0.2, next_lines=0.1) as bar:
        bar("encode", 4000)(1000)
        wait_for_lines(4)  # nothing to tell of, but still at work
    time.sleep(0.3)
    assert capsys.readouterr() == ("", "")
    count, vocabulary, first, second = said.splitlines()[:4]
    rate = int(count.removeprefix("count: 1,000 rows, ").removesuffix(" rows/s").replace(",", ""))
    assert 0 < rate <= 5000  # 600 rows after the first report, at least 0.2 seconds
    assert vocabulary == "vocabulary: 1,000 of 4,000 rows (25.0%)"
    assert first == "encode: 1,000 of 4,000 rows (25.0%)"
    assert second == "encode: 1,000 of 4,000 rows (25.0%), 0 rows/s"
