"""The command `prepare`: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests.conftest import ROOT
from tests.data.published_rules import write_rows
from tests.pipelines.small_runs import call, refusal
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.planted import write_planted
from tfdlrm.pipelines.prepare import main
from tfdlrm.spec.published import RECIPES

MODULE = "tfdlrm.pipelines.prepare"
# A limit on the size of files is what a process can have of a full disk.
LIMITED = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
runpy.run_module("{MODULE}", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def raw(tmp_path):
    (path,) = write_rows(tmp_path, [140])
    return path


def test_run_by_name_and_again(raw, tmp_path):
    out = tmp_path / "out"
    argv = ("run", "--recipe", "fb", "--raw", raw, "--out", out, "--set", "data.coding.modulus=50")
    outcome = call(main, *argv)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{out}: train 120, validation 10, test 10 rows; ")
    manifest = Manifest.load(out)
    assert manifest.encoding.tables["C1"].modulus == 50
    assert manifest.spec.tables[0].embedding_dim == 16
    before = (out / "manifest.json").stat().st_mtime_ns
    assert call(main, *argv).code == 0
    assert (out / "manifest.json").stat().st_mtime_ns == before

    other = ("run", "--recipe", "nvidia", "--raw", raw, "--out", out)
    assert refusal(*other, main=main).startswith(f"{out}: prepared by another recipe: `data.dense[0].transform`")
    assert call(main, *other, "--overwrite", "--embedding-dim", 8).code == 0
    assert Manifest.load(out).spec.tables[0].embedding_dim == 8


def test_an_interrupted_run_names_the_command_that_goes_on(tmp_path, forks):
    raw, out = tmp_path / "planted rows.txt", tmp_path / "out"
    write_planted(raw, 60_000)
    argv = ["run", "--recipe", "tfdlrm", "--raw", str(raw), "--out", str(out), "--overwrite"]
    process = forks.start("-m", MODULE, *argv)
    survey = tmp_path / "out.partial" / "survey.json"
    while not survey.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.output
    said = process.output.splitlines()[-1].removeprefix("tfdlrm: interrupted. What is done is kept; to go on: ")
    assert shlex.split(said)[-len(argv) :] == argv
    done = subprocess.run(said, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "an earlier run was broken off" in done.stdout
    assert Manifest.load(out).splits["train"].rows > 40_000


def test_run_by_file(raw, tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text(
        f'[data]\nrecipe = "tfm"\nraw = ["{raw}"]\n[data.coding]\nmodulus = 64\n[model]\nembedding_dim = 4\n'
    )
    assert call(main, "run", "--config", config, "--out", tmp_path / "out").code == 0
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.encoding.tables["C26"].modulus, manifest.encoding.tables["C26"].id_order) == (64, "count_digits")
    assert manifest.splits["validation"].rows == 0
    assert manifest.spec.tables[0].embedding_dim == 4


@pytest.mark.parametrize("name", RECIPES)
def test_explain_says_every_recipe(name):
    outcome = call(main, "explain", name)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{name}: {RECIPES[name].title}\n")
    said = json.loads(call(main, "explain", name, "--json", "--dataset", "terabyte").out)
    assert said["recipe"] == name
    assert said["settings"]["split"]["days"] == 0
    assert set(said["topics"]) >= {
        "Split",
        "Numbers",
        "Values",
        "Missing values",
        "Thresholds",
        "Order",
        "Unseen values",
    }
    leaks = [warning for warning in said["warnings"] if "validation and test rows" in warning or "test rows" in warning]
    assert bool(leaks) == (name != "tfdlrm")


def test_explain_warns_of_leaks_and_states_the_rules():
    fb = " ".join(call(main, "explain", "fb", "--dataset", "terabyte").out.split())
    assert "The vocabulary is counted on validation and test rows" in fb
    assert "87.5% of the rows with label 0" in fb
    assert "modulo 10,000,000" in fb
    assert "A missing value counts as the value 0, and shares its row" in fb
    torchrec = " ".join(call(main, "explain", "torchrec").out.split())
    assert "Test rows are trained on" in torchrec
    nvidia = " ".join(call(main, "explain", "nvidia").out.split())
    assert "ln(x + 3), rounded to half precision" in nvidia
    assert "A value seen fewer than 15 times has row 0" in nvidia
    ours = call(main, "explain", "tfdlrm").out
    assert "Training rows." in ours
    assert "WARNING" not in ours


def test_explain_loads_no_tensorflow():
    code = "import sys; from tfdlrm.pipelines.prepare import main; main(['explain', 'fb'])"
    code += "; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_diff_prints_and_writes(raw, tmp_path):
    found = tmp_path / "diff.json"
    outcome = call(main, "diff", "fb", "torchrec", "--raw", raw, "--json", found)
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join(outcome.out.split())
    assert "fb and torchrec on 140 rows" in text
    assert "dense.*.transform: 'log1p' in fb, 'log_file_minimum' in torchrec" in text
    assert "Rows in another place: 70 of 140" in text
    assert "WARNING torchrec: 70 of 70 rows that validate or test are trained on" in text
    assert "WARNING fb: the vocabulary is counted on 20 rows that validate or test" in text
    said = json.loads(found.read_text())
    assert said["places"]["train"] == {"train": 70, "all three": 50}
    assert len(said["dense"]) == 13
    assert len(said["sparse"]) == 26


def test_diff_names_what_it_does_not_compare(raw, tmp_path):
    recipes = []
    for hotness in (3, 4):
        recipes.append(tmp_path / f"{hotness}.toml")
        recipes[-1].write_text(
            '[data]\nsparse = [{name = "C1"}, '
            f'{{name = "C2", hotness = {hotness}, expand = {{distribution = "uniform"}}}}]\n'
        )
    found = tmp_path / "diff.json"
    outcome = call(main, "diff", *recipes, "--raw", raw, "--json", found)
    assert outcome.code == 0
    said = " ".join(outcome.out.split())
    assert f"NOT COMPARED ids in bags of different lengths: C2 (3 in {recipes[0]}, 4 in {recipes[1]})" in said
    assert json.loads(found.read_text())["bags"] == {"C2": [3, 4]}


def test_diff_keeps_nothing_in_the_folder_it_is_given(raw, tmp_path, monkeypatch, forks):
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert call(main, "diff", "fb", "tfm", "--raw", raw, "--folder", folder).code == 0
    assert list(folder.iterdir()) == []
    done = forks.start("-c", LIMITED, "diff", "fb", "tfm", "--raw", raw, "--folder", folder)
    assert done.wait() == 2, done.output
    assert done.output == (
        f"tfdlrm: {folder}: the disk is full. Nothing is kept: free some space, or name a folder on another disk "
        "with --folder.\n"
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("explain", "nvidai"), "Received: 'nvidai'. Did you mean `nvidia`?"),
        (("explain", "fb", "--dataset", "kagle"), "`dataset` must be one of kaggle, terabyte. Received: 'kagle'."),
        (("explain", "none.toml"), "none.toml: cannot be read"),
        (("run", "--recipe", "fb", "--out", "x"), "`--raw` must name the raw files"),
        (
            ("run", "--recipe", "fb", "--out", "x", "--raw", "r", "--set", "data.codin.modulus=3"),
            "unknown key `codin`. Did you mean `coding`?",
        ),
        (
            ("run", "--recipe", "fb", "--out", "x", "--raw", "r", "--embedding-dim", "0"),
            "`--embedding-dim` must be at least",
        ),
        (("diff", "fb", "tfn", "--raw", "r"), "Did you mean `tfm`?"),
        (("diff", "fb", "tfm", "--raw", "/no/such/file"), "/no/such/file: "),
        (("diff", "fb", "tfm", "--raw", "/no/such/file", "--json", "."), ".: a directory, where a file must be."),
        (("diff", "fb", "tfm", "--raw", "r", "--folder", "none"), "`--folder` must be a directory. Received: none."),
    ],
)
def test_mistakes_are_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(*argv, main=main)
    assert not (tmp_path / "x").exists()
