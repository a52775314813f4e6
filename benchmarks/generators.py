"""Time profiling and drawing of a trace, and check what each mode draws: `python benchmarks/generators.py`."""

from __future__ import annotations

import argparse
import time

import numpy as np

from tfdlrm.data.generators.laws import IdLaw
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.stack_profile import StackProfiler
from tfdlrm.data.generators.trace import TraceGenerator
from tfdlrm.data.generators.trace_check import TraceCheck

EXAMPLE = np.array([1, 2, 3, 4, 5, 3, 4, 1, 1, 6, 3])  # of the paper's code


def profiled(ids: np.ndarray) -> StackDistances:
    """Profile a trace and say how long it took."""
    profiler = StackProfiler()
    started = time.perf_counter()
    profiler.add(ids)
    seconds = time.perf_counter() - started
    distances = profiler.distribution()
    print(
        f"  profile of {len(ids):,} ids, {len(distances.ids):,} different, largest distance {distances.values[-1]:,}: "
        f"{seconds:.2f} s"
    )
    return distances


def measure(distances: StackDistances, draws: int, seed: int) -> None:
    """Draw in each mode and say how long it took and how far the distances are from those that went in."""
    for mode, warm_start in (("lru", False), ("lru", True), ("rand", True), ("paper", False)):
        generator = TraceGenerator(distances, mode, seed, warm_start=warm_start)
        started = time.perf_counter()
        drawn = generator.draw(draws)
        seconds = time.perf_counter() - started
        check = TraceCheck(distances, in_use_at_first=generator.in_use_at_first)
        if mode == "paper":
            check.add_plainly(drawn.ids)
        else:
            check.add(drawn)
            if not warm_start:
                check.add(generator.draw(drawn.warm_up))  # so that as many as were asked for are checked
        result = check.result()
        name = f"{mode}, warm start" if warm_start else mode
        print(
            f"  {name}: {draws:,} draws in {seconds:.2f} s, {result.in_use:,} ids in use; KS distance {result.ks:.5f} "
            f"over {result.draws - result.warm_up:,} draws after a warm-up of {result.warm_up:,}"
        )


def main() -> None:
    """Measure the paper's example and traces of random ids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--ids", type=int, default=100_000, help="rows of the table of the random traces")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random = np.random.default_rng(args.seed)
    traces = {"the paper's example": EXAMPLE}
    for law in (IdLaw(), IdLaw(kind="powerlaw", alpha=0.8)):
        traces[f"{law.kind} ids"] = law.draw(random, (args.draws,), args.ids)
    for name, ids in traces.items():
        print(name)
        measure(profiled(ids), args.draws, args.seed)


if __name__ == "__main__":
    main()
