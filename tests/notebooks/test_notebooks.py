"""The notebooks: what is in git has no outputs and defines nothing, and every one runs from top to bottom."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
LONGEST_SECONDS = 200
"""For a cell; where other tests want the cores, too, one may wait."""


def test_the_notebooks_are_there() -> None:
    assert NAMES == ["01_quickstart", "02_criteo", "03_own_data", "04_sharding", "05_serving", "06_sweep"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_nothing_but_the_text_is_in_git(path: Path) -> None:
    """No outputs, no counts of executions, and nothing of the machine that wrote them."""
    book = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(book))
    assert set(book["metadata"]) <= {"kernelspec", "language_info"}
    for cell in book["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_nothing_is_defined(path: Path) -> None:
    """What a notebook needs is in the package, where it has tests."""
    book = json.loads(path.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    assert [ast.unparse(node) for node in nodes if isinstance(node, DEFINITIONS)] == []
    assert any(isinstance(n, ast.ImportFrom) and (n.module or "").startswith("tfdlrm") for n in nodes)
    assert book["cells"][0]["cell_type"] == "markdown"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One kernel of this Python for all notebooks: TensorFlow is imported once. No kernel need be installed."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    manager = KernelManager(kernel_name="python3", connection_file=str(folder / "connection.json"))
    manager.kernel_spec_manager.kernel_dirs = [str(spec.parent)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    manager.start_kernel(cwd=str(folder), env=environment)
    yield manager
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebook_runs(path: Path, kernel: KernelManager, tmp_path: Path) -> None:
    """In a folder of its own, with names of its own; no cell may raise."""
    book = nbformat.read(path, as_version=4)
    # What a notebook starts is what tests start: forks, if that is asked for; see tests/forking_python.py.
    fresh = f"%reset -f\n%cd -q {tmp_path}\nimport sys\nsys.executable = {sys.executable!r}"
    book.cells.insert(0, nbformat.v4.new_code_cell(fresh))
    begin = time.monotonic()
    NotebookClient(book, km=kernel, timeout=LONGEST_SECONDS, allow_errors=False).execute()
    print(f"{path.stem}: {time.monotonic() - begin:.1f} s")
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert pictures, "a notebook shows a picture"
