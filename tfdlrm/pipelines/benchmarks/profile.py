"""Where a training step spends its time: the paper's operator groups, forward and backward, from the TF profiler."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from tfdlrm.data.files import atomic_path
from tfdlrm.spec.errors import ConfigError

GROUPS = (
    "embedding lookup",
    "sparse update",
    "bottom MLP",
    "interaction",
    "top MLP",
    "dense update",
    "input",
    "other",
)
PHASES = ("forward", "backward")

# Where Keras and the gradient tape put their own scopes around a layer's.
_WRAPPERS = re.compile(r"^(while|body|_\d+|gradient_tape|StatefulPartitionedCall|cond|then|else)$")
# Names that all models give to layers of one kind. The first that fits counts.
_LAYERS = {
    "bottom": "bottom MLP",
    "interaction|cross|cin|dense_vectors|linear_terms": "interaction",
    "embedding|linear|crosses": "embedding lookup",
    "top": "top MLP",
}
_SPARSE_OPS = ("Unique", "Scatter", "UnsortedSegment", "SegmentSum", "SparseApply", "Gather")
# They last as long as what runs inside them; the op for the next batch is counted by the wait inside it.
_NOT_WORK = ("While", "If", "PartitionedCall", "Case", "IteratorGetNext")
_WAIT_FOR_INPUT = "IteratorGetNextOp::DoCompute"

Split = dict[str, dict[str, float]]


@dataclass(frozen=True)
class OpTime:
    """One operation of the graph: its scoped name, its type, and the seconds that threads spent in it."""

    name: str
    kind: str
    seconds: float


def trace(run: Callable[[], Any]) -> list[OpTime]:
    """Run something under the profiler and return the operations it executed, summed by name."""
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder, options)
        try:
            run()
        finally:
            tf.profiler.experimental.stop()
        return [op for file in Path(folder).rglob("*.xplane.pb") for op in read_trace(file.read_bytes())]


def read_trace(serialized: bytes) -> list[OpTime]:
    """Return the operations in an XSpace, as the profiler writes it.

    Raises:
        ConfigError: this TensorFlow brings no reader for the profiler's files.
    """
    try:
        # Not public, but no public reader of these files comes with TensorFlow.
        from tensorflow.tsl.profiler.protobuf import xplane_pb2
    except ImportError:
        raise ConfigError(
            "`--profile` must have a TensorFlow that can read its profiler's files. Received: none."
        ) from None
    space = xplane_pb2.XSpace.FromString(serialized)
    seconds: dict[str, float] = {}
    for plane in space.planes:
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                name = names.get(event.metadata_id, "")
                seconds[name] = seconds.get(name, 0.0) + event.duration_ps * 1e-12
    ops = []
    for name, total in seconds.items():
        scope, _, kind = name.rpartition(":")
        if name == _WAIT_FOR_INPUT:
            ops.append(OpTime("IteratorGetNext", "IteratorGetNext", total))
        elif re.fullmatch(r"[\w./>-]+", scope) and re.fullmatch(r"_?[A-Z]\w*", kind) and not kind.endswith(_NOT_WORK):
            ops.append(OpTime(scope, kind, total))
    return ops


def split_by_group(ops: Iterable[OpTime], model: str, optimizer: str, steps: int) -> Split:
    """Return the milliseconds a step of each operator group, forward and backward.

    Args:
        ops: From `trace`.
        model: Name of the model, the outermost scope of its layers.
        optimizer: Name of the optimizer, the scope of the updates.
        steps: Steps in the trace.
    """
    ops = list(ops)
    sparse_scopes = {_update_scope(op, optimizer) for op in ops if any(part in op.kind for part in _SPARSE_OPS)}
    split = {group: dict.fromkeys(PHASES, 0.0) for group in GROUPS}
    for op in ops:
        group, phase = _place(op, model, optimizer, sparse_scopes)
        split[group][phase] += op.seconds * 1000.0 / steps
    return split


def _place(op: OpTime, model: str, optimizer: str, sparse_scopes: set[str | None]) -> tuple[str, str]:
    if op.kind == "IteratorGetNext":
        return "input", "forward"
    scopes = op.name.split("/")
    # A gradient that a layer writes itself is traced under the optimizer's `gradients`.
    backward = "gradient_tape" in scopes or "gradients" in scopes
    phase = "backward" if backward else "forward"
    inner = [scope for scope in scopes if not _WRAPPERS.match(scope)]
    if optimizer in inner and "gradients" not in inner:
        scope = _update_scope(op, optimizer)
        sparse = scope in sparse_scopes if scope else any(part in op.kind for part in _SPARSE_OPS)
        return ("sparse update" if sparse else "dense update"), "backward"
    for scope in inner:
        for layers, group in _LAYERS.items():
            if re.fullmatch(rf"({layers})(_\w+)?", scope):
                return group, phase
    # Straight under the model: joining the dense vector with the looked-up ones, and with their products.
    if inner[0] == model and len(inner) == 2 and re.match(r"(concat|Cast|Slice|strided_slice|ExpandDims)", inner[1]):
        return "interaction", phase
    return "other", phase


def _update_scope(op: OpTime, optimizer: str) -> str | None:
    """Return the scope of one variable's update, `None` outside such a scope."""
    found = re.search(rf"{re.escape(optimizer)}/(update(_\d+)?)/", op.name)
    return found[1] if found else None


def split_table(split: Split) -> Table:
    """Return the split as a table: milliseconds a step, and shares."""
    total = sum(sum(phases.values()) for phases in split.values()) or 1.0
    table = Table(title="busy thread time of a step")
    table.add_column("operators")
    for name in ("forward ms", "backward ms", "share"):
        table.add_column(name, justify="right")
    for group, phases in split.items():
        share = sum(phases.values()) / total
        table.add_row(group, f"{phases['forward']:.2f}", f"{phases['backward']:.2f}", f"{share:.1%}")
    forward, backward = (sum(phases[phase] for phases in split.values()) for phase in PHASES)
    table.add_section()
    table.add_row("all", f"{forward:.2f}", f"{backward:.2f}", "100%")
    return table


def draw_split(split: Split, path: Path, title: str) -> None:
    """Write the split as a picture (PNG): one bar for each group, forward and backward in two colours."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    groups = list(reversed(split))
    left = [0.0] * len(groups)
    for phase, colour in zip(PHASES, ("#0072B2", "#D55E00"), strict=True):
        widths = [split[group][phase] for group in groups]
        axes.barh(groups, widths, left=left, color=colour, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="busy thread time of a step, ms", title=title)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
