"""The checksum of a growing file is that of the whole file."""

from __future__ import annotations

import hashlib

import pytest

from tfdlrm.data import growing_checksum
from tfdlrm.data.growing_checksum import GrowingChecksum


@pytest.mark.parametrize("pieces", [[], [b"abc"], [b"x" * 5000, b"", b"y" * 3_000_001, b"z"] * 3])
def test_whole_file(tmp_path, monkeypatch, pieces):
    monkeypatch.setattr(growing_checksum, "_SYNC_EVERY", 4000)
    path = tmp_path / "shard"
    with open(path, "wb", buffering=0) as file:
        checksum = GrowingChecksum(path)
        for piece in pieces:
            file.write(piece)
            checksum.go_on()
    assert checksum.finish() == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_an_absent_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        GrowingChecksum(tmp_path / "absent")
