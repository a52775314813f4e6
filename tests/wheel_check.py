"""Build the wheel, install it from the lock into a clean environment, and work there without the repository.

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
    """Return the Python of an environment that has the lock's packages and the wheel, and nothing else."""
    python, done = folder / "bin" / "python", folder / "installed.lock"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    if not done.exists() or done.read_text(encoding="utf-8") != lock:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        hashed = (python, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps")
        # One package comes as source only: setuptools goes in first, as in the Makefile.
        first = folder / "setuptools.lock"
        (entry,) = re.findall(r"^setuptools==.*?(?=^[a-z]|\Z)", lock, re.MULTILINE | re.DOTALL)
        first.write_text(entry, encoding="utf-8")
        run(*hashed, "-r", first)
        run(*hashed, "--no-build-isolation", "--use-pep517", "-r", ROOT / "requirements.lock")
        done.write_text(lock, encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel)
    return python


def check(folder: Path, environment: Path) -> None:
    """Build, install and try."""
    wheel = built_wheel(folder)
    print(f"built {wheel.name}", flush=True)
    python = environment_with(wheel, environment)
    empty = folder / "empty"
    empty.mkdir()
    if "console_scripts" in (ROOT / "setup.py").read_text(encoding="utf-8"):
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
