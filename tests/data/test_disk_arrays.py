"""What a full disk does to arrays that are files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Builds vocabularies on a disk that has no room for them, and tells the number of each error.
FULL_DISK = """
import os, sys
from pathlib import Path
import polars as pl
from tfdlrm.data.vocabulary_builder import VocabularyBuilder, save_vocabularies
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding

folder, disk = Path(sys.argv[1]), Path(sys.argv[2])
encoding = Encoding(features={"c": FeatureCoding(source="c")}, tables={"c": TableCoding(id_order="first_seen")})
builder = VocabularyBuilder(encoding, {"c": "c"})
builder.add(pl.DataFrame({"c": [f"{value:x}" for value in range(30_000)]}))
builder.save(folder)

def attempt(work):
    try:
        work()
        print("done")
    except OSError as error:
        print(error.errno)
    for path in disk.iterdir():
        path.unlink()

for filled, memory_bytes in [(100, 1 << 30), (500, 1 << 30), (600, 1), (900, 1), (1100, 1)]:
    (disk / "filler").write_bytes(bytes((2000 - filled) * 1000))
    attempt(lambda: builder.build([folder], disk, memory_bytes))
(disk / "filler").write_bytes(bytes(1_900_000))
attempt(lambda: save_vocabularies(builder.build([folder])[0], disk))
(disk / "filler").write_bytes(bytes(1_900_000))
builder.add(pl.DataFrame({"c": [f"{value:x}" for value in range(30_000)]}))
attempt(lambda: builder.save(disk))
attempt(lambda: save_vocabularies(builder.build([folder], disk, 1 << 30)[0], disk))
"""


def test_a_full_disk_is_an_error_like_others(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "disk").mkdir()
    # A namespace of its own, in which a folder is a file system of 2 MB.
    unshare = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else []), "sh", "-c"]
    mount = 'mount -t tmpfs -o size=2000k tmpfs "$1" && shift && "$@"'
    disk = str(tmp_path / "disk")
    if subprocess.run([*unshare, mount, "sh", disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    command = [*unshare, mount, "sh", disk, sys.executable, "-c", FULL_DISK, str(tmp_path / "run"), disk]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*[str(errno.ENOSPC)] * 7, "done"]
