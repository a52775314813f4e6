"""Is a killed `prepare` gone on from without a trace? Killed again and again, its result is compared byte by byte.

    python benchmarks/prepare_killed.py [--rows 2000000] [--kills 10] [--folder DIR]

Prepares planted rows once undisturbed, then again in processes that get SIGKILL at random moments of the time the first
one took. Every finished shard must stay the very file it was, and the result must equal the first one in every byte.
A run that ends before it was killed often enough is compared, too, and the next one begins in an empty folder and is
killed sooner.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tfdlrm.data.files import sha256_of
from tfdlrm.data.partial import partial_folder
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.pipelines.console import progress_bars
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.raw import Split

# Small shards, so that several are finished between two kills; a day tests.
DATA = DataConfig(split=Split(by="days", days=8), rows_per_shard=1 << 16)
_MOST_RUNS = 8
Begin = Callable[[Path, Path], subprocess.Popen[bytes]]
"""Starts a process that prepares a raw file into a folder."""


def main() -> None:
    """Prepare undisturbed, then killed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="planted rows (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="times it is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of rows and moments (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where the rows lie meanwhile (default: the system's temporary one)"
    )
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        prepare(DATA, [args.work[0]], args.work[1], 16)
        return
    with tempfile.TemporaryDirectory(prefix="tfdlrm-", dir=args.folder) as place:
        raw, whole, target = (Path(place) / name for name in ("train.txt", "whole", "data"))
        with progress_bars() as bar:
            write_planted(raw, args.rows, args.seed, progress=bar("plant", args.rows))
        start = time.perf_counter()
        begin(raw, whole).wait()
        seconds = time.perf_counter() - start
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        kill_again_and_again(begin, raw, whole, target, args.kills, seconds, random.Random(args.seed))


def begin(raw: Path, target: Path) -> subprocess.Popen[bytes]:
    """Start a process that prepares."""
    return subprocess.Popen([sys.executable, __file__, "--work", str(raw), str(target)])


def kill_again_and_again(
    begin: Begin, raw: Path, whole: Path, target: Path, kills: int, seconds: float, moments: random.Random
) -> None:
    """Kill as often as wanted, in as many runs as that takes, and compare what each of them leaves in the end."""
    killed = 0
    for _ in range(_MOST_RUNS):
        now, shards = disturb(begin, raw, target, kills - killed, seconds, moments)
        compare(whole, target, shards)
        killed += now
        if killed >= kills:
            print(f"killed {killed} times in all", flush=True)
            return
        print(f"it ended when it had been killed {killed} times of {kills}: begun anew, killed sooner", flush=True)
        shutil.rmtree(target)
        seconds /= 2
    sys.exit(f"killed {killed} times, not {kills}: it ended too soon; prepare more --rows")


def disturb(
    begin: Begin, raw: Path, target: Path, kills: int, seconds: float, moments: random.Random
) -> tuple[int, dict[str, tuple[int, int]]]:
    """Kill and start again, then let it end.

    Returns:
        How often it was killed, and what each finished shard was (inode, time) when first seen.
    """
    seen: dict[str, tuple[int, int]] = {}
    killed = 0
    while killed < kills:
        process = begin(raw, target)
        try:
            process.wait(moments.uniform(0.05, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        finished = look(target, seen)
        print(f"killed {killed} times: {finished} shards finished", flush=True)
        if process.returncode not in (0, -signal.SIGKILL):
            sys.exit("preparing failed")
        if target.exists():
            break
    if begin(raw, target).wait():
        sys.exit("preparing failed")
    for file, identity in seen.items():
        if identity_of(target / file) != identity:
            sys.exit(f"{file} was written again")
    return killed, seen


def look(target: Path, seen: dict[str, tuple[int, int]]) -> int:
    """Note which shards are finished; none may have been written again."""
    folder = partial_folder(target)
    notes = list((folder / "shards").glob("*.json"))
    for note in notes:
        file = json.loads(note.read_text(encoding="utf-8"))["shard"]["file"]
        identity = identity_of(folder / "out" / file)
        if seen.setdefault(file, identity) != identity:
            sys.exit(f"{file} was written again")
    return len(notes)


def identity_of(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def compare(whole: Path, target: Path, shards: dict[str, tuple[int, int]]) -> None:
    """Compare all files of both folders."""
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    if files != {path.relative_to(target) for path in target.rglob("*") if path.is_file()}:
        sys.exit("the folders hold different files")
    different = [str(file) for file in files if sha256_of(whole / file) != sha256_of(target / file)]
    if different:
        sys.exit(f"different: {', '.join(different)}")
    print(f"equal: all {len(files)} files; {len(shards)} shards outlived a kill and were written once")


if __name__ == "__main__":
    main()
