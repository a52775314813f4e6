"""`python -m tfdlrm.pipelines.benchmarks.load`: many clients of one server, in a process of their own.

Clients keep their connection, send one question, wait for its answer and send the next. Questions are ready as bytes,
and answers are not parsed, so that what is measured is the server and not the client.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

Ask = Callable[[bytes], Awaitable[None]]
_PREDICT = "/tensorflow.serving.PredictionService/Predict"


class LoadError(RuntimeError):
    """A question that was not answered well."""


async def rest_client(url: str, refused: bool, alone: bool) -> Ask:
    """Return what asks over one HTTP connection.

    Args:
        url: The whole address that is posted to.
        refused: Whether 400 is the answer that is due, and not 200.
        alone: Whether it is the only client.
    """
    due = b"http/1.1 400" if refused else b"http/1.1 200"
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"

    async def ask(body: bytes) -> None:
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        content = await reader.readexactly(length)
        if not lines[0].startswith(due):
            raise LoadError(f"{url}: {lines[0].decode()}: {content[:300].decode(errors='replace')}")

    return ask


async def grpc_client(target: str, refused: bool, alone: bool) -> Ask:
    """Return what asks `Predict` over one gRPC connection with serialized requests; see `rest_client`."""
    import grpc

    # Channels with equal options share a connection unless told otherwise.
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    # One client has nothing else to do while it waits, and gRPC's plain call takes less of its time.
    channel = (grpc if alone else grpc.aio).insecure_channel(target, options)
    call = channel.unary_unary(_PREDICT)

    async def ask(body: bytes) -> None:
        try:
            answer = call(body)
            if not alone:
                await answer
        except grpc.RpcError as error:
            if refused and error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                return
            raise LoadError(f"{target}: {error}") from error

    return ask


async def load(
    kind: str, target: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up: float, refused: bool = False
) -> dict[str, float]:
    """Ask for some seconds and return the figures.

    Args:
        kind: `"rest"` or `"grpc"`.
        target: The URL to post to, or host and port.
        bodies: Questions, asked in turn.
        clients: How many ask at the same time.
        seconds: How long answers are counted.
        warm_up: Seconds before that.
        refused: Whether the questions are ones that a server refuses: what it takes to say so is measured then.

    Returns:
        `requests`, `per_second`, and milliseconds `p50`, `p99`, `mean`, `first`, of which the last is the very first
        answer.
    """
    connect = {"rest": rest_client, "grpc": grpc_client}[kind]
    asks = [await connect(target, refused, clients == 1) for _ in range(clients)]
    turn = itertools.cycle(bodies)
    begun = time.perf_counter()
    await asks[0](next(turn))
    first = time.perf_counter() - begun
    start = time.perf_counter() + warm_up
    end = start + seconds
    took: list[float] = []

    async def client(ask: Ask) -> None:
        while (sent := time.perf_counter()) < end:
            await ask(next(turn))
            if sent >= start:
                took.append(time.perf_counter() - sent)

    await asyncio.gather(*map(client, asks))
    milliseconds = np.array(took) * 1e3
    return {
        "requests": float(milliseconds.size),
        "per_second": milliseconds.size / (time.perf_counter() - start),
        "p50": float(np.percentile(milliseconds, 50)),
        "p99": float(np.percentile(milliseconds, 99)),
        "mean": float(milliseconds.mean()),
        "first": first * 1e3,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the clients and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser("python -m tfdlrm.pipelines.benchmarks.load", description=main.__doc__)
    parser.add_argument("kind", choices=("rest", "grpc"))
    parser.add_argument("target", help="URL to post to, or host:port")
    parser.add_argument("bodies", type=Path, help="folder of questions, one file each")
    parser.add_argument("--clients", type=int, default=1, help="clients at a time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time that counts (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="time before that (default: %(default)s)")
    parser.add_argument("--expect-refusal", action="store_true", help="the questions are bad ones, and are refused")
    args = parser.parse_args(argv)
    bodies = [path.read_bytes() for path in sorted(args.bodies.iterdir())]
    try:
        figures = asyncio.run(
            load(args.kind, args.target, bodies, args.clients, args.seconds, args.warm_up, args.expect_refusal)
        )
    except (LoadError, OSError, asyncio.IncompleteReadError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
