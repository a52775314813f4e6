"""Ours and its peers in turn, each in an environment of its own: medians, and how many times as fast ours is.

    python benchmarks/side_by_side.py --python torchrec_fbgemm=ENV/bin/python --python facebook_dlrm=ENV/bin/python \
        --checkout dlrm --json figures.json --markdown table.md

Every round runs each contestant once, so that a slow minute of the machine hits all alike. Run it from a checkout, with
nothing else running; the share of the machine that others took meanwhile is noted and said.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison import OURS, Case, Contestant, Run, as_json, markdown, rates_table, ratio_table, rich_table, turns_bar
from rich.console import Console

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import run_command
from tfdlrm.pipelines.large_pages import OPT_OUT, TUNABLE
from tfdlrm.spec.criteo import CARDINALITIES, DENSE_COLUMNS
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.model_config import ModelConfig

HERE = Path(__file__).resolve().parent
# More than this of the machine in other hands, and a figure says little.
BUSY_SHARE = 0.1


@dataclass(frozen=True)
class Peer:
    """A script under `peers/`.

    Attributes:
        optimizers: Our optimizer to the peer's name for the one it is measured with.
        precisions: What it can compute in.
        checkout: Whether it needs `--checkout`.
    """

    optimizers: Mapping[str, str]
    precisions: tuple[str, ...]
    checkout: bool = False


PEERS = {
    "torchrec_fbgemm": Peer({"sgd": "sgd", "rowwise_adagrad": "rowwise_adagrad"}, ("float32", "bfloat16")),
    "facebook_dlrm": Peer({"sgd": "sgd", "rowwise_adagrad": "rowwise_adagrad"}, ("float32", "bfloat16"), True),
    "facebook_script": Peer({"sgd": "sgd", "rowwise_adagrad": "rowwise_adagrad"}, ("float32",), True),
    # It has no row-wise Adagrad; plain Adagrad is what its users take.
    "tfrs_ranking": Peer({"sgd": "sgd", "rowwise_adagrad": "adagrad"}, ("float32",)),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--python", action="append", default=[], metavar="NAME=PATH", help="the interpreter that has a peer; repeatable"
    )
    add("--peers", help=f"of {', '.join(PEERS)}, by commas (default: those with a --python)")
    add("--checkout", type=Path, help="of facebookresearch/dlrm, for the peers that need it")
    add("--tables", choices=sorted(CARDINALITIES), default="kaggle", help="(default: %(default)s)")
    add("--batch-sizes", default="128,2048,16384", help="by commas (default: %(default)s)")
    add("--optimizers", default="sgd,rowwise_adagrad", help="by commas (default: %(default)s)")
    add("--precisions", default="float32,bfloat16", help="by commas (default: %(default)s)")
    add("--rounds", type=int, default=5, help="processes of each contestant and column (default: %(default)s)")
    add("--repeats", type=int, default=1, help="timed repeats in a process, after its warm-up (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="about how long a repeat takes (default: %(default)s)")
    add("--steps", type=int, default=400, help="most steps of a repeat (default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="for everyone (default: all, %(default)s here)")
    add("--timeout", type=float, default=600.0, help="most seconds of one process (default: %(default)s)")
    add(
        "--large-pages",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"start everyone with GLIBC_TUNABLES={TUNABLE} (default: yes)",
    )
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--write-spec", type=Path, metavar="FILE", help="only write the shapes that the peer scripts take as --spec")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _main(args))


def _main(args: argparse.Namespace) -> int:
    if args.write_spec:
        write_atomic(args.write_spec, shapes(args.tables))
        return 0
    for name in ("rounds", "repeats", "seconds", "steps", "threads", "timeout"):
        if not getattr(args, name) > 0:
            raise ConfigError(f"`--{name}` must be above 0. Received: {getattr(args, name)}.")
    cases = [Case(o, _number(b)) for o in _listed(args.optimizers) for b in _listed(args.batch_sizes)]
    # The choice is made here, for all alike: ours would otherwise make it for itself.
    environment = {**os.environ, **({"GLIBC_TUNABLES": TUNABLE} if args.large_pages else {}), OPT_OUT: "0"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        environment[name] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.json"
        spec.write_text(shapes(args.tables), encoding="utf-8")
        runs, failures = measure(contestants(args, spec), cases, args.rounds, environment, args.timeout)
    tables = [rates_table(runs), ratio_table(runs)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(rich_table(*table))
    for failure in failures:
        print(failure, file=sys.stderr)
    busiest = max((run.others_share for run in runs), default=0.0)
    if busiest > BUSY_SHARE:
        print(
            f"others took up to {busiest:.0%} of the machine meanwhile: measure again when it is quiet.",
            file=sys.stderr,
        )
    if args.markdown:
        write_atomic(args.markdown, "\n".join(markdown(*table) for table in tables))
    if args.json:
        write_atomic(args.json, as_json(runs, failures, vars(args)))
    return 1 if failures else 0


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"`--batch-sizes` must be whole numbers above 0, by commas. Received: {text!r}.")
    return int(text)


def shapes(tables: str) -> str:
    """Return the JSON text that tells a peer the model: the default one, on the tables of that name."""
    model = ModelConfig()
    values = {
        "rows": list(CARDINALITIES[tables]),
        "embedding_dim": model.embedding_dim,
        "n_dense": len(DENSE_COLUMNS),
        "bottom_units": list(model.bottom_units),
        "top_units": list(model.top_units),
    }
    return json.dumps(values) + "\n"


def contestants(args: argparse.Namespace, spec: Path) -> list[Contestant]:
    """Return ours and the peers asked for, in each precision they have.

    Raises:
        ConfigError: a name is unknown, or a peer lacks its interpreter or checkout.
    """
    pythons = dict(entry.partition("=")[::2] for entry in args.python)
    precisions = _listed(args.precisions)
    names = _listed(args.peers) if args.peers else [name for name in PEERS if name in pythons]
    for label, given, known in (
        ("--peers", names, PEERS),
        ("--python", pythons, {**PEERS, OURS: None}),
        ("--precisions", precisions, ("float32", "bfloat16")),
        ("--optimizers", _listed(args.optimizers), ("sgd", "rowwise_adagrad")),
    ):
        if wrong := [name for name in given if name not in known]:
            raise ConfigError(f"`{label}` must name {', '.join(known)}. Received: {wrong[0]!r}.")
    if not names:
        raise ConfigError("`--python` must be given for a peer at least. Received: none.")
    for name in names:
        if not pythons.get(name):
            raise ConfigError(f"`--python {name}=PATH` must be given to run that peer. Received: nothing.")
        if PEERS[name].checkout and args.checkout is None:
            raise ConfigError(f"`--checkout` must be given to run {name}. Received: nothing.")
    pace = ["--steps", str(args.steps), "--seconds", str(args.seconds), "--repeats", str(args.repeats)]

    def ours(precision: str) -> Callable[[Case, Path], list[str]]:
        policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
        python = pythons.get(OURS, sys.executable)
        command = [python, "-m", "tfdlrm.pipelines.benchmark", "train", *pace, "--tables", args.tables]
        return lambda case, figures: [
            *(*command, "--precision", policy, "--embedding-optimizer", case.optimizer),
            *("--batch-size", str(case.batch_size), "--json", str(figures)),
        ]

    def peer(name: str, precision: str) -> Callable[[Case, Path], list[str] | None]:
        known = PEERS[name]
        command = [pythons[name], str(HERE / "peers" / f"{name}.py"), *pace, "--spec", str(spec)]
        command += ["--precision", precision, "--threads", str(args.threads)]
        command += ["--checkout", str(args.checkout)] if known.checkout else []
        return lambda case, figures: [
            *(*command, "--optimizer", known.optimizers[case.optimizer]),
            *("--batch-size", str(case.batch_size), "--json", str(figures)),
        ]

    return [
        *(Contestant(OURS, precision, ours(precision)) for precision in precisions),
        *(Contestant(n, p, peer(n, p)) for n in names for p in precisions if p in PEERS[n].precisions),
    ]


def measure(
    field: Sequence[Contestant], cases: Sequence[Case], rounds: int, environment: Mapping[str, str], timeout: float
) -> tuple[list[Run], list[str]]:
    """Run every contestant in every case, round by round, and return what they measured and what failed.

    A contestant that failed in a case is left out of its later rounds.
    """
    runs: list[Run] = []
    failures: dict[tuple[Case, Contestant], str] = {}
    turns = [(case, number, contestant) for case in cases for number in range(rounds) for contestant in field]
    with turns_bar() as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("", total=len(turns))
        for case, number, contestant in turns:
            progress.update(task, description=f"{case}, round {number + 1}: {contestant}")
            if (case, contestant) not in failures:
                try:
                    run = run_once(contestant, case, Path(folder), environment, timeout)
                except RuntimeError as error:
                    failures[case, contestant] = f"{case}: {contestant}: {error}"
                except KeyboardInterrupt:
                    # What hours have measured is not thrown away.
                    failures[case, contestant] = f"{case}: {contestant}: interrupted"
                    break
                else:
                    runs += [] if run is None else [run]
            progress.advance(task)
    return runs, list(failures.values())


def run_once(
    contestant: Contestant, case: Case, folder: Path, environment: Mapping[str, str], timeout: float
) -> Run | None:
    """Run one process and return what it measured, `None` if the contestant has no command for the case.

    Raises:
        RuntimeError: it failed, or took longer than `timeout` seconds.
    """
    figures = folder / "figures.json"
    figures.unlink(missing_ok=True)
    command = contestant.command(case, figures)
    if command is None:
        return None
    others, started = _Others(), time.perf_counter()
    try:
        # A session of its own: a script may start further processes, which a timeout must end too.
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"took longer than {timeout:g} seconds") from None
        raise
    seconds = time.perf_counter() - started
    if process.returncode or not figures.is_file():
        last = (err.strip() or out.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"exit code {process.returncode}: {last}")
    rate = float(json.loads(figures.read_text(encoding="utf-8"))["rows_per_second"])
    return Run(case, contestant, rate, others.share(seconds))


class _Others:
    """How much of the machine's processors others use from now on."""

    def __init__(self) -> None:
        self._busy, self._own = self._seconds()

    def share(self, seconds: float) -> float:
        """Return the share of all processors over the last `seconds` that went to neither us nor our children."""
        busy, own = self._seconds()
        cores = os.cpu_count() or 1
        return max(0.0, (busy - self._busy) - (own - self._own)) / (seconds * cores)

    @staticmethod
    def _seconds() -> tuple[float, float]:
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        try:
            fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        except OSError:  # not Linux: nobody to ask
            return own, own
        return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK"), own


if __name__ == "__main__":
    raise SystemExit(main())
