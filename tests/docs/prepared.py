"""What the pages take for granted: rows, runs, servers and names that their blocks only use."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from tests.docs.blocks import ROOT, blocks_of
from tests.docs.running import SMALLER, PageFolder, write_visits

SMALL = """
name = "{name}"
[data]
raw = ["$CRITEO/train.txt"]
rows_per_block = 256
dense = [{dense}]
sparse = [{sparse}]
[data.coding]
min_count = 2
[model]
embedding_dim = 4
bottom_units = [8, 4]
top_units = [8, 1]
[train.embedding]
name = "rowwise_adagrad"
learning_rate = 0.05
[export]
rank_candidates = ["{candidates}"]
"""
NAMES = """
import tensorflow as tf
import tfdlrm
from tf_keras.optimizers import legacy
from tfdlrm.models.build import build

config = tfdlrm.load_config(overrides=["model.embedding_dim=4", "model.bottom_units=[8, 4]", "model.top_units=[8, 1]"])
spec = tfdlrm.FeatureSpec(
    dense=[tfdlrm.DenseFeature(name="I1")],
    sparse=[tfdlrm.SparseFeature(name=name, table=name) for name in ("C1", "C2")],
    tables=[tfdlrm.TableConfig(name=name, vocabulary_size=1000, embedding_dim=4) for name in ("C1", "C2")],
)
model = tfdlrm.DLRM(spec, bottom_units=[8, 4], top_units=[8, 1])
optimizer = tfdlrm.DLRMOptimizer(embedding=tfdlrm.SGD(0.1), dense=legacy.SGD(0.1))
model.compile(optimizer)
"""
_NARROW = (*SMALLER["tfdlrm.pipelines.criteo"], "--set", "model.embedding_dim=4", "--set", "model.bottom_units=[64,4]")


def _names(page: PageFolder) -> None:
    page.run_python(NAMES, "prepared names")


def _generator_names(page: PageFolder) -> None:
    page.run_python(NAMES.replace("vocabulary_size=1000", "vocabulary_size=200_000"), "prepared names")


def _training_names(page: PageFolder) -> None:
    _names(page)
    # the rows of a run of which a message has named a batch
    page.run_python(
        "from tfdlrm.pipelines import generate\n"
        "generate.main('random --prepared runs/x/data --rows 1024 --cardinalities 50,7'.split())",
        "prepared rows",
    )


def _tpu_names(page: PageFolder) -> None:
    _names(page)
    page.run_python(
        "from tfdlrm.distribute.tpu_embedding import use_tpu_embedding\n"
        "from tfdlrm.training.trainer import compile_model\n"
        "config = tfdlrm.load_config(overrides=['train.embedding.name=\"adagrad\"',"
        " 'train.embedding.initial_accumulator=0.1', 'model.embedding_dim=4', 'model.bottom_units=[8, 4]'])",
        "prepared names",
    )


def _days(page: PageFolder) -> None:
    lines = (page.path / "train.txt").read_text().splitlines(keepends=True)
    for day in (1, 2, 3):
        (page.path / f"day_{day}").write_text("".join(lines[(day - 1) * 1500 : day * 1500]))


def _readme(page: PageFolder) -> None:
    write_visits(page.path / "visits.csv")
    _days(page)
    _torch(page)
    page.run_shell(
        "python -m tfdlrm.pipelines.prepare run --recipe tfdlrm --raw train.txt --out data/terabyte\n"
        "python -m tfdlrm.pipelines.criteo --raw day_1 --work-dir runs/day_1 --stages prepare,train,evaluate"
    )


def _shop(page: PageFolder) -> None:
    """Leave `runs/shop` and `saved_models/shop`, as the README makes them."""
    write_visits(page.path / "visits.csv")
    recipe = next(block for block in blocks_of("README.md") if block.what == "shop.toml")
    page.run(recipe)
    page.run_shell("python -m tfdlrm.pipelines.tabular --config shop.toml")


def _serving(page: PageFolder) -> None:
    _shop(page)
    for name in ("saved_models/ctr", "models/m"):
        shutil.copytree(page.path / "saved_models/shop", page.path / name)


def _serve_small(page: PageFolder, name: str, dense: str, sparse: tuple[str, ...], candidates: str) -> None:
    """Leave `runs/<name>` and `saved_models/<name>`, a model of few raw columns, and a server that has it."""
    columns = ", ".join(f'{{ name = "{column}" }}' for column in sparse)
    recipe = SMALL.format(name=name, dense=dense, sparse=columns, candidates=candidates)
    (page.path / "small.toml").write_text(recipe, encoding="utf-8")
    page.run_shell("python -m tfdlrm.pipelines.criteo --config small.toml")
    page.serve(f"python -m tfdlrm.serving --model_name {name} --model_base_path saved_models/{name}".split())


def _clients(page: PageFolder) -> None:
    _serve_small(page, "demo", '{ name = "I1" }', ("C1",), "C1")
    rows = (page.path / "train.txt").read_text().splitlines(keepends=True)[:200]
    (page.path / "rows.tsv").write_text("".join(rows))
    (page.path / "day_24.gz").write_bytes(gzip.compress("".join(rows).encode()))
    page.run_python(
        "import polars\nframe = polars.DataFrame({'I1': [1.0, None], 'C1': ['68fd1e64', None]})",
        "prepared names",
    )


def _export(page: PageFolder) -> None:
    _serve_small(page, "small", "", ("C1", "C3"), "C3")


def _torch(page: PageFolder) -> None:
    shutil.copy(ROOT / "tests/golden/dot_sgd_final.pt", page.path / "model.pt")


def _import(page: PageFolder) -> None:
    from tfdlrm.export.torch_files import read_torch_file

    _torch(page)
    state = read_torch_file(page.path / "model.pt")
    page.names["net"] = SimpleNamespace(state_dict=lambda: state)


def _prepared_run(page: PageFolder) -> None:
    """Leave `runs/criteo`, prepared rows."""
    page.run_shell(
        'python -m tfdlrm.pipelines.criteo --raw "$CRITEO/train.txt" --work-dir runs/criteo --stages prepare'
    )


def _report(page: PageFolder) -> None:
    """Leave `runs/narrow`, the run that another is shown beside."""
    page.run_shell(shlex.join(["python", "-m", "tfdlrm.pipelines.criteo", "--work-dir", "runs/narrow", *_NARROW]))


def _demo_beside(page: PageFolder) -> None:
    """Leave `demo.toml` where the reader's own recipes lie."""
    shutil.copy(ROOT / "pipelines/demo.toml", page.path)


