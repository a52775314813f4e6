"""The comparison of ours and its peers, with small real processes in place of the large ones."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name):
    # Scripts beside one another import each other by their plain names.
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


comparison = load("comparison")
side_by_side = load("side_by_side")
growth = load("growth")
Case, Contestant = comparison.Case, comparison.Contestant

# Writes the next of the given rates each time it runs, and notes that it ran.
MEASURE = """
import json, sys
name, log, figures, *rates = sys.argv[1:]
ran = open(log).read().split() if __import__("os").path.exists(log) else []
open(log, "a").write(name + "\\n")
json.dump({"rows_per_second": float(rates[ran.count(name)])}, open(figures, "w"))
"""
FAIL = "import sys; print('first'); sys.exit('no such kernel')"


def contestant(name, log, *rates, precision="float32"):
    arguments = [f"{name}-{precision}", str(log)]
    texts = [str(rate) for rate in rates]
    return Contestant(
        name, precision, lambda case, file: [sys.executable, "-c", MEASURE, *arguments, str(file), *texts]
    )


def test_rounds_take_turns_and_medians_make_the_ratios(tmp_path, monkeypatch):
    log = tmp_path / "log"
    case = Case("sgd", 2048)
    field = [
        contestant("tfdlrm", log, 100, 300, 200),
        contestant("slow", log, 40, 60, 50),
        contestant("fast", log, 160, 70, 80),
    ]
    runs, failures = side_by_side.measure(field, [case], 3, {}, 60)
    assert failures == []
    assert log.read_text().split() == ["tfdlrm-float32", "slow-float32", "fast-float32"] * 3
    assert comparison.rates_table(runs) == (
        "rows/s, median (slowest to fastest)",
        ["", "sgd, B 2048"],
        [
            ["tfdlrm, float32", "200 (100 to 300)"],
            ["slow, float32", "50 (40 to 60)"],
            ["fast, float32", "80 (70 to 160)"],
        ],
    )
    title, columns, rows = comparison.ratio_table(runs)
    assert rows == [
        ["tfdlrm, float32 / slow, float32", "4.00x"],
        ["tfdlrm, float32 / fast, float32", "2.50x"],
        ["tfdlrm, float32 / best peer", "2.50x"],
    ]
    assert comparison.markdown(title, columns, rows).splitlines()[2:5] == [
        "|  | sgd, B 2048 |",
        "| --- | ---: |",
        "| tfdlrm, float32 / slow, float32 | 4.00x |",
    ]
    figures = json.loads(comparison.as_json(runs, failures, {"json": tmp_path}))["figures"]
    assert [entry["rows_per_second"] for entry in figures] == [200, 50, 80]
    assert figures[0]["rates"] == [100, 300, 200]


def test_the_best_peer_is_found_case_by_case(tmp_path):
    cases = [Case("sgd", 128), Case("sgd", 2048)]
    field = [
        contestant("tfdlrm", tmp_path / "log", 100, 100, precision="bfloat16"),
        contestant("a", tmp_path / "log", 50, 20),
        contestant("b", tmp_path / "log", 10, 80),
    ]
    runs, _ = side_by_side.measure(field, cases, 1, {}, 60)
    assert comparison.ratio_table(runs)[2][-1] == ["tfdlrm, bfloat16 / best peer", "2.00x", "1.25x"]


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path):
    broken = Contestant("broken", "float32", lambda case, file: [sys.executable, "-c", FAIL])
    hanging = Contestant(
        "hanging", "float32", lambda case, file: [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    absent = Contestant("absent", "float32", lambda case, file: ["no-such-interpreter"])
    field = [broken, hanging, absent, contestant("tfdlrm", tmp_path / "log", 10, 20)]
    runs, failures = side_by_side.measure(field, [Case("sgd", 8)], 1, {}, 10)
    assert [run.rows_per_second for run in runs] == [10]
    assert failures == [
        "sgd, B 8: broken, float32: exit code 1: no such kernel",
        "sgd, B 8: hanging, float32: took longer than 10 seconds",
        "sgd, B 8: absent, float32: no-such-interpreter: No such file or directory",
    ]


def test_everyone_gets_the_same_environment(tmp_path, monkeypatch):
    show = "import os, sys; open(sys.argv[1], 'w').write('{\"rows_per_second\": %s}' % os.environ['OMP_NUM_THREADS'])"
    field = [Contestant(n, "float32", lambda case, file: [sys.executable, "-c", show, str(file)]) for n in "ab"]
    runs, _ = side_by_side.measure(field, [Case("sgd", 8)], 1, {"OMP_NUM_THREADS": "3"}, 60)
    assert [run.rows_per_second for run in runs] == [3, 3]


def command_of(argv, tmp_path, number):
    args = side_by_side.build_parser().parse_args(argv)
    field = side_by_side.contestants(args, tmp_path / "spec.json")
    return str(field[number]), field[number].command(Case("rowwise_adagrad", 128), tmp_path / "f.json")


def test_commands_of_the_contestants(tmp_path):
    argv = [
        "--python",
        "tfrs_ranking=py3",
        "--precisions",
        "bfloat16,float32",
        "--steps",
        "7",
        "--python",
        "tfdlrm=ours",
    ]
    name, command = command_of(argv, tmp_path, 0)
    assert name == "tfdlrm, bfloat16"
    assert command[:4] == ["ours", "-m", "tfdlrm.pipelines.benchmark", "train"]
    assert "mixed_bfloat16" in command and command[command.index("--embedding-optimizer") + 1] == "rowwise_adagrad"
    name, command = command_of(argv, tmp_path, 2)
    assert name == "tfrs_ranking, float32"  # it has no bfloat16
    assert command[:2] == ["py3", str(FOLDER / "peers" / "tfrs_ranking.py")]
    assert command[command.index("--optimizer") + 1] == "adagrad"
    assert command[command.index("--steps") + 1] == "7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`--python` must be given for a peer at least"),
        (["--peers", "torchrec"], "`--peers` must name torchrec_fbgemm"),
        (["--peers", "torchrec_fbgemm"], "`--python torchrec_fbgemm=PATH` must be given"),
        (["--python", "facebook_dlrm=x"], "`--checkout` must be given to run facebook_dlrm"),
        (["--python", "tfrs_ranking=x", "--precisions", "float16"], "`--precisions` must name float32, bfloat16"),
        (["--python", "tfrs_ranking=x", "--optimizers", "adam"], "`--optimizers` must name sgd, rowwise_adagrad"),
        (["--python", "tfrs_ranking=x", "--batch-sizes", "128,many"], "`--batch-sizes` must be whole numbers"),
        (["--python", "tfrs_ranking=x", "--rounds", "0"], "`--rounds` must be above 0. Received: 0"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, message):
    assert side_by_side.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# A peer that does next to nothing: what the scripts share, run as they run it.
PEER = """
import sys, time
sys.path.insert(0, {peers!r})
from timing import Shapes, measure, parse
args = parse("nothing", ("sgd",), ("float32",))
shapes = Shapes.load(args.spec)
def run(batches):
    for batch in batches:
        assert batch.dense.shape == (args.batch_size, 13) and batch.sparse.max(0).tolist() < list(shapes.rows)
        time.sleep(0.01)
    return 0.5
