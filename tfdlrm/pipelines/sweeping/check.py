"""`python -m tfdlrm.pipelines.sweeping.check ROOT`: does every value of the space fit the model? Are there rows?

In a process of its own, so that the one that lasts holds no TensorFlow of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import load_tensorflow, refuse_unreadable, run_command
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.sweeping.trial import prepare_rows, searches_data
from tfdlrm.spec.errors import ConfigError, DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Check, prepare rows, and note that it was done."""
    (root,) = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(SweepFolder(Path(root))))


def _run(folder: SweepFolder) -> int:
    sweep, recipe = folder.settings()
    refuse_unreadable(recipe)
    load_tensorflow()
    from tfdlrm.pipelines.run import refuse_misfit

    space = folder.space()
    seen: set[str] = set()
    for values in space.corners():
        config = space.apply(values)
        network = config.model_dump_json(include={"model", "data"}) + config.train.precision
        if network in seen:
            continue
        seen.add(network)
        try:
            refuse_misfit(config)
        except ConfigError as error:
            raise ConfigError(f"`space`, {json.dumps(values)}: {error}") from None
    splits = {} if searches_data(sweep) else prepare_rows(folder, recipe)
    if splits and not splits["validation"]["rows"]:
        raise DataError("`data.split` must leave rows for validation, which trials are compared on. Received: 0.")
    write_atomic(folder.checked_file, json.dumps({name: split["rows"] for name, split in splits.items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
