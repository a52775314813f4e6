from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LOUD = """
import os
os.write(2, b"I0000 x.cc:31] Could not find cuda drivers on your machine\\nsomething of use\\n")
{end}
"""
PROGRAM = """
import sys
from tfdlrm.spec.quiet_import import import_quietly
import_quietly("loud", {keep})
print("on", file=sys.stderr)
"""


def told(folder: Path, end: str, keep: bool) -> list[str]:
    (folder / "loud.py").write_text(LOUD.format(end=end))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n" + PROGRAM.format(keep=keep)]
    return subprocess.run(command, capture_output=True, text=True).stderr.splitlines()


@pytest.mark.parametrize("keep", [False, True])
def test_notes_alone_are_left_out(tmp_path: Path, keep: bool) -> None:
    note = ["I0000 x.cc:31] Could not find cuda drivers on your machine"] if keep else []
    assert told(tmp_path, "", keep) == [*note, "something of use", "on"]


def test_what_a_failing_import_printed_is_told(tmp_path: Path) -> None:
    lines = told(tmp_path, "raise ImportError('no such library')", False)
    assert lines[0] == "something of use" and lines[-1] == "ImportError: no such library"
