"""How many requests go out at once, and how fast (L3).

The number in flight doubles every round trip while all is well, is halved when the endpoint says "too many"
or does not answer in time, and then grows by one a round trip: slow start and AIMD, as in TCP. It also stops
growing while answers take much longer than they did at best, which is how an endpoint without limits shows
that it is full.
"""

import asyncio
import time
from collections import deque

START = 8
# Answers this many times slower than at best mean that more requests at once only wait longer.
SLOW = 3.0
_SMOOTHING = 0.1


class PacerClosed(Exception):
    """No more requests go out."""


class RateLimit:
    """A bucket that fills with time: `per_minute` units, at most a second's worth saved up."""

    def __init__(self, per_minute: float):
        self._rate = per_minute / 60
        self._most = max(self._rate, 1.0)
        self._level = self._most
        self._filled = time.monotonic()

    def take(self, amount: float) -> None:
        """Use it up, below zero if need be: what was used is known only afterwards for tokens."""
        self._fill()
        self._level -= amount

    def delay(self) -> float:
        """Seconds until there is something left."""
        self._fill()
        return max(0.0, -self._level / self._rate)

    def _fill(self) -> None:
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._filled) * self._rate)
        self._filled = now


class Pacer:
    """Lets requests out.

    Args:
        max_concurrency: The most in flight.
        requests_per_minute: None for no limit.
        tokens_per_minute: Likewise; prompt and completion tokens together.

    Attributes:
        limit: How many may be in flight now.
        in_flight: How many are.
    """

    def __init__(
        self,
        max_concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ):
        self.limit = float(min(START, max_concurrency))
        self.in_flight = 0
        self._max = max_concurrency
        self._requests = RateLimit(requests_per_minute) if requests_per_minute else None
        self._tokens = RateLimit(tokens_per_minute) if tokens_per_minute else None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slow_start = True
        self._not_before = 0.0
        self._halved = 0.0
        # By stage, since some write much more than others: smoothed and best seconds of an answer.
        self._latency: dict[str, tuple[float, float]] = {}
        self._closed = asyncio.Event()

    async def acquire(self) -> None:
        """Wait until a request may go out.

        Raises:
            PacerClosed: None will.
        """
        while True:
            if self._closed.is_set():
                raise PacerClosed
            delay = self._delay()
            if delay:
                await self.sleep(delay)
            elif self.in_flight < int(self.limit):
                break
            else:
                await self._turn()
        if self._requests:
            self._requests.take(1)
        self.in_flight += 1

    def release(self, stage: str, latency: float, *, tokens: int = 0, congestion: bool = False) -> None:
        """A request has come back.

        Args:
            stage: What it was for.
            latency: Seconds.
            tokens: Used by it.
            congestion: Whether the endpoint had too much to do.
        """
        if self._tokens:
            self._tokens.take(tokens)
        # More room is made where it is wanted alone.
        wanted = bool(self._waiting) or self.in_flight >= int(self.limit)
        self.in_flight -= 1
        if congestion:
            self._halve(latency)
        elif self._quick(stage, latency) and wanted:
            self.limit = min(self._max, self.limit + (1.0 if self._slow_start else 1 / self.limit))
        self._wake()

    def pause(self, seconds: float) -> None:
        """Let nothing out for a while: the endpoint has said for how long."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait, unless nothing goes out any more.

        Raises:
            PacerClosed: So it is.
        """
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return
        raise PacerClosed

    def close(self) -> None:
        """Let nothing out any more; who waits is told."""
        self._closed.set()
        while self._waiting:
            self._wake_one()

    def _halve(self, latency: float) -> None:
        now = time.monotonic()
        # Once a round trip: the others were sent before it was known.
        if now - self._halved > latency:
            self._halved = now
            self.limit = max(1.0, self.limit / 2)
            self._slow_start = False

    def _quick(self, stage: str, latency: float) -> bool:
        smoothed, best = self._latency.get(stage, (latency, latency))
        smoothed += _SMOOTHING * (latency - smoothed)
        self._latency[stage] = smoothed, min(best, smoothed)
        return smoothed <= SLOW * best

    def _delay(self) -> float:
        limits = [limit.delay() for limit in (self._requests, self._tokens) if limit]
        return max(0.0, self._not_before - time.monotonic(), *limits)

    def _turn(self) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def _wake(self) -> None:
        for _ in range(int(self.limit) - self.in_flight):
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