def _planning(page: PageFolder) -> None:
    _prepared_run(page)
    example = json.loads(next(block.text for block in blocks_of("docs/planning.md") if block.language == "json"))
    steps = [{**example, "seconds_per_step": 0.085 + 0.01 * i, "ops": 20 + 4 * i} for i in range(4)]
    (page.path / "steps.json").write_text(json.dumps(steps))


Prepare = Callable[[PageFolder], None]
QUICK: dict[str, Prepare] = {
    "docs/planning.md": _names,
    "docs/tpu.md": _tpu_names,
    "docs/training.md": _training_names,
}
"""Before the first block of a page."""
SLOW: dict[str, Prepare] = {
    "README.md": _readme,
    "docs/clients.md": _clients,
    "docs/cluster.md": _demo_beside,
    "docs/compression.md": _prepared_run,
    "docs/explain.md": _shop,
    "docs/export.md": _export,
    "docs/generators.md": _generator_names,
    "docs/growth.md": _days,
    "docs/import.md": _import,
    "docs/planning.md": _planning,
    "docs/quantization.md": _shop,
    "docs/report.md": _report,
    "docs/serving.md": _serving,
    "docs/serving_operations.md": _serving,
}
"""The same where slow blocks are run too."""


def prepare(page: str, folder: PageFolder, slow: bool) -> None:
    """Make what a page takes for granted."""
    for steps in (QUICK, SLOW) if slow else (QUICK,):
        if page in steps:
            steps[page](folder)


def planted_rows(path: Path) -> None:
    """Write the 5,000 clicks that `$CRITEO/train.txt` is in the pages."""
    from tfdlrm.pipelines import generate

    assert generate.main(["planted", "--raw", str(path), "--rows", "5000"]) == 0
