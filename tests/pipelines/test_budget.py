"""The command, and a budget in a run: what is planned is what is stored."""

from __future__ import annotations

import json
import shutil

import matplotlib.image
import pytest

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.pipelines import budget, criteo
from tfdlrm.pipelines.console import Console
from tfdlrm.pipelines.kept_plan import keep_plan
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.budget import BudgetPlan, fit_budget
from tfdlrm.spec.config import load_config
from tfdlrm.spec.criteo import KAGGLE, criteo_spec
from tfdlrm.spec.features import FeatureSpec


def test_published_cardinalities(tmp_path):
    figures, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    outcome = call(budget.main, "--dataset", "kaggle", "--budget", "512MB", "--json", figures, "--plot", picture)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("2.01 GiB of tables in ")
    assert "10,131,227" in outcome.out
    plan = BudgetPlan.from_json(figures.read_text())
    assert plan == fit_budget(criteo_spec(KAGGLE, 16), "512MB")
    assert matplotlib.image.imread(picture).shape[2] == 4


def test_table_rows_with_all_options(tmp_path):
    figures = tmp_path / "plan.json"
    arguments = ["--table-rows", "1460,50000,90000", "--embedding-dim", 8, "--budget", "1.5 MiB", "--json", figures]
    arguments += ["--methods", "bfloat16, dim", "--whole-rows", 2000, "--linear", "--samples", 10_000]
    assert call(budget.main, *arguments).code == 0
    plan = json.loads(figures.read_text())
    assert plan["bytes_before"] == 141_460 * (8 + 1) * 4
    assert plan["bytes_after"] <= plan["budget"] == 1_572_864
    assert plan["choices"][0]["why"] == "up to 2,000 rows"
    assert all(t["compression"] is None or t["compression"]["hash_rows"] is None for t in plan["spec"]["tables"])


def test_recipe_that_hashes(tmp_path):
    path = write_recipe(
        tmp_path,
        data={"coding": {"kind": "hash", "buckets": 5000}, "sparse": [{"name": "C1"}, {"name": "C2"}]},
        model={"embedding_budget": "100kB", "tables": {"C2": {"dtype": "bfloat16"}}},
    )
    outcome = call(budget.main, "--config", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "no order of count assumed in" in outcome.out
    assert "set for this table" in outcome.out
    assert call(budget.main, "--config", path, "--set", "model.tables.C2.dim=2", "--budget", "90kB").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "kaggle"], "`--budget` must be given where the recipe has no `model.embedding_budget`"),
        (["--dataset", "kaggle", "--budget", "5 parsecs"], "Received: '5 parsecs'"),
        (["--dataset", "kaggle", "--budget", "0MB"], "Received: '0MB'"),
        (["--dataset", "kaggle", "--budget=-5"], "Received: '-5'"),
        (["--dataset", "kaggle", "--budget", "1kB"], "`bytes` must be at least 1"),
        (["--dataset", "kaggle", "--budget", "1GB", "--methods", "hsh"], "Received: `hsh`. Did you mean `hash`?"),
        (["--dataset", "kaggle", "--budget", "1GB", "--set", "model.name=x"], "`--set` must come with --config"),
        (["--work-dir", "nowhere", "--budget", "1GB"], "nowhere: no prepared data. Run the stage `prepare` first."),
    ],
)
def test_one_line_for_what_cannot_be(arguments, message):
    assert message in refusal(*arguments, main=budget.main)


def test_recipe_that_counts_is_refused(tmp_path):
    line = refusal("--config", write_recipe(tmp_path), "--budget", "1MB", main=budget.main)
    assert "`--config` must come with `--work-dir`, or `--table-rows` in its place, where vocabularies" in line
    line = refusal("--table-rows", "10", "--budget", "1MB", "--plot", tmp_path, main=budget.main)
    assert line == f"{tmp_path}: a directory, where a file must be."


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    recipe = write_recipe(folder, data={"coding": {"kind": "hash", "buckets": 2000}})
    assert call(criteo.main, "--config", recipe, "--work-dir", folder / "run", "--stages", "prepare").code == 0
    return folder


def test_prepared_rows_are_counted(prepared, tmp_path):
    figures = tmp_path / "plan.json"
    outcome = call(budget.main, "--work-dir", prepared / "run", "--budget", "300kB", "--json", figures)
    assert (outcome.code, outcome.err) == (0, "")
    assert "reads counted in 26 of 26 tables" in outcome.out
    plan = json.loads(figures.read_text())
    assert plan["spec"]["tables"][0]["embedding_dim"] == 4
    data = call(budget.main, "--work-dir", prepared / "run" / "data", "--budget", "300kB")
    assert (data.code, data.out) == (0, outcome.out.replace(f"figures in {figures}\n", ""))


