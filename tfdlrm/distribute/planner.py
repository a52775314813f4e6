"""Where embedding tables lie on many machines, what each machine then holds and does, and how long a step takes.

Pure arithmetic: no cluster and no TensorFlow is needed. What is looked for and how is in `server_search` for
parameter servers and in `accelerator_search` for GPUs, TPU cores and mirrored workers; the formula of a step's time
in `cost_model`; the rules of where a row lies in `layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfdlrm.distribute.accelerator_search import AcceleratorPlanner
from tfdlrm.distribute.cost_model import CostModel
from tfdlrm.distribute.dense_weights import projection_bytes
from tfdlrm.distribute.layout import Piece, dense_slot_bytes, pieces_of
from tfdlrm.distribute.row_reads import Skew
from tfdlrm.distribute.server_search import Dense, Layout, ServerPlanner
from tfdlrm.distribute.table_plan import DeviceLoad, TableDecision, TablePlan
from tfdlrm.distribute.topology import Topology
from tfdlrm.spec.byte_sizes import bytes_in_words
from tfdlrm.spec.errors import SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.train_config import DenseOptimizer, EmbeddingOptimizer

_MOST_BYTES = 1 << 53
"""Up to here bytes are exact in floating point, and those of all devices together within 64 bits."""


def plan_tables(
    spec: FeatureSpec,
    *,
    optimizer: EmbeddingOptimizer,
    batch_size: int,
    topology: Topology,
    skew: Skew = "uniform",
    dense_bytes: Sequence[int] = (),
    dense_optimizer: DenseOptimizer = "sgd",
    cost: CostModel | None = None,
    linear: bool = False,
    distinct_ids: bool | None = None,
    placement: Mapping[str, Sequence[int]] | None = None,
) -> TablePlan:
    """Plan where tables lie, so that the predicted step is short and no device holds more than it can.

    Args:
        spec: The features, tables compressed as they are to be stored.
        optimizer: Of the tables; its slots lie beside their rows.
        batch_size: Samples of a step: with servers those of one worker, else those of all devices together.
        topology: The devices.
        skew: How ids are distributed: `"uniform"`, the exponent of Zipf's law for tables in order of count, or counts
            of reads by table. See `tfdlrm.distribute.row_reads.table_reads`.
        dense_bytes: Bytes of each dense float32 variable of the model, without slots; `dlrm_dense_bytes` says those of
            DLRM. Projections of narrower tables come from the spec. Defaults to none.
        dense_optimizer: Of the dense variables. Defaults to `"sgd"`, which has no slots.
        cost: The cost model. Defaults to stated numbers.
        linear: Whether the model has a linear weight for each row too, as DeepFM has. Defaults to `False`.
        distinct_ids: Whether a step reads each row once at most, instead of once for each time that its batch has the
            id. Defaults to `None`, what training does: `True` on servers, `False` elsewhere.
        placement: Where tables lie on servers, to be judged as it is instead of planned.

    Returns:
        The plan; `placement` of it is what training takes.

    Raises:
        SpecError: no plan fits, with the device, what it would hold and what it can; or an argument does not fit the
            spec.

    Example:
        >>> from tfdlrm.spec.criteo import KAGGLE, criteo_spec
        >>> machines = Topology(devices=[{"kind": "server", "count": 4, "memory": "1GB"}], workers=2)
        >>> plan = plan_tables(criteo_spec(KAGGLE, 16), optimizer="sgd", batch_size=2048, topology=machines)
        >>> plan.placement["C3"], plan.tables[2].decision
        ((0, 1, 2, 3), 'rows')
    """
    if batch_size < 1:
        raise SpecError(f"`batch_size` must be at least 1. Received: {batch_size}.")
    if not spec.tables:
        raise SpecError("`spec` must have tables to plan for. Received: none.")
    if distinct_ids is None:
        distinct_ids = topology.kind == "server"
    weights = (*dense_bytes, *projection_bytes(spec))
    dense = Dense(weights, tuple(size + dense_slot_bytes(dense_optimizer, size) for size in weights))
    pieces = pieces_of(spec, optimizer, batch_size, skew, linear, distinct_ids)
    total = sum(piece.bytes for piece in pieces) + sum(dense.stored)
    if total > _MOST_BYTES:
        raise SpecError(
            f"`spec` must have tables, slots and dense weights of {bytes_in_words(_MOST_BYTES)} at most. "
            f"Received: {bytes_in_words(total)}."
        )
    names = tuple(table.name for table in spec.tables)
    parts = (names, pieces, dense, batch_size, topology, cost or CostModel())
    copied: frozenset[str] = frozenset()
    if topology.kind != "server":
        if placement is not None:
            raise SpecError(f'`placement` must be left out without servers. Received: one, for "{topology.kind}".')
        layout, copied = AcceleratorPlanner(*parts).find()
    elif placement is None:
        layout = ServerPlanner(*parts).find()
    else:
        planner = ServerPlanner(*parts)
        given = checked_placement(placement, names, len(topology.all_devices))
        layout = planner.lay_out(given, dict.fromkeys(names, "as given"))
        planner.refuse_overfull(layout)
    return _described(spec, pieces, layout, copied, topology, cost or CostModel(), _assumed(skew, distinct_ids))


def checked_placement(
    placement: Mapping[str, Sequence[int]], tables: Sequence[str], servers: int
) -> dict[str, tuple[int, ...]]:
    """Return a placement in the order of the tables.

    Args:
        placement: Servers of each table.
        tables: All tables.
        servers: How many servers there are.

    Raises:
        SpecError: a table is missing or unknown, or its servers are none, repeated or not there.
    """
    for name in placement:
        if name not in tables:
            raise SpecError(
                f"`placement` must name tables of the spec. Received: `{name}`.{did_you_mean(name, tables)}"
            )
    missing = [name for name in tables if name not in placement]
    if missing:
        raise SpecError(f"`placement` must name every table. Received: none for {', '.join(missing[:4])}.")
    for name, on in placement.items():
        if not on or len(set(on)) < len(on) or not all(0 <= server < servers for server in on):
            raise SpecError(
                f"`placement` of table `{name}` must be different servers from 0 to {servers - 1}. "
                f"Received: {list(on)}."
            )
    return {name: tuple(placement[name]) for name in tables}


def _described(
    spec: FeatureSpec,
    pieces: Sequence[Piece],
    layout: Layout,
    copied: frozenset[str],
    topology: Topology,
    cost: CostModel,
    assumes: str,
) -> TablePlan:
    """Return the plan behind a layout."""
    devices, loads = topology.all_devices, layout.loads
    hosts = {device.number for device in devices if device.kind == "host"}
    sizes = {
        table.name: sum(piece.bytes for piece in pieces if piece.table == number)
        for number, table in enumerate(spec.tables)
    }
    decisions = []
    for number, table in enumerate(spec.tables):
        on = layout.placement[table.name]
        if table.name in copied:
            decision = "replicate"
        elif set(on) <= hosts:
            decision = "offload"
        else:
            decision = "rows" if len(on) > 1 else "whole"
        decisions.append(
            TableDecision(
                table=table.name,
                rows=table.vocabulary_size,
                bytes=sizes[table.name],
                lookups=float(loads.lookups[number].sum()),
                decision=decision,
                devices=on,
                why=layout.why[table.name],
            )
        )
    names = [table.name for table in spec.tables]
    described = [
        DeviceLoad(
            name=device.name,
            kind=device.kind,
            memory=device.memory,
            bytes=int(layout.device_bytes[device.number]),
            dense_bytes=int(layout.dense_bytes[device.number]),
            padding_bytes=int(loads.padding[device.number]),
            lookups=layout.work.lookups_per_server[device.number],
            wire_bytes=layout.work.wire_bytes_per_server[device.number],
            seconds=layout.time.devices[device.number],
            table_bytes={n: int(b) for n, b in zip(names, loads.bytes[:, device.number], strict=True) if b},
            table_lookups={n: float(x) for n, x in zip(names, loads.lookups[:, device.number], strict=True) if x},
        )
        for device in devices
    ]
    return TablePlan(
        tables=tuple(decisions),
        devices=tuple(described),
        dense_placement=layout.dense,
        stacks=loads.stacks,
        work=layout.work,
        time=layout.time,
        cost=cost,
        kind=topology.kind,
        assumes=assumes,
        notes=_notes(described),
    )


def _notes(devices: Sequence[DeviceLoad]) -> tuple[str, ...]:
    """Say what a reader of the plan should know."""
    notes = []
    tight = [device for device in devices if device.bytes > 0.95 * device.memory]
    if tight:
        notes.append(
            f"{tight[0].name} is full: {bytes_in_words(tight[0].bytes)} of {bytes_in_words(tight[0].memory)}"
            + (f", and {len(tight) - 1} more like it" if len(tight) > 1 else "")
        )
    dense_wire = [device.name for device in devices if device.dense_bytes > 0.5 * device.bytes]
    if dense_wire:
        notes.append(f"dense weights are most of what {dense_wire[0]} holds")
    return tuple(notes)


def _assumed(skew: Skew, distinct_ids: bool) -> str:
    if isinstance(skew, Mapping):
        known = sum(counts is not None for counts in skew.values())
        words = f"reads counted in {known} tables, uniform in others"
    elif isinstance(skew, str):
        words = "ids uniform"
    else:
        words = f"ids in order of count and read by Zipf's law, exponent {skew:g}"
    return words + (", each row read once a step at most" if distinct_ids else "")