measure(args, "nothing", shapes, list, run)
"""


def test_peer_scripts_share_their_timing(tmp_path):
    spec, figures = tmp_path / "spec.json", tmp_path / "figures.json"
    assert side_by_side.main(["--write-spec", str(spec)]) == 0
    assert sum(json.loads(spec.read_text())["rows"]) == 33_762_577
    code = PEER.format(peers=str(FOLDER / "peers"))
    flags = ["--batch-size", "4", "--seconds", "0.1", "--repeats", "3", "--spec", str(spec), "--json", str(figures)]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(figures.read_text())
    assert measured["repeats"] == 3
    assert measured["steps"] >= 1
    assert 0 < measured["rows_per_second"] < 400  # four rows take a hundredth of a second at least
    assert "nothing, batch 4, float32, sgd: " in done.stdout


@pytest.mark.parametrize("name", sorted(side_by_side.PEERS))
def test_every_peer_has_a_script_that_takes_the_flags(name, tmp_path):
    known = side_by_side.PEERS[name]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "peers" / f"{name}.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--spec", "--batch-size", "--steps", "--seconds", "--repeats", "--threads", "--json"):
        assert flag in done.stdout
    assert ("--checkout" in done.stdout) == known.checkout
    for value in (*known.optimizers.values(), *known.precisions):
        assert value in done.stdout


def test_growth_is_over_the_smallest_size():
    rates = {
        ("uniform", 10, "ours"): [1000.0, 500.0, 2000.0],
        ("uniform", 100, "ours"): [500.0],
        ("uniform", 10, "bare"): [10_000.0],
        ("uniform", 100, "bare"): [2500.0],
    }
    small, large = growth.growth(rates, batch_size=100)
    assert (small["ours_ms"], small["bare_ms"], small["ratio"]) == (100.0, 10.0, 1.0)
    assert (large["ours_growth"], large["bare_growth"], large["ratio"]) == (2.0, 4.0, 0.5)
    assert growth.growth_table([large])[2] == [["uniform, 100", "200.00", "40.00", "2.00x", "4.00x", "0.50"]]


def test_growth_measures_the_bare_table(tmp_path):
    figures = tmp_path / "figures.json"
    flags = ["--table-rows", "1000", "--ids", "powerlaw", "--batch-size", "16", "--steps", "3", "--repeats", "2"]
    assert growth.main(["--bare", *flags, "--json", str(figures)]) == 0
    measured = json.loads(figures.read_text())
    assert measured["rows_per_second"] > 0 and len(measured["rates"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "zipf"], "`--ids` must be of uniform, powerlaw. Received: 'zipf'"),
        (["--table-rows", "1e6"], "`--table-rows` must be whole numbers above 0"),
    ],
)
def test_bad_growth_arguments_are_one_line(capsys, arguments, message):
    assert growth.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
