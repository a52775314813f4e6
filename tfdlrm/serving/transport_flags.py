"""The flags that say how the server carries requests; those that TensorFlow Serving has bear its names."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tfdlrm.spec.errors import ConfigError

if TYPE_CHECKING:  # reading flags needs no TensorFlow
    from tfdlrm.serving.servable import Servable

Loader = Callable[[Path, int], "Servable"]


@dataclasses.dataclass(frozen=True)
class Transport:
    """How the server carries requests, read from the flags.

    Attributes:
        enable_batching: Whether calls of signatures are gathered into batches.
        batching_parameters_file: How; TensorFlow Serving's defaults where None.
    """

    enable_batching: bool = False
    batching_parameters_file: Path | None = None

    def loader(self, load: Loader) -> Loader:
        """Return a loader whose servables answer as the flags say.

        Args:
            load: What loads a plain servable from a version directory and its number.

        Raises:
            ConfigError: A file named by a flag cannot be read, or holds what it should not.
        """
        if not self.enable_batching:
            return load
        from tfdlrm.serving.batching import Batcher, BatchingParameters, read_parameters

        file = self.batching_parameters_file
        batcher = Batcher(read_parameters(file) if file is not None else BatchingParameters())
        return lambda path, version: batcher.batched(load(path, version))


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags to the parser of the server."""
    group = parser.add_argument_group("how requests are carried")
    group.add_argument("--enable_batching", action="store_true", help="compute rows of waiting requests together")
    group.add_argument(
        "--batching_parameters_file", type=Path, metavar="FILE", help="BatchingParameters in protobuf text form"
    )


def read(args: argparse.Namespace) -> Transport:
    """Read what `add` added.

    Raises:
        ConfigError: Flags that do not go together.
    """
    if args.batching_parameters_file is not None and not args.enable_batching:
        raise ConfigError(
            "`batching_parameters_file` must come with --enable_batching. "
            f"Received: {args.batching_parameters_file} alone"
        )
    return Transport(args.enable_batching, args.batching_parameters_file)
