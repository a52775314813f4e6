"""Sweeps over the settings of a run: `search` in a notebook, `python -m tfdlrm.pipelines.sweep` in a shell."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["search"]


def __getattr__(name: str) -> Any:
    # What runs trials stands on every floor above; this door to it opens when it is first used.
    if name not in __all__:
        raise AttributeError(f"module 'tfdlrm.tuning' has no attribute {name!r}")
    value = getattr(importlib.import_module("tfdlrm.pipelines.sweeping.search"), name)
    globals()[name] = value
    return value
