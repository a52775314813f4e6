"""Imports without the notes that native libraries print while they load, which no setting turns off."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

_NOTES = ("All log messages before absl::InitializeLog", "Could not find cuda drivers")


def quieten_tensorflow() -> None:
    """Have TensorFlow, not yet imported, tell errors alone, unless TF_CPP_MIN_LOG_LEVEL says otherwise.

    What it calls an error is that it finds no GPU, which is news only where there is one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if Path("/dev/nvidiactl").exists() else "3")


def import_quietly(name: str, keep_notes: bool = False) -> None:
    """Import a module; what it prints to standard error follows without TensorFlow's notes on itself and on GPUs.

    Args:
        name: Of the module, as in `import`.
        keep_notes: Print them all the same. Defaults to `False`.

    Raises:
        ImportError: there is no such module, or it fails to load.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            importlib.import_module(name)
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            notes.seek(0)
            for line in notes.read().decode(errors="replace").splitlines():
                if keep_notes or not any(note in line for note in _NOTES):
                    print(line, file=sys.stderr)
