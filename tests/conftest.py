"""Shared test helpers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shared_data():
    """Return a function from a relative name to a path in the optional shared data folder; skips where absent."""
    folder = Path(os.environ.get("TFDLRM_SHARED_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"optional data not here: {name} (set TFDLRM_SHARED_DATA)")
        return path

    return find
