"""What every benchmark reports: rates of repeats, their median and spread, peak memory, the machine."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic


def rate_figures(rates: Sequence[float]) -> dict[str, Any]:
    """Return median and spread of the rates of timed repeats, in rows/s."""
    return {
        "rows_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "rates": list(rates),
        "repeats": len(rates),
    }


def machine_figures() -> dict[str, Any]:
    """Return what a figure means nothing without: cores, software, and whether large pages were asked for."""
    import tensorflow as tf

    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "large_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
    }


def peak_memory_bytes() -> int:
    """Return the most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rate_text(figures: Mapping[str, Any]) -> str:
    """Return median, spread and peak memory in words."""
    spread = f"{figures['slowest']:,.0f} to {figures['fastest']:,.0f}"
    return (
        f"{figures['rows_per_second']:,.0f} rows/s (median of {figures['repeats']}; {spread}), "
        f"peak memory {figures['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures to `path` as JSON, whole or not at all, and say so; `None` writes nothing."""
    if path is not None:
        write_atomic(path, json.dumps(figures, indent=1) + "\n")
        print(f"figures in {path}")
