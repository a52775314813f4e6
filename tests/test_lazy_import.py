"""What importing `tfdlrm` loads, and which Keras it settles on. Each case has a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfdlrm

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that starts without TF_USE_LEGACY_KERAS, unless `environment` gives it."""
    inherited = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]


def test_spec_and_metrics_load_no_tensorflow() -> None:
    """One after the other in one process: none of them loads it."""
    code = [
        "import tfdlrm",
        "import tfdlrm.spec",
        "import tfdlrm.spec.config, tfdlrm.spec.criteo, tfdlrm.spec.features",
        "from tfdlrm import FeatureSpec, fit_budget, load_config",
        "from tfdlrm import evaluate_binary",
    ]
    loaded = "sorted({m.split('.')[0] for m in sys.modules} & {'tensorflow', 'tf_keras', 'keras'})"
    assert last_line(run_python("\n".join(["import sys", *code, f"print({loaded})"]))) == "[]"


def test_clients_and_search_need_no_import_of_their_own() -> None:
    """Nor do they load TensorFlow before they are used; `dir` knows of them before."""
    code = [
        "import sys, tfdlrm",
        "assert {'serving', 'tuning'} <= set(dir(tfdlrm))",
        "tfdlrm.tuning, tfdlrm.serving",
        "client = tfdlrm.serving.PredictClient.__module__",
        "loaded = 'tensorflow' in sys.modules",
        "print(client, loaded, tfdlrm.tuning.search.__name__)",
    ]
    assert last_line(run_python("\n".join(code))) == "tfdlrm.serving.client False search"


def test_import_sets_the_environment_for_this_process_and_its_children() -> None:
    code = "import os, tfdlrm; print(os.environ['TF_USE_LEGACY_KERAS'])"
    assert last_line(run_python(code)) == "1"
    assert last_line(run_python(code, TF_USE_LEGACY_KERAS="0")) == "1"


def test_tensorflow_imported_after_takes_tf_keras() -> None:
    import tensorflow as tf
    import tf_keras as keras

    assert tf.keras.layers.Layer is keras.layers.Layer  # noqa: TID251


# To import TensorFlow takes seconds: done once, and each case is a fork of the process that did it.
FORKS = """
import os, sys
import tensorflow as tf

for number, code in enumerate(sys.argv[2:]):
    if os.fork() == 0:
        os.dup2(os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT), 1)
        try:
            exec(code)
        except ImportError as error:
            print(f"ImportError: {error}")
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
"""
TOUCHES = ("tf.keras.layers", "from tensorflow.keras import layers")


@pytest.fixture(scope="module")
def after_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what was printed where `tfdlrm` was imported after TensorFlow: untouched, and touched in either way."""
    folder = tmp_path_factory.mktemp("forks")
    untouched = "import tfdlrm, tf_keras\nprint(tf.keras.layers.Layer is tf_keras.layers.Layer)"
    cases = [untouched, *(f"{touch}\nimport tfdlrm" for touch in TOUCHES)]
    run = run_python(FORKS, str(folder), *cases)
    assert run.returncode == 0, run.stderr
    return [(folder / str(number)).read_text() for number in range(len(cases))]


def test_tensorflow_imported_before_takes_tf_keras(after_tensorflow: list[str]) -> None:
    assert after_tensorflow[0] == "True\n"


@pytest.mark.parametrize("touch", range(len(TOUCHES)), ids=TOUCHES)
def test_another_keras_behind_tf_keras_is_refused(after_tensorflow: list[str], touch: int) -> None:
    message = after_tensorflow[1 + touch]
    assert message.startswith("ImportError: `tf.keras` is already Keras 3.")
    assert "Import tfdlrm before the first use of `tf.keras`" in message
    assert "TF_USE_LEGACY_KERAS=1" in message


def test_tf_keras_behind_tf_keras_is_accepted() -> None:
    code = "import tensorflow as tf\ntf.keras.layers\nimport tfdlrm\nprint(tfdlrm.__version__)"
    assert last_line(run_python(code, TF_USE_LEGACY_KERAS="1")) == tfdlrm.__version__


@pytest.mark.parametrize("name", tfdlrm.__all__)
def test_exported_name_resolves(name: str) -> None:
    value = getattr(tfdlrm, name)
    assert value.__name__ == name
    assert value.__module__.startswith("tfdlrm.")
    assert name in dir(tfdlrm)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tfdlrm' has no attribute 'DRLM'"):
        tfdlrm.DRLM  # noqa: B018
