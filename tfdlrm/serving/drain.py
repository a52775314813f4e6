"""The end of the server: first it says so, then it takes nothing new, then what was accepted is finished."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

Stop = Callable[[float], threading.Event]


@dataclasses.dataclass
class Drain:
    """How the server ends, and whether it has begun to.

    Attributes:
        delay_seconds: Seconds in which `/healthz` says 503 already while requests are still taken, so that a load
            balancer sends no more of them.
        seconds: Seconds after that for accepted requests; what is not answered by then is given up.
        begun: Whether the end has begun.
    """

    delay_seconds: float = 0.0
    seconds: float = 30.0
    begun: bool = False
    stops: list[Stop] = dataclasses.field(default_factory=list)

    def add(self, stop: Stop) -> None:
        """Have another server end together with this one.

        Args:
            stop: Called once with the seconds it may take; must refuse new requests at once, return without waiting,
                and set the event when all accepted requests are answered, as `grpc.Server.stop` does.
        """
        self.stops.append(stop)
