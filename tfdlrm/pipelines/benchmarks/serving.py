"""How fast a server answers: one process that serves, one that asks, and the bare signature beside them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.table import Table

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.benchmarks.figures import machine_figures
from tfdlrm.pipelines.benchmarks.served_model import (
    Columns,
    candidate_columns,
    grpc_body,
    questions,
    random_vocabularies,
    rank_question,
    rest_body,
    write_model,
)
from tfdlrm.pipelines.local_server import LocalServer
from tfdlrm.serving.client import PredictClient
from tfdlrm.spec.config import RunConfig, TableForm
from tfdlrm.spec.derive import encoding_of
from tfdlrm.spec.errors import ConfigError, MachineError
from tfdlrm.spec.features import FeatureSpec

NAME = "kaggle"
_BODIES = 200  # different questions, asked in turn
_BARE_CALLS = 2000
_IDENTITY = "benchmark.json"
_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        clients: Clients at a time, beside a single one.
        candidates: Candidates of a ranking question.
        seconds: How long each load lasts.
        seed: Of weights, keys and questions.
        tables: How the exported model stores its tables.
        rounds: How often a single client and the bare signature are measured in turn; the median of each is told.
        batching: Parameter file of dynamic batching; `None` measures without.
    """

    clients: int = 64
    candidates: int = 512
    seconds: float = 5.0
    seed: int = 0
    tables: TableForm = "float32"
    rounds: int = 3
    batching: Path | None = None


