from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.data.files import sha256_of
from tfdlrm.pipelines import criteo, tabular
from tfdlrm.pipelines.cli import CheckFailed, parse_stages, recipe, run_command
from tfdlrm.pipelines.parsers import python_command
from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.spec.config import load_config
from tfdlrm.spec.criteo import DENSE_COLUMNS, SPARSE_COLUMNS
from tfdlrm.spec.errors import ConfigError, DataError

OTHER_KINDS = ("compare", "cluster", "plan", "sweep")
RECIPES = sorted(p.stem for p in recipe("demo").parent.glob("*.toml") if not p.stem.startswith(OTHER_KINDS))


def raising(error: BaseException):
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("rows.tsv:3: bad\nin two lines."), 2, "tfdlrm: rows.tsv:3: bad in two lines.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), 2, "tfdlrm: data/x: No space left on device.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "tfdlrm: No space left on device.\n"),
        (CheckFailed("differs"), 1, "tfdlrm: differs\n"),
        (
            KeyboardInterrupt(),
            130,
            "tfdlrm: interrupted. What is done is kept; to go on: python -m x --config 'a b'\n",
        ),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(error), "python -m x --config 'a b'") == code
    assert capsys.readouterr() == ("", line)


def test_faults_of_the_package_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))
    with pytest.raises(OSError, match="no number"):
        run_command(raising(OSError("no number")))


def test_stages_come_in_their_order() -> None:
    assert parse_stages(" report,train ,train") == ("train", "report")


def test_python_command_starts_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(Path(sys.prefix) / "bin" / "python"))  # the tests have one of their own
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert python_command() == "python"
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(Path(sys.executable).parent.parent)
    assert python_command() == f"bin/{Path(sys.executable).name}"
    monkeypatch.chdir("/")
    assert Path(python_command()).resolve() == Path(sys.executable).resolve()


def test_recipes_are_there() -> None:
    assert set(RECIPES) >= {
        *("demo", "criteo_kaggle", "criteo_small", "criteo_terabyte", "criteo_terabyte_mlperf", "movielens_100k")
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_prints_in_full(name: str, tmp_path: Path) -> None:
    config = load_config(recipe(name))
    assert config.name == name
    assert all(path.startswith("$") for path in config.data.raw)
    if config.data.dense:
        assert config.model.bottom_units[-1] == config.model.embedding_dim
    if name != "movielens_100k":
        assert [column.name for column in config.data.dense] == list(DENSE_COLUMNS)
        assert [column.name for column in config.data.sparse] == list(SPARSE_COLUMNS)
    (tmp_path / "full.toml").write_text(config_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "full.toml") == config


def test_published_settings() -> None:
    kaggle = load_config(recipe("criteo_kaggle"))
    assert (kaggle.model.embedding_dim, kaggle.model.bottom_units, kaggle.model.top_units) == (
        *(16, (512, 256, 64, 16), (512, 256, 1)),
    )
    assert (kaggle.data.split.by, kaggle.data.split.days, kaggle.train.batch_size) == ("days", 7, 128)
    assert (kaggle.train.embedding.name, kaggle.train.dense.name, kaggle.train.epochs) == ("sgd", "sgd", 1)
    assert kaggle.train.embedding.learning_rate == kaggle.train.dense.learning_rate == 0.1
    terabyte, mlperf = load_config(recipe("criteo_terabyte")), load_config(recipe("criteo_terabyte_mlperf"))
    assert (terabyte.model.bottom_units, terabyte.model.top_units) == ((512, 256, 64), (512, 512, 256, 1))
    assert (mlperf.model.bottom_units, mlperf.model.top_units) == ((512, 256, 128), (1024, 1024, 512, 256, 1))
    assert (len(terabyte.data.raw), terabyte.data.split.days, terabyte.train.batch_size) == (24, 0, 2048)


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="no recipe `dmeo` in .*Did you mean `demo`?"):
        recipe("dmeo")


def test_an_interruption_that_a_library_turns_into_an_error_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    # Who tests in the background of a script has been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def body() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt as error:
            raise AssertionError("Concurrent access?") from error  # what TensorFlow says when it is tracing
        return 0

    assert run_command(body, "python -m x") == 130
    assert capfd.readouterr().err == "tfdlrm: interrupted. What is done is kept; to go on: python -m x\n"
    with pytest.raises(AssertionError, match="of its own"):
        run_command(_failing)
    signal.signal(signal.SIGINT, before)


def _failing() -> int:
    raise AssertionError("of its own")


@pytest.mark.parametrize(
    ("setting", "message"),
    [("model.name=deepfmm", "Did you mean `deepfm`"), ("model.name=matrix_factorization", "`pair` must name two")],
)
def test_dry_run_refuses_what_a_run_would(setting: str, message: str) -> None:
    assert message in refusal("--set", setting, "--dry-run")


def test_dry_run_prints_the_recipe_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path)
    before = sha256_of(path)
    outcome = call(criteo.main, "--config", path, "--set", "train.epochs=7", "--raw", "a.tsv", "b.tsv.gz", "--dry-run")
    assert outcome.code == 0
    (tmp_path / "printed.toml").write_text(outcome.out, encoding="utf-8")
    printed = load_config(tmp_path / "printed.toml")
    assert printed == load_config(path, ["train.epochs=7", 'data.raw=["a.tsv", "b.tsv.gz"]'])
    assert sha256_of(path) == before and not (tmp_path / "runs").exists()


def test_default_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(criteo.main, "--dry-run").out.endswith("\n" + config_toml(load_config(recipe("demo"))))
    compared = call(criteo.main, "--compare", "runs/before", "--dry-run").out
    assert compared.endswith(config_toml(load_config(recipe("demo"), ['report.compare="runs/before"'])))
    with_raw = call(criteo.main, "--raw", "day_0", "--dry-run").out
    assert with_raw.endswith("\n" + config_toml(load_config(recipe("criteo_kaggle"), ['data.raw=["day_0"]'])))
    assert "# rows:      unknown: day_0 is not there\n" in with_raw


@pytest.mark.parametrize("main", [criteo.main, tabular.main])
def test_help_names_every_argument(main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    names = ("config", "raw", "work-dir", "stages", "set", "compare", "overwrite", "cross-validate", "dry-run", "quiet")
    for name in names:
        assert f"--{name}" in text
