"""The number of requests in flight, and the rate at which they are sent.

The limit of requests in flight follows TCP's slow start and AIMD. It doubles every round trip, is halved when
the endpoint says "too many" or does not answer in time, and then grows by one per round trip. It also stops
growing while answers take much longer than at best: an endpoint without limits of its own is full then.
"""

import asyncio
import time
from collections import deque

START = 8
# The number of requests in flight grows no more when answers are so many times slower than at best.
SLOW = 3.0
_SMOOTHING = 0.1


class PacerClosed(Exception):
    """The pacer was closed: no more requests are sent."""


class RateLimit:
    """A token bucket that fills by `per_minute` units per minute, up to one second's worth."""

    def __init__(self, per_minute: float):
        self._rate = per_minute / 60
        self._most = max(self._rate, 1.0)
        self._level = self._most
        self._filled = time.monotonic()

    def take(self, amount: float) -> None:
        """Take units out, below zero if need be: how many tokens a request uses is known only afterwards."""
        self._fill()
        self._level -= amount

    def delay(self) -> float:
        """Seconds until the bucket is no longer below zero."""
        self._fill()
        return max(0.0, -self._level / self._rate)

    def _fill(self) -> None:
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._filled) * self._rate)
        self._filled = now


class Pacer:
    """Decides when the next request may be sent.

    Args:
        max_concurrency: The most requests in flight.
        requests_per_minute: The rate of requests; None for no limit.
        tokens_per_minute: The rate of prompt and completion tokens together; None for no limit.
        start: How many requests may be in flight at the beginning; None for an endpoint that is not known.

    Attributes:
        limit: How many requests may be in flight now.
        in_flight: How many requests are in flight.
    """

    def __init__(
        self,
        max_concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        start: int | None = None,
    ):
        self.limit = float(min(start or START, max_concurrency))
        self.in_flight = 0
        self._max = max_concurrency
        self._requests = RateLimit(requests_per_minute) if requests_per_minute else None
        self._tokens = RateLimit(tokens_per_minute) if tokens_per_minute else None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slow_start = True
        self._not_before = 0.0
        self._halved = 0.0
        # Smoothed and best seconds per answer, by stage: some stages write much more than others.
        self._latency: dict[str, tuple[float, float]] = {}
        self._closed = asyncio.Event()

    async def acquire(self) -> None:
        """Wait until a request may be sent.

        Raises:
            PacerClosed: The pacer was closed.
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
        """Report that a request has come back.

        Args:
            stage: The request's stage.
            latency: Seconds that it took.
            tokens: Prompt and completion tokens that it used.
            congestion: Whether it failed because the endpoint was overloaded.
        """
        if self._tokens:
            self._tokens.take(tokens)
        # The limit grows only while it is reached.
        wanted = bool(self._waiting) or self.in_flight >= int(self.limit)
        self.in_flight -= 1
        if congestion:
            self._halve(latency)
        elif self._quick(stage, latency) and wanted:
            self.limit = min(self._max, self.limit + (1.0 if self._slow_start else 1 / self.limit))
        self._wake()

    def pause(self, seconds: float) -> None:
        """Send nothing for a while, as the endpoint has asked."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds.

        Raises:
            PacerClosed: The pacer was closed.
        """
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return
        raise PacerClosed

    def close(self) -> None:
        """Send nothing any more; everything that waits raises `PacerClosed`."""
        self._closed.set()
        while self._waiting:
            self._wake_one()

    def _halve(self, latency: float) -> None:
        now = time.monotonic()
        # Once per round trip: the other requests in flight were sent before the congestion was known.
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
