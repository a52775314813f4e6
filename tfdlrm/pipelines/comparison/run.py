"""A comparison from its configuration to its report; what an earlier call finished is not done again."""

from __future__ import annotations

import fcntl
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.models.build import storage_of
from tfdlrm.models.lookup import find_model
from tfdlrm.pipelines.comparison.outputs import notes, write_report
from tfdlrm.pipelines.comparison.plan import Block, Cell, cells_of, model_config
from tfdlrm.pipelines.comparison.summary import Group, Planned
from tfdlrm.pipelines.comparison.widths import Fitted, dense_weights, fit
from tfdlrm.pipelines.comparison.work import Result, prepare_block, read_cell, run_cells
from tfdlrm.pipelines.console import Console, Stopwatch
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.table import say_tables
from tfdlrm.report.html import Table
from tfdlrm.spec.compare import CompareConfig
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.model_spec import refuse_hopeless_budget

_LOCK = ".lock"
_WIDTH = 160
_WHOLE_RUN = 1e9
"""Seconds: the rate that the time left is told by is that since the start, for a cell may take hours."""

_START = 100_000
"""Samples that a cell could train on in the time that it takes to start, trace its graphs and score its rows."""


class Comparison:
    """Models side by side.

    Args:
        config: What to compare.
        blocks: The rows of each data set.
        chosen: Values that cells to run must have, by `dataset`, `model`, `optimizer`, `seed`; all where a key is
            missing.
        root: Work dir.

    Raises:
        ConfigError: a model is unknown, or the one that sets the size fits none of the data sets.
    """

    def __init__(
        self, config: CompareConfig, blocks: Mapping[str, list[Block]], chosen: Mapping[str, set[str]], root: Path
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.root = root
        self._chosen = chosen
        for model in config.models:
            find_model(model.name)

    @property
    def datasets(self) -> list[str]:
        """The data sets that are wanted."""
        return [name for name in self.blocks if name in self._chosen.get("dataset", {name})]

    @cached_property
    def fitted(self) -> dict[tuple[str, str], Fitted | str]:
        """The model of each data set and label at its final size, or why the data set has none."""
        found: dict[tuple[str, str], Fitted | str] = {}
        for dataset, (block, *_) in self.blocks.items():
            # Tables count for nothing here, so that rows need not be prepared, and full tables not be made.
            spec = spec_of(
                block.config.data,
                dict.fromkeys(encoding_of(block.config.data).tables, 1),
                block.config.model.embedding_dim,
            )
            settings = {model.label: model_config(block, model) for model in self.config.models}
            target = None
            if self.config.equal_parameters is not None:
                try:
                    target = dense_weights(spec, settings[self.config.equal_parameters])
                except ConfigError as error:
                    raise ConfigError(
                        f"`equal_parameters` must be a model that fits every data set. "
                        f"Received: {self.config.equal_parameters!r}, on {dataset}: {error}"
                    ) from None
            for label, own in settings.items():
                try:
                    refuse_hopeless_budget(spec, own, storage_of(own.name, own))
                    found[dataset, label] = fit(spec, own, None if label == self.config.equal_parameters else target)
                except ConfigError as error:
                    found[dataset, label] = str(error)
        if all(isinstance(settings, str) for settings in found.values()):
            raise ConfigError(f"no model fits: {next(iter(found.values()))}")
        return found

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, wanted or not."""
        return cells_of(self.config, self.blocks, self.fitted)

    @property
    def wanted(self) -> list[Cell]:
        """The cells that `--only` leaves."""
        return [
            cell
            for cell in self.cells
            if cell.block.dataset in self._chosen.get("dataset", {cell.block.dataset})
            and cell.model in self._chosen.get("model", {cell.model})
            and cell.optimizer in self._chosen.get("optimizer", {cell.optimizer})
            and str(cell.seed) in self._chosen.get("seed", {str(cell.seed)})
        ]

    def print_plan(self) -> None:
        """Print how many cells there are of each model, how large it is, and which models are left out."""
        lines: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in self.wanted:
            lines.setdefault((cell.block.dataset, cell.model, cell.optimizer), []).append(cell)
        rows = []
        for (dataset, model, optimizer), own in lines.items():
            fitted = own[0].fitted
            done = sum(cell.file(self.root).is_file() for cell in own)
            rows.append(
                [dataset, model, optimizer, str(len(own)), str(done), f"{fitted.dense:,}", fitted.note, fitted.widths]
                + [self._table_rows(own[0].block)]
            )
        columns = ["data set", "model", "optimizer", "cells", "done", "dense weights", "", "hidden", "table rows"]
        say_tables(Table(f"{self.config.name}: {len(self.wanted)} cells", columns, rows), width=_WIDTH)
        for line in notes(self.config, self._skipped())[1:]:
            say(line)

    def run(self, jobs: int, overwrite: bool = False) -> None:
        """Prepare rows, run what is missing of the wanted cells, and write the report.

        Args:
            jobs: Cells at a time.
            overwrite: Run cells of other settings again, and replace rows that another recipe prepared.

        Raises:
            UserError: rows cannot be prepared, or results of other settings are in the work dir.
        """
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        with self._locked():
            console = Console(self.root / "logs" / "compare.log")
            missing = self._missing(overwrite)
            samples: dict[Cell, int] = {}
            for block in {(cell.block.dataset, cell.block.fold): cell.block for cell in missing}.values():
                rows = prepare_block(block, self.root, overwrite)
                samples |= {cell: _START + rows * cell.config.train.epochs for cell in missing if cell.block is block}
            for cell in missing:
                cell.file(self.root).unlink(missing_ok=True)
            done = len(self.wanted) - len(missing)
            console.say(f"{self.config.name}: {len(self.wanted):,} cells" + (f", {done:,} done before" if done else ""))
            if missing:
                self._run_cells(missing, samples, jobs, console)
            self._report(console)

    def _run_cells(self, cells: list[Cell], samples: Mapping[Cell, int], jobs: int, console: Console) -> None:
        """Run cells and say after each how it went and how long the others may take."""
        progress = Progress(
            TextColumn("cells"),
            BarColumn(),
            TextColumn("{task.fields[cells]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            transient=True,
            speed_estimate_period=_WHOLE_RUN,
            disable=not sys.stderr.isatty(),
        )
        total, watch = sum(samples.values()), Stopwatch()
        task = progress.add_task("", total=total, cells=f"0 of {len(cells)}")
        finished: list[Cell] = []

        def done(cell: Cell, result: Result) -> None:
            finished.append(cell)
            number = f"{len(finished)} of {len(cells)}"
            progress.update(task, advance=samples[cell], cells=number)
            share = sum(samples[one] for one in finished) / total
            left = timedelta(seconds=round(watch.seconds * (1 / share - 1)))
            console.say(f"{number}, {left} left: {cell}: {_said(result)} ({result['seconds']:,.1f} s)")

        with progress:
            run_cells(cells, self.root, jobs, done)

    def _missing(self, overwrite: bool) -> list[Cell]:
        """Return the wanted cells that are to be run."""
        missing = []
        for cell in self.wanted:
            try:
                if read_cell(cell, self.root) is None:
                    missing.append(cell)
                else:  # a kill between the last two steps of a cell leaves its checkpoints
                    shutil.rmtree(cell.work_dir(self.root).path, ignore_errors=True)
            except ConfigError:
                if not overwrite:
                    raise
                missing.append(cell)
        return missing

    def _report(self, console: Console) -> None:
        done: dict[Group, dict[tuple[int, int | None], Result]] = {}
        for cell in self.cells:
            key = (cell.block.dataset, cell.optimizer, cell.model)
            result = read_cell(cell, self.root)
            if result is not None:
                done.setdefault(key, {})[cell.seed, cell.block.fold] = result
        groups = {
            key: Planned(tuple(block.fold for block in self.blocks[key[0]]), self.config.seeds, results)
            for key, results in done.items()
        }
        folder = self.root / "report"
        say_tables(*write_report(self.config, groups, self.fitted, folder), width=_WIDTH)
        for line in notes(self.config, self._skipped()):
            say(line)
        console.say(f"{'report:':<10} {folder}")

    def _skipped(self) -> list[dict[str, str]]:
        return [
            {"dataset": dataset, "model": model, "reason": reason}
            for (dataset, model), reason in self.fitted.items()
            if isinstance(reason, str)
        ]

    def _table_rows(self, block: Block) -> str:
        folder = block.work_dir(self.root).data
        return f"{Manifest.load(folder).spec.table_rows:,}" if (folder / MANIFEST).is_file() else "not prepared"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Take the work dir, alone."""
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"`--work-dir` must be a directory. Received: {self.root}, a file.")
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / _LOCK).exists() and any(self.root.iterdir()):
            raise ConfigError(
                f"`--work-dir` must be new, empty or a comparison's own. Received: {self.root}, which holds "
                "other files."
            )
        with (self.root / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.root}: another comparison is using this work dir.") from None
            yield


def _said(result: Result) -> str:
    if "diverged" in result:
        return f"diverged: {result['diverged']}"
    if not result["metrics"]:
        return "no held-out rows to judge by"
    return f"AUC {result['metrics']['auc']:.4f}, log loss {result['metrics']['log_loss']:.4f}"
