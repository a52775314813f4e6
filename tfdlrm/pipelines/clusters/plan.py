"""`cluster plan`: where tables would lie on machines, what that costs, and why anything is refused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfdlrm.data.files import write_atomic
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.distribute.cost_model import fit_cost_model, read_measurements
from tfdlrm.distribute.plan_recipe import PlannedTables, PlanRecipe, load_plan_recipe
from tfdlrm.distribute.table_plan import TablePlan
from tfdlrm.pipelines.benchmarks.figures import write_figures
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories
from tfdlrm.pipelines.table import print_tables
from tfdlrm.report.html import Table
from tfdlrm.spec.arguments import positives
from tfdlrm.spec.byte_sizes import bytes_in_words
from tfdlrm.spec.config import load_config
from tfdlrm.spec.criteo import CARDINALITIES
from tfdlrm.spec.errors import ConfigError, DataError, SpecError, UserError, why_unreadable
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_spec import model_spec, without_compression
from tfdlrm.spec.storage import Storage

COMPUTED = "computed, not measured"
_MOST_DEVICES = 24


class _Known(NamedTuple):
    """What a recipe does not say: arguments of `PlanRecipe.make_plan`."""

    spec: FeatureSpec | None = None
    counts: dict[str, Any] | None = None
    storage: Storage | None = None
    dense_bytes: tuple[int, ...] | None = None


def add_parser(subparsers: Any) -> None:
    """Add the subcommand `plan`."""
    parser = subparsers.add_parser("plan", help="where tables lie, and what that costs", allow_abbrev=False)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", required=True, help="planner recipe: [topology], and what it is for")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe; repeatable")
    add("--servers", type=positives, metavar="N,N,...", help="numbers of servers (devices) to plan for, one by one")
    source = parser.add_mutually_exclusive_group()
    add = source.add_argument
    add("--work-dir", type=Path, metavar="DIR", help="run, or prepared data: its tables, its rows are counted")
    add("--table-rows", type=positives, metavar="N,N,...", help="rows of each table")
    add("--dataset", choices=sorted(CARDINALITIES), help="published cardinalities")
    add = parser.add_argument
    add("--measurements", type=Path, metavar="FILE", help="JSON list of measured steps: fit the cost model on them")
    add("--json", type=Path, metavar="FILE", help="also write the plan to a file")
    add("--plot", type=Path, metavar="PNG", help="draw what each device holds and is asked for")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan, print, write."""
    refuse_directories(args.json, args.plot)
    recipe, known = _read(args)
    if args.measurements is not None:
        recipe = recipe.model_copy(update={"cost": _fitted(args.measurements)})
    print(recipe.cost.caption)
    known = _with_model(recipe, known)
    if known.storage is not None and known.storage.other_bytes:
        print(f"not counted: {bytes_in_words(known.storage.other_bytes)} of tables of the model's own, without slots")
    if args.servers is None or len(args.servers) == 1:
        if args.servers is not None:
            recipe = _with_devices(recipe, args.servers[0])
        plan = recipe.make_plan(*known)
        _show(plan)
        write_figures(args.json, plan.figures())
        if args.plot is not None:
            write_atomic(args.plot, plan_picture(plan))
        return 0
    tried = [(count, _try(_with_devices(recipe, count), known)) for count in args.servers]
    print_tables(scaling_table(tried), width=160)
    for count, outcome in tried:
        if isinstance(outcome, str):
            print(f"refused on {count}: {outcome}")
    write_figures(args.json, {"computed": True, "plans": [_outcome(count, own) for count, own in tried]})
    if args.plot is not None:
        write_atomic(args.plot, _scaling_picture(tried))
    return 0


def table_table(plan: TablePlan) -> Table:
    """Return a line for each table, largest first."""
    rows = [
        [
            *(d.table, f"{d.rows:,}", bytes_in_words(d.bytes), f"{d.lookups:,.0f}", d.decision),
            *(_numbers(d.devices), d.why),
        ]
        for d in sorted(plan.tables, key=lambda d: -d.bytes)
    ]
    caption = f"Tables, with optimizer slots; rows looked up in one step; {COMPUTED}"
    return Table(caption, ["table", "rows", "bytes", "lookups", "how", "where", "why"], rows)


def device_table(plan: TablePlan) -> Table:
    """Return a line for each device; of many, those that a step waits for longest."""
    shown = sorted(range(len(plan.devices)), key=lambda i: (-plan.devices[i].seconds, i))[:_MOST_DEVICES]
    rows = []
    for device in (plan.devices[i] for i in sorted(shown)):
        rows.append(
            [
                *(device.name, bytes_in_words(device.memory), bytes_in_words(device.bytes)),
                *(f"{device.bytes / device.memory:.0%}", bytes_in_words(device.dense_bytes), f"{device.lookups:,.0f}"),
                *(bytes_in_words(round(device.wire_bytes)), f"{1000 * device.seconds:,.2f}"),
            ]
        )
    left_out = len(plan.devices) - len(rows)
    busiest = f"the {len(rows)} busiest of {len(plan.devices)} devices" if left_out else "devices"
    caption = (
        f"{busiest[0].upper()}{busiest[1:]}, one step of one worker, milliseconds for all {plan.work.workers}; "
        f"most over mean: bytes {plan.bytes_imbalance:.2f}, lookups {plan.lookup_imbalance:.2f}; {COMPUTED}"
    )
    columns = ["device", "memory", "holds", "full", "of that dense", "lookups", "on the wire", "ms"]
    return Table(caption, columns, rows)


