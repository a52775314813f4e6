"""What dynamic batching brings: one-row calls of a signature by many threads, plain and gathered, in this process.

`python -m tfdlrm.pipelines.benchmarks.batching VERSION_DIRECTORY` measures an exported model. No HTTP is involved: this
is the batching executor alone.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdlrm.pipelines.benchmarks.figures import machine_figures, peak_memory_bytes, rate_figures, write_figures
from tfdlrm.pipelines.cli import load_tensorflow, run_command
from tfdlrm.spec.arguments import positive, positive_number
from tfdlrm.spec.errors import DataError

Arrays = dict[str, Any]
_REQUESTS = 256  # different rows each client goes through


def measure_batching(
    version: Path,
    signature_name: str = "serving_default",
    clients: int = 64,
    seconds: float = 3.0,
    repeats: int = 5,
    max_batch_size: int = 64,
    batch_timeout_micros: int = 0,
    num_batch_threads: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time clients that call a signature one row at a time, with and without batching in turn.

    Args:
        version: Directory of an exported version.
        signature_name: The signature.
        clients: Threads that call, each as fast as it is answered.
        seconds: Length of one repeat.
        repeats: Timed repeats of each way, after one warm-up.
        max_batch_size: As in the parameters file.
        batch_timeout_micros: As in the parameters file.
        num_batch_threads: As in the parameters file. Defaults to one for each core.
        seed: Seed of the rows.

    Returns:
        `plain` and `batched`, each with rates in rows per second, and `lift`, the ratio of their medians.

    Raises:
        DataError: There is no such signature.
    """
    from tfdlrm.serving.batching import Batcher, BatchingParameters
    from tfdlrm.serving.errors import StatusError
    from tfdlrm.serving.servable import load_servable

    threads: dict[str, Any] = {} if num_batch_threads is None else {"num_batch_threads": num_batch_threads}
    parameters = BatchingParameters(
        max_batch_size=max_batch_size,
        batch_timeout_micros=batch_timeout_micros,
        max_enqueued_batches=max(10, clients),
        **threads,
    )
    batcher = Batcher(parameters)
    try:
        servable = load_servable(version, 1)
        gathered = batcher.batched(servable)
        ways = {"plain": servable.signature(signature_name), "batched": gathered.signature(signature_name)}
    except StatusError as error:
        raise DataError(error.message) from error
    requests = _random_requests(ways["plain"].inputs, np.random.default_rng(seed))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, call in ways.items():
            rate = _rate(call, requests, clients, seconds)
            if repeat:
                rates[name].append(rate)
    batcher.close()
    figures = {name: rate_figures(found) for name, found in rates.items()}
    return {
        **figures,
        "lift": figures["batched"]["rows_per_second"] / figures["plain"]["rows_per_second"],
        "clients": clients,
        "max_batch_size": max_batch_size,
        "batch_timeout_micros": batch_timeout_micros,
        "num_batch_threads": parameters.num_batch_threads,
        "signature": signature_name,
        "inputs": len(requests[0]),
        "peak_memory_bytes": peak_memory_bytes(),
        **machine_figures(),
    }


def _random_requests(inputs: Mapping[str, Any], rng: np.random.Generator) -> list[Arrays]:
    """Return requests of one row; values the model may not know count as well as those it does."""

    def draw(dtype: str, shape: tuple[int, ...]) -> Any:
        if dtype == "string":
            words = [b"%08x" % number for number in rng.integers(0, 2**32, int(np.prod(shape)))]
            return np.array(words, dtype=object).reshape(shape)
        if dtype == "bool":
            return rng.random(shape) < 0.5
        if dtype in ("float", "double", "half"):
            return rng.random(shape).astype({"float": np.float32, "double": np.float64, "half": np.float16}[dtype])
        return rng.integers(0, 100, shape).astype(dtype)

    def row_shape(shape: tuple[int | None, ...] | None) -> tuple[int, ...]:
        return (1, *(size or 1 for size in (shape or (None,))[1:]))

    return [{name: draw(info.dtype, row_shape(info.shape)) for name, info in inputs.items()} for _ in range(_REQUESTS)]


def _rate(call: Callable[[Arrays], Any], requests: Sequence[Arrays], clients: int, seconds: float) -> float:
    """Return the rows per second that clients get answered."""
    counts = [0] * clients
    faults: list[Exception] = []
    together = threading.Barrier(clients + 1)
    over = threading.Event()

    def client(number: int) -> None:
        together.wait()
        try:
            while not over.is_set():
                call(requests[(number * 37 + counts[number]) % len(requests)])
                counts[number] += 1
        except Exception as error:  # said by the thread that measures
            faults.append(error)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    together.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    done, passed = sum(counts), time.perf_counter() - started
    over.set()
    for thread in threads:
        thread.join()
    if faults:
        raise DataError(f"a call of the signature failed: {faults[0]}")
    return done / passed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        "python -m tfdlrm.pipelines.benchmarks.batching", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("version", type=Path, help="directory of one exported version")
    add("--signature", default="serving_default", help="default: %(default)s")
    add("--clients", type=positive, default=64, help="threads that call (default: %(default)s)")
    add("--seconds", type=positive_number, default=3.0, help="of one repeat (default: %(default)s)")
    add("--repeats", type=positive, default=5, help="timed repeats after one warm-up (default: %(default)s)")
    add("--max-batch-size", type=positive, default=64, help="default: %(default)s")
    add("--batch-timeout-micros", type=int, default=0, help="default: %(default)s")
    add("--num-batch-threads", type=positive, help="default: one for each core")
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args(argv)

    def run() -> int:
        load_tensorflow()
        figures = measure_batching(
            args.version,
            args.signature,
            args.clients,
            args.seconds,
            args.repeats,
            args.max_batch_size,
            args.batch_timeout_micros,
            args.num_batch_threads,
        )
        for name in ("plain", "batched"):
            found = figures[name]
            print(
                f"{name}: {found['rows_per_second']:,.0f} one-row calls/s (median of {found['repeats']}; "
                f"{found['slowest']:,.0f} to {found['fastest']:,.0f})"
            )
        print(f"{figures['lift']:.2f}x with {figures['clients']} clients and {figures['inputs']} inputs")
        write_figures(args.json, figures)
        return 0

    return run_command(run)


if __name__ == "__main__":
    raise SystemExit(main())
