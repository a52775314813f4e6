"""Files are whole or absent under their final name."""

from __future__ import annotations

import hashlib

import pytest

from tfdlrm.data.files import atomic_path, sha256_of, write_atomic


def test_the_file_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "er" / "a.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".") and temporary.name.endswith(".tmp")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_what_was_there(tmp_path, error):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.bin"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_write_atomic_takes_bytes_and_text(tmp_path):
    write_atomic(tmp_path / "b", b"\x00\xff")
    write_atomic(str(tmp_path / "t"), "é\n")
    write_atomic(tmp_path / "t", "ü\n")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t").read_bytes() == "ü\n".encode()


def test_sha256_of(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