def measure_serving(
    spec: FeatureSpec, config: RunConfig, plan: Plan, folder: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Export a model, serve it, and return milliseconds and requests a second.

    Args:
        spec: Criteo's features with the tables' sizes.
        config: Its `[model]` is built.
        plan: What to measure.
        folder: Where the model lies; one that is there already is taken. `None` for a temporary one.
        say: Told what comes next.

    Raises:
        MachineError: a server does not start, or a question is refused.
        ConfigError: the folder holds a model of other settings.
    """
    with tempfile.TemporaryDirectory(prefix="tfdlrm-serve-") as temporary:
        base = (folder or Path(temporary)) / NAME
        identity = {
            "spec": spec.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
            "seed": plan.seed,
            "tables": plan.tables,
        }
        if not any(base.glob("[0-9]*")):
            say(f"writing a model of {spec.table_rows:,} table rows, {plan.tables}")
            write_model(base, spec, config, plan.seed, plan.tables)
            write_atomic(base / _IDENTITY, json.dumps(identity))
        elif not (base / _IDENTITY).is_file() or json.loads((base / _IDENTITY).read_text()) != identity:
            raise ConfigError(f"`--folder` must hold no model, or one of these settings. Received: {base}, of others.")
        version = max(base.glob("[0-9]*"), key=lambda path: int(path.name))
        encoder = _encoder(spec, config, plan.seed)
        asked = _Questions(encoder, candidate_columns(spec), plan, Path(temporary))
        bare = _Bare(version, asked)
        say("REST, gRPC and the bare signatures in turn")
        figures: dict[str, Any] = {"version_bytes": _bytes(version)}
        figures["plain"] = _loads(base, asked, plan, Path(temporary) / "plain.log", (), bare)
        if plan.batching is not None:
            say("with dynamic batching")
            flags = ("--enable_batching", "--batching_parameters_file", str(plan.batching))
            figures["batching"] = _loads(base, asked, plan, Path(temporary) / "batching.log", flags, bare)
    return {
        **figures,
        "bare": bare.medians(),
        "rounds": plan.rounds,
        "table_rows": spec.table_rows,
        "tables": plan.tables,
        "clients": plan.clients,
        "candidates": plan.candidates,
    } | (machine_figures())


def serving_table(figures: Mapping[str, Any]) -> Table:
    """Return the figures as a table: one line a load."""
    bare = figures["bare"]
    table = Table(
        title=f"{figures['table_rows']:,} table rows, {figures['tables']}; bare signature, one row: "
        f"{bare['predict']:.2f} ms, {figures['candidates']} candidates: {bare['rank']:.2f} ms",
        caption="over: p50 less that of the bare signature; first: the very first answer",
    )
    for heading in ("server", "load", "clients", "p50 ms", "p99 ms", "over", "first", "per s"):
        table.add_column(heading, justify="left" if heading in ("server", "load") else "right")
    for server in ("plain", "batching"):
        for name, load in figures.get(server, {}).items():
            what, clients = name.rsplit(" ", 1)
            times = [f"{load[key]:.2f}" for key in ("p50", "p99")]
            kind = what.split()[-1]
            times.append(f"{load['p50'] - bare[kind]:.2f}" if clients == "1" and kind in bare else "")
            # The server's very first answer; the questions after it find it warm.
            times.append(f"{load['first']:.2f}" if name == "rest predict 1" else "")
            table.add_row(server, what, clients, *times, f"{load['per_second']:,.0f}")
    return table


def _encoder(spec: FeatureSpec, config: RunConfig, seed: int) -> FeatureEncoder:
    return FeatureEncoder(
        spec, encoding_of(config.data), random_vocabularies(spec, config, np.random.default_rng(seed)), {}
    )


class _Questions:
    """Questions as columns and as folders of bodies."""

    def __init__(self, encoder: FeatureEncoder, candidates: tuple[str, ...], plan: Plan, folder: Path) -> None:
        columns = questions(encoder, max(_BODIES, plan.candidates), plan.seed + 1)
        self.rows = [{name: values[i : i + 1] for name, values in columns.items()} for i in range(_BODIES)]
        many = {name: values[: plan.candidates] for name, values in columns.items()}
        self.ranks = [rank_question(_turned(many, i), candidates) for i in range(8)]
        self.folders: dict[str, Path] = {}
        kinds: dict[str, tuple[str, Sequence[Columns]]] = {
            "predict": ("serving_default", self.rows),
            "rank": ("rank", self.ranks),
        }
        for kind, (signature, asked) in kinds.items():
            for transport in ("rest", "grpc"):
                path = folder / f"{kind}-{transport}"
                path.mkdir()
                self.folders[path.name] = path
                for number, question in enumerate(asked):
                    body = (
                        rest_body(question, signature) if transport == "rest" else grpc_body(question, NAME, signature)
                    )
                    (path / f"{number:04d}").write_bytes(body)
        empty = folder / "empty"
        empty.mkdir()
        (empty / "0").write_bytes(b"")
        self.folders["empty"] = empty


def _turned(columns: Columns, by: int) -> Columns:
    return {name: np.roll(values, by) for name, values in columns.items()}


class _Bare:
    """The signatures called in this process, with tensors that are ready."""

    def __init__(self, version: Path, asked: _Questions) -> None:
        loaded = tf.saved_model.load(str(version))
        self._calls: dict[str, list[Callable[[], Any]]] = {}
        for kind, signature, columns in (("predict", "serving_default", asked.rows), ("rank", "rank", asked.ranks)):
            function = loaded.signatures[signature]
            ready = [{name: tf.constant(values) for name, values in question.items()} for question in columns]
            self._calls[kind] = [partial(function, **tensors) for tensors in ready]
        self._medians: dict[str, list[float]] = {kind: [] for kind in self._calls}

    def measure(self) -> None:
        """Take another median of each."""
        for kind, calls in (("predict", _BARE_CALLS), ("rank", _BARE_CALLS // 20)):
            took = []
            for number in range(calls + 50):
                ask = self._calls[kind][number % len(self._calls[kind])]
                begun = time.perf_counter()
                for output in ask().values():
                    output.numpy()
                took.append(time.perf_counter() - begun)
            self._medians[kind].append(statistics.median(took[50:]) * 1e3)

    def medians(self) -> dict[str, float]:
        """Return the median of the medians, in milliseconds."""
        return {kind: statistics.median(found) for kind, found in self._medians.items()}


def _loads(
    base: Path, asked: _Questions, plan: Plan, log: Path, flags: Sequence[str], bare: _Bare
) -> dict[str, Mapping[str, float]]:
    """Serve the model and put every load on it in turn."""
    figures: dict[str, Mapping[str, float]] = {}
    with _serving(base, log, flags) as (url, target):
        where = {"rest": f"{url}/v1/models/{NAME}:predict", "grpc": target}
        # Machines change their speed within minutes: what is compared is measured side by side, and more than once.
        rounds: dict[str, list[Mapping[str, float]]] = {}
        for _ in range(plan.rounds):
            for kind in ("predict", "rank"):
                for transport, address in where.items():
                    found = _load(transport, address, asked.folders[f"{kind}-{transport}"], 1, plan.seconds)
                    rounds.setdefault(f"{transport} {kind} 1", []).append(found)
            bare.measure()
        for name, measured in rounds.items():
            medians = {key: statistics.median(figure[key] for figure in measured) for key in measured[0]}
            figures[name] = {**medians, "first": measured[0]["first"]}
        for transport, address in where.items():
            many = _load(transport, address, asked.folders[f"predict-{transport}"], plan.clients, plan.seconds)
            figures[f"{transport} predict {plan.clients}"] = many
        # What the server answers without a model: an empty body is refused, an empty status request is, too.
        for transport, address in where.items():
            for clients in (1, plan.clients):
                refused = _load(transport, address, asked.folders["empty"], clients, plan.seconds, "--expect-refusal")
                figures[f"{transport} empty {clients}"] = refused
    return figures


@contextmanager
def _serving(base: Path, log: Path, flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Serve inside the block; yield the REST address and that of gRPC."""
    with LocalServer(NAME, base, log, flags, grpc=True) as server:
        with PredictClient(server.url, NAME, timeout=300) as client:
            server.wait_until_ready(client)
        yield server.url, server.grpc_target


def _load(transport: str, where: str, bodies: Path, clients: int, seconds: float, *more: str) -> Mapping[str, float]:
    """Ask from another process."""
    paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        *(sys.executable, "-m", "tfdlrm.pipelines.benchmarks.load", transport, where, str(bodies)),
        *("--clients", str(clients), "--seconds", str(seconds), "--warm-up", str(min(seconds, 1.0)), *more),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    if done.returncode:
        raise MachineError(f"{where}: the clients ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
