"""The project's own files: the lock is exact, and no text names a machine or a package index."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tfdlrm

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
TEXT = {"", ".cfg", ".ipynb", ".json", ".lock", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}

# Put together from parts, so that this file does not name what it looks for.
HOSTS = ("py" + "pi", "pythonhosted", "anaconda", "npmjs")
HOMES = ("home", "root", "Users", "work", "workspace")
INDEX_HOSTS = re.compile(rf"({'|'.join(HOSTS)})\.(org|com)")
MACHINE_PATHS = re.compile(rf"(?<![\w.$}}*/-])/({'|'.join(HOMES)})/[\w.]")


def project_files() -> list[Path]:
    """Return the text files of the project: what git tracks or would add, or all but hidden folders without git."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        hidden = {path for path in ROOT.iterdir() if path.name.startswith(".") and path.name != ".ci"}
        paths = [path for top in set(ROOT.iterdir()) - hidden for path in ([top] if top.is_file() else top.rglob("*"))]
        paths = [path for path in paths if "__pycache__" not in path.parts]
    return sorted(path for path in paths if path.is_file() and path.suffix in TEXT)


def lock_entries() -> list[str]:
    """Return the entries of the lock, comments left out and continued lines joined."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def declared(name: str) -> list[str]:
    """Return the distribution names under the list or dictionary `name` of setup.py, lower case, `_` as `-`."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    value = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    lists = [value] if isinstance(value, list) else [value[extra] for extra in ("serving", "tune", "dev")]
    return [re.match(r"[\w-]+", entry)[0].lower().replace("_", "-") for entries in lists for entry in entries]


def test_lock_is_exact_and_hashed() -> None:
    entries = lock_entries()
    assert len(entries) > 50
    wrong = [e for e in entries if not re.fullmatch(r"[a-z0-9-]+==[\w.+!]+(\s+--hash=sha256:[0-9a-f]{64})+", e)]
    assert wrong == []


def test_lock_names_no_index() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_lock_holds_what_setup_asks_for() -> None:
    locked = {entry.split("==")[0] for entry in lock_entries()}
    assert set(declared("CORE") + declared("EXTRAS")) - locked == set()


def test_version_is_in_the_changelog() -> None:
    assert f"## [{tfdlrm.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("pattern", [INDEX_HOSTS, MACHINE_PATHS], ids=["index hosts", "machine paths"])
def test_no_text_names(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("open('" + "/ho" + "me/me/rows.tsv')", True),
        ("--raw " + "/ro" + "ot/rows.tsv", True),
        ("$CRITEO/train.txt", False),
        ("$BASE" + "/wo" + "rk/rows", False),
        ("docs" + "/wo" + "rk/rows", False),
    ],
)
def test_machine_path_pattern(text: str, found: bool) -> None:
    assert bool(MACHINE_PATHS.search(text)) is found


def test_ci_run_is_executable() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