def test_unknown_names_are_told_before_rows_are_prepared(tmp_path):
    recipe = write_recipe(tmp_path)
    for setting, message in (
        ("model.tables.C33.dim=2", "`model.tables` must name a table of the data. Received: `C33`. Did you mean `C3`?"),
        (
            'model.learned_weights=["I1"]',
            "`model.learned_weights` must name a sparse feature of the data. Received: `I1`.",
        ),
        ("model.embedding_budget=10B", "`model.embedding_budget` must be at least 416 bytes"),
    ):
        line = refusal("--config", recipe, "--work-dir", tmp_path / "run", "--set", setting)
        assert line.startswith(message)
        assert not (tmp_path / "run" / "data" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "model.interaction=cat",
            "model.compression.dim=2",
            '`model.compression.dim` must go with `interaction` "dot"',
        ),
        (
            "train.embedding={name='adagrad'}",
            "model.tables.C3.dtype=float16",
            '`model.tables.C3.dtype` must be "float32" where `train.embedding.name` is "adagrad"',
        ),
    ],
)
def test_settings_that_exclude_one_another_are_told_before_rows_are_prepared(tmp_path, first, second, message):
    recipe = write_recipe(tmp_path)
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run", "--set", first, "--set", second)
    assert message in line
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()


def test_an_optimizer_that_does_not_round_gets_no_half_precision(prepared, tmp_path):
    adam = ["--set", "train.embedding={name='adam', learning_rate=0.01}", "--set", "model.embedding_budget=200kB"]
    arguments = ["--config", prepared / "small.toml", "--work-dir", tmp_path / "run", "--stages", "prepare,train"]
    outcome = call(criteo.main, *arguments, *adam, "--set", "train.epochs=1")
    assert outcome.code == 0, outcome.err
    plan = BudgetPlan.from_json((tmp_path / "run" / "report" / "budget.json").read_text())
    compressed = [choice.compression for choice in plan.choices if choice.compression]
    assert compressed and {compression.dtype for compression in compressed} == {"float32"}
    shown = call(budget.main, "--work-dir", tmp_path / "run")
    assert shown.out.startswith(plan.caption + "\n")


def test_a_run_plans_and_stores_what_it_planned(prepared):
    folder = prepared / "run"
    config = ["--config", prepared / "small.toml", "--work-dir", folder, "--overwrite"]
    setting = ["--set", "model.embedding_budget=300kB", "--set", "train.epochs=1", "--set", "evaluate.baseline=false"]
    outcome = call(criteo.main, *config, *setting, "--stages", "prepare,train")
    assert outcome.code == 0, outcome.err
    assert "reads counted in 26 of 26 tables" in outcome.out
    plan = BudgetPlan.from_json((folder / "report" / "budget.json").read_text())
    assert 270_000 < plan.bytes_after <= 300_000 < plan.bytes_before
    assert (folder / "report" / "budget.png").read_bytes().startswith(b"\x89PNG")
    shown = call(budget.main, "--work-dir", folder)
    assert shown.out.startswith(plan.caption + "\n")
    again = call(criteo.main, "--work-dir", folder, "--stages", "evaluate")
    assert again.code == 0, again.err


def test_a_run_stays_with_the_plan_it_was_trained_by(prepared, tmp_path):
    """The plan of a planner that knew one method only, as that of another version might be."""
    folder = tmp_path / "run"
    others = shutil.ignore_patterns("checkpoints", "report", "metrics.json", "config.toml")
    shutil.copytree(prepared / "run", folder, ignore=others)
    settings = ("model.embedding_budget=500kB", "train.epochs=1", "evaluate.baseline=false")
    config = load_config(prepared / "small.toml", settings)
    run = Run(config, WorkDir(folder), Console(tmp_path / "log", quiet=True))
    now, before = run.plan, fit_budget(run.manifest.spec.with_embedding_dim(4), "500kB", methods=["dim"])
    assert now is not None and now.spec != before.spec
    keep_plan(run.work_dir.checkpoints, run.planned_for, before)
    stages = ("--config", prepared / "small.toml", "--work-dir", folder, "--stages")
    changes = [part for setting in settings for part in ("--set", setting)]
    outcome = call(criteo.main, *stages, "train,evaluate", *changes)
    assert outcome.code == 0, outcome.err
    assert before.caption in outcome.out
    trained = next((folder / "checkpoints").glob("step-*/state.json"))
    assert FeatureSpec(**json.loads(trained.read_text())["spec"]) == before.spec
    # Without the plan, too, as a run of an earlier version is: and one that could not be planned at all any more.
    kept = folder / "checkpoints" / "plan.json"
    for text in (kept.read_text().replace('"500kB"', '"400kB"'), "{"):
        kept.write_text(text)
        again = call(criteo.main, "--work-dir", folder, "--stages", "evaluate")
        assert again.code == 0, again.err
        assert Run(config, WorkDir(folder), Console(tmp_path / "log", quiet=True)).plan == now
