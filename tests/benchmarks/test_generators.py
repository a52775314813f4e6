import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_mode_is_timed_and_checked():
    command = [sys.executable, "benchmarks/generators.py", "--draws", "20000", "--ids", "500"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    found = re.findall(r"^  (.+): 20,000 draws in .* KS distance (\S+) over", done.stdout, re.MULTILINE)
    assert [mode for mode, _ in found] == ["lru", "lru, warm start", "rand, warm start", "paper"] * 3
    for mode, distance in found:
        assert mode.startswith("lru") == (float(distance) < 0.02), (mode, distance)
