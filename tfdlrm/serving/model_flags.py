"""The flags that say what is served; those that TensorFlow Serving has too carry its names and mean the same."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of models, their versions and gRPC.

    Args:
        parser: Takes the flags.
    """
    parser.add_argument(
        "--model_name", type=_name, default="default", help="name in request paths (default: %(default)s)"
    )
    parser.add_argument(
        "--model_base_path", type=Path, required=True, help="directory that holds the versions: <path>/<number>/"
    )
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=_seconds,
        default=1.0,
        help="seconds between two looks for new versions; 0 looks once, at the start (default: %(default)s)",
    )
    parser.add_argument("--port", type=_port, default=8500, help="gRPC port; 0 for no gRPC (default: %(default)s)")
    parser.add_argument(
        "--grpc_max_threads",
        type=_positive,
        default=4 * (os.cpu_count() or 1),
        help="gRPC requests computed at a time (default: four per processor, %(default)s here)",
    )


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535. Received: {text}")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {text}")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0. Received: {text}")
    return seconds
