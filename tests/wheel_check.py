"""Build the wheel, install it with what it declares into a clean environment, and work there without the repository.

Its requirements get the versions of the lock. No extra is asked for: what the wheel forgot to declare is missing.

`make wheel-check` runs it: some minutes, most of them for the packages. With a folder as argument the environment is
made there and kept for the next time; else everything is removed in the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("data.planted.rows=4000", "data.coding.min_count=5", "model.embedding_dim=4"),
    *("model.bottom_units=[8, 4]", "model.top_units=[8, 1]", "train.epochs=1", "export.verify_rows=200"),
)
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""
ANSWER = """
import json, pathlib, sys
import tensorflow as tf
import tfdlrm

assert pathlib.Path(tfdlrm.__file__).is_relative_to(sys.prefix), tfdlrm.__file__
(version,) = [path for path in pathlib.Path("saved_models").glob("*/*") if path.name.isdigit()]
(request,) = pathlib.Path("runs").glob("*/report/*request*.json")
rows = json.loads(request.read_text())["instances"]
served = tf.saved_model.load(str(version)).signatures["serving_default"]
inputs = served.structured_input_signature[1]
columns = {name: tf.constant([row[name] for row in rows], spec.dtype) for name, spec in inputs.items()}
answers = served(**columns)["probability"].numpy()
assert answers.shape == (len(rows), 1) and ((answers > 0) & (answers < 1)).all(), answers
print(f"{version} answers {answers[:, 0].tolist()}")
"""
TABLE = """
import polars as pl
import tfdlrm

df = pl.DataFrame({"city": ["Bern", "Rome"] * 50, "price": [1.5, 20.0] * 50, "clicked": [0, 1] * 50})
table = tfdlrm.from_dataframe(df, label="clicked", embedding_dim=4)
model = table.model(top_units=(8, 1))
model.fit(table.train, verbose=0)
print(table.export(model, "saved_models/table"))
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return what it prints; end with its output where it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:300]}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def built_wheel(folder: Path) -> Path:
    """Return a wheel that was built of the source distribution, not of the checkout."""
    name = run(sys.executable, "-c", BUILD, folder).splitlines()[-1]
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / name)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment_with(wheel: Path, folder: Path) -> Path:
    """Return the Python of an environment that has the wheel and what it asks for, at the lock's versions."""
    python, done = folder / "bin" / "python", folder / "installed.txt"
    # A constraint cannot have hashes: they would be asked of the wheel, too.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^[a-z][\w.-]*==[^\s\\]+", lock, re.MULTILINE)
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        asked = [line for line in files.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
    wanted = "\n".join([*pins, *asked])
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pins), encoding="utf-8")
        install = (python, "-m", "pip", "install", "--quiet", "--constraint", constraints)
        # Packages that come as source only are built with the lock's setuptools, as in the Makefile.
        run(*install, "setuptools")
        run(*install, "--no-build-isolation", wheel)
        done.write_text(wanted, encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel)
    return python


def check(folder: Path, environment: Path) -> None:
    """Build, install and try."""
    wheel = built_wheel(folder)
    print(f"built {wheel.name}", flush=True)
    python = environment_with(wheel, environment)
    empty = folder / "empty"
    empty.mkdir()
    print(run(python.parent / "tfdlrm", "--version", cwd=empty), flush=True)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    print(run(python, "-m", "tfdlrm.pipelines.criteo", *settings, cwd=empty).splitlines()[0], flush=True)
    print(run(python, "-c", ANSWER, cwd=empty), flush=True)
    print(run(python, "-c", TABLE, cwd=empty).splitlines()[-1], flush=True)
    print("the wheel works without the repository")


def main(arguments: Sequence[str]) -> int:
    """Check in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="tfdlrm-wheel-") as folder:
        check(Path(folder), Path(arguments[0]).resolve() if arguments else Path(folder) / "venv")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
