"""When a client asks again, and when it stops: waits that grow, and a budget that failures use up."""

from __future__ import annotations

import dataclasses
import json
import random
import threading

_MOST_ATTEMPTS = 5  # gRPC allows no more


@dataclasses.dataclass(frozen=True)
class Retries:
    """How often a question that was not answered is asked again; over REST and gRPC alike.

    Predictions change nothing on the server, so they may be asked twice. Asked again are questions the server had no
    room or no model for (503, 429; gRPC UNAVAILABLE) and those whose connection broke. A question that timed out is
    not: the server may be at work on it still. The pauses are random, between nothing and a bound that doubles.

    The budget is that of gRPC (proposal A6): it starts full, a failed attempt takes one token, an answer gives
    `token_ratio` back, and nothing is asked again while half of it or less is left. So a server that is down gets its
    questions once, not `attempts` times over.

    Attributes:
        attempts: Most attempts at one question, 1 to 5; 1 never asks again.
        first_seconds: Bound of the first pause, seconds.
        longest_seconds: Bound of any pause, seconds.
        tokens: Size of the budget.
        token_ratio: What an answer gives back.
    """

    attempts: int = 4
    first_seconds: float = 0.1
    longest_seconds: float = 2.0
    tokens: int = 20
    token_ratio: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what gRPC would refuse later."""
        if not 1 <= self.attempts <= _MOST_ATTEMPTS:
            raise ValueError(f"`attempts` must be from 1 to {_MOST_ATTEMPTS}. Received: {self.attempts}")
        for name in ("first_seconds", "longest_seconds", "tokens", "token_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0. Received: {getattr(self, name)}")

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after attempt 1, 2 ..."""
        return random.uniform(0, min(self.first_seconds * 2 ** (attempt - 1), self.longest_seconds))

    def service_config(self) -> str:
        """Return the same as the service config of a gRPC channel, JSON."""
        config: dict[str, object] = {"retryThrottling": {"maxTokens": self.tokens, "tokenRatio": self.token_ratio}}
        if self.attempts > 1:
            policy = {
                "maxAttempts": self.attempts,
                "initialBackoff": f"{self.first_seconds}s",
                "maxBackoff": f"{self.longest_seconds}s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
            config["methodConfig"] = [{"name": [{}], "retryPolicy": policy}]
        return json.dumps(config)


class Budget:
    """The tokens of one client; any thread may take and give.

    Example:
        >>> budget = Budget(Retries(tokens=4))
        >>> [budget.failed() for _ in range(3)]
        [True, False, False]
    """

    def __init__(self, retries: Retries) -> None:
        """Start full."""
        self._most = float(retries.tokens)
        self._ratio = retries.token_ratio
        self._left = self._most
        self._lock = threading.Lock()

    def failed(self) -> bool:
        """Take a token; return whether enough are left to ask again."""
        with self._lock:
            self._left = max(self._left - 1, 0.0)
            return self._left > self._most / 2

    def answered(self) -> None:
        """Give back what an answer gives."""
        with self._lock:
            self._left = min(self._left + self._ratio, self._most)
