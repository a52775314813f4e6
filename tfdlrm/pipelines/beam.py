"""What a command needs to prepare rows with Apache Beam: `--engine beam`, and options of Beam after `--`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfdlrm.pipelines.console import NewBar
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError

if TYPE_CHECKING:
    from tfdlrm.data.manifest import Manifest

ENGINES = ("local", "beam")


def add_beam_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the engine to a command that prepares rows."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="what prepares: this process, or Apache Beam, whose options, --runner among them, follow after --",
    )


def split_beam_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of a command before the first `--`, and the options of Beam after it.

    Example:
        >>> split_beam_options(["--engine", "beam", "--", "--runner=FlinkRunner"])
        (['--engine', 'beam'], ['--runner=FlinkRunner'])
    """
    own = list(argv)
    if "--" not in own:
        return own, []
    place = own.index("--")
    return own[:place], own[place + 1 :]


def refuse_idle_options(engine: str, pipeline_options: Sequence[str]) -> None:
    """Raise `ConfigError` where options of Beam are given to another engine."""
    if engine != "beam" and pipeline_options:
        raise ConfigError(f"options after `--` must come with --engine beam. Received: {' '.join(pipeline_options)}")


def run_with_beam(
    data: DataConfig,
    raw: Sequence[str],
    directory: str | Path,
    embedding_dim: int,
    pipeline_options: Sequence[str],
    *,
    overwrite: bool,
    progress: NewBar,
) -> Manifest:
    """Prepare rows with Apache Beam, whose warnings while it loads are not shown.

    Args:
        data: The recipe.
        raw: Raw files, paths or URLs.
        directory: Where to, a path or a URL: URLs must be strings.
        embedding_dim: Width of the tables in the manifest's spec.
        pipeline_options: Options of Beam.
        overwrite: Replace what another recipe prepared there.
        progress: Starts a progress bar.

    Raises:
        DataError: as `tfdlrm.data.beam_prepare.prepare_with_beam`.
        ConfigError: likewise.
    """
    from tfdlrm.data.beam_prepare import prepare_with_beam, refuse_without_beam

    refuse_without_beam()
    shown = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of clients of services that nobody asked for
    try:
        import apache_beam  # noqa: F401
    finally:
        logging.disable(shown)
    return prepare_with_beam(
        data, raw, directory, embedding_dim, pipeline_options=pipeline_options, overwrite=overwrite, progress=progress
    )
