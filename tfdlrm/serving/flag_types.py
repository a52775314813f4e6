"""Types of the server's flags, written as TensorFlow Serving's are."""

from __future__ import annotations

import argparse


def switch(text: str) -> bool:
    """Return what a switch says: `--switch`, `--switch=true`, `--switch=0`."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"must be true or false. Received: {text}")
    return known[text.lower()]


def port_or_none(text: str) -> int:
    """Return a port, or 0 for none."""
    return _port(text, 0)


def port(text: str) -> int:
    """Return a port."""
    return _port(text, 1)


def seconds(text: str) -> float:
    """Return a finite number of at least 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0. Received: {text}")
    return number


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1. Received: {text}")
    return number


def name(text: str) -> str:
    """Return a name, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _port(text: str, least: int) -> int:
    number = int(text)
    if not least <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be from {least} to 65535. Received: {text}")
    return number