def scaling_table(tried: Sequence[tuple[int, TablePlan | str]]) -> Table:
    """Return a line for each number of devices."""
    rows = []
    for count, plan in tried:
        if isinstance(plan, str):
            rows.append([str(count), *["-"] * 8, "refused"])
            continue
        cut = [len(d.devices) for d in plan.tables if d.decision == "rows"]
        over = f"{len(cut)} over {min(cut)}" + (f" to {max(cut)}" if min(cut) < max(cut) else "") if cut else "none"
        rows.append(
            [
                *(str(count), bytes_in_words(max(d.bytes for d in plan.devices)), f"{plan.bytes_imbalance:.2f}"),
                *(f"{plan.lookup_imbalance:.2f}", over, str(sum(d.decision == "whole" for d in plan.tables))),
                *(str(plan.work.ops), f"{1000 * plan.time.seconds:,.1f}", f"{plan.samples_per_second:,.0f}"),
                plan.bottleneck,
            ]
        )
    columns = ["devices", "fullest", "bytes max/mean", "lookups max/mean", "by rows", "whole", "ops", "ms a step"]
    return Table(f"Plans, {COMPUTED}", [*columns, "samples/s", "held up by"], rows)


def _read(args: argparse.Namespace) -> tuple[PlanRecipe, _Known]:
    """Return the recipe, and the tables and counts of prepared rows."""
    recipe = load_plan_recipe(args.config, args.set)
    if args.table_rows is not None or args.dataset is not None:
        update = {"rows": args.table_rows or (), "dataset": args.dataset, "times": recipe.tables.times}
        return recipe.model_copy(update={"tables": PlannedTables(**update)}), _Known()
    if args.work_dir is None:
        return recipe, _Known()
    data = next((folder for folder in (args.work_dir / "data", args.work_dir) if (folder / MANIFEST).is_file()), None)
    if data is None:
        raise DataError(f"{args.work_dir}: no prepared data. Run the stage `prepare` first.")
    if (args.work_dir / "config.toml").is_file():
        own = load_config(args.work_dir / "config.toml")
        recipe = recipe.model_copy(update={"model": own.model, "train": own.train})
    manifest = Manifest.load(data)
    load_tensorflow()
    from tfdlrm.data.read_counts import read_counts

    return recipe, _Known(manifest.spec, dict(read_counts(data, manifest)))


def _with_model(recipe: PlanRecipe, known: _Known) -> _Known:
    """Return what is known with what the model has; DLRM's is known without TensorFlow, any other one is built."""
    model = recipe.model
    if model.name == "dlrm":
        return known
    load_tensorflow()
    from tfdlrm.models.build import storage_of
    from tfdlrm.pipelines.clusters.dense_weights import dense_weights

    storage = storage_of(model.name, model)
    if recipe.plan.dense_bytes is not None:
        return known._replace(storage=storage)
    spec = model_spec(known.spec or recipe.tables.spec(model.embedding_dim), without_compression(model))
    return known._replace(storage=storage, dense_bytes=tuple(dense_weights(spec, model).values()))


def _fitted(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {why_unreadable(error)}.") from None
    try:
        return fit_cost_model(read_measurements(text))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _with_devices(recipe: PlanRecipe, count: int) -> PlanRecipe:
    try:
        return recipe.model_copy(update={"topology": recipe.topology.with_count(count)})
    except SpecError as error:
        raise ConfigError(f"`--servers`: {error}") from None


def _try(recipe: PlanRecipe, known: _Known) -> TablePlan | str:
    """Return the plan, or why there is none."""
    try:
        return recipe.make_plan(*known)
    except ConfigError:
        raise
    except UserError as error:
        return str(error)


def _show(plan: TablePlan) -> None:
    print(f"{plan.caption} ({COMPUTED}; {plan.assumes})")
    for note in plan.notes:
        print(f"note: {note}")
    print_tables(table_table(plan), device_table(plan), width=160)


def _outcome(count: int, plan: TablePlan | str) -> dict[str, Any]:
    return {"devices": count, **({"refused": plan} if isinstance(plan, str) else plan.figures())}


def plan_picture(plan: TablePlan) -> bytes:
    """Draw what each device holds and is asked for, as PNG."""
    from tfdlrm.report.placement import placement_picture

    devices = plan.devices
    held = {d.table: [own.table_bytes.get(d.table, 0) for own in devices] for d in plan.tables}
    held["dense weights"] = [own.dense_bytes for own in devices]
    lookups = {d.table: [own.table_lookups.get(d.table, 0.0) for own in devices] for d in plan.tables}
    title = f"{1000 * plan.time.seconds:,.1f} ms a step, held up by: {plan.bottleneck} ({COMPUTED})"
    return placement_picture([d.name for d in devices], held, lookups, [d.memory for d in devices], title)


def _scaling_picture(tried: Sequence[tuple[int, TablePlan | str]]) -> bytes:
    from tfdlrm.report.placement import scaling_picture

    plans = [(count, plan) for count, plan in tried if not isinstance(plan, str)]
    if not plans:
        raise ConfigError("`--plot` must have a plan to draw: none fits.")
    parts = {
        "dense network": [plan.time.dense for _, plan in plans],
        "operations on variables": [plan.time.ops for _, plan in plans],
        "busiest machine": [plan.time.seconds - plan.time.dense - plan.time.ops for _, plan in plans],
    }
    fullest = [max(device.bytes for device in plan.devices) for _, plan in plans]
    return scaling_picture([count for count, _ in plans], parts, fullest, f"Plans, {COMPUTED}")


def _numbers(devices: Sequence[int]) -> str:
    """Say device numbers in few words.

    >>> _numbers((0, 1, 2, 5))
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for device in devices:
        if runs and device == runs[-1][1] + 1:
            runs[-1][1] = device
        else:
            runs.append([device, device])
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in runs)
