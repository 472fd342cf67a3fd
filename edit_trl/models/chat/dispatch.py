"""Requests in, answers out: the journal first, then the teacher, as fast as it can take them (L3).

What is paid for is journaled before it is read. What fails in a way that may pass is tried again; what never
will work is reported and not tried again; where nothing works any more, the run stops and says how to go on.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from edit_trl.common.errors import InputError
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.pacing import Pacer, PacerClosed
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    MalformedResponse,
    NoAnswer,
    Teacher,
    TeacherUnusable,
    TryAgain,
)

RESUME = "Everything answered so far is in the journal: run the same command again to go on from here"

# Waits of 0 to 1, 2, 4, ... seconds: full jitter, so that what failed together does not come back together.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0

# So many requests that can never be answered, and not one that was: it is not the requests.
_ALL_REFUSED = 20

_SEVERAL = 5


class RunStopped(InputError):
    """The run ended early; all that was paid for is journaled."""


class TeacherUnavailable(RunStopped):
    """The teacher does not answer any more, or never did."""


class BudgetSpent(RunStopped):
    """`max_cost` is reached."""


class Interrupted(RunStopped):
    """Somebody asked the run to stop."""


@dataclass(frozen=True)
class Limits:
    """How hard a teacher is asked, and for how much money.

    Attributes:
        max_concurrency: The most requests in flight; how many are follows what the endpoint can take.
        max_attempts: How often a request is tried; being told to slow down does not count.
        requests_per_minute: None for no limit.
        tokens_per_minute: Likewise; prompt and completion tokens together.
        give_up_after: Seconds of nothing but failures after which the run stops.
        prompt_price: Of a million prompt tokens, in any currency.
        completion_price: Of a million completion tokens.
        max_cost: The run stops before it sends more once this much is spent, journaled answers included.

    Raises:
        InputError: A value out of range.
    """

    max_concurrency: int = 64
    max_attempts: int = 6
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    give_up_after: float = 120.0
    prompt_price: float | None = None
    completion_price: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` must be at least 1, got {getattr(self, name)}"
            for name in ("max_concurrency", "max_attempts")
            if getattr(self, name) < 1
        ]
        positive = ("requests_per_minute", "tokens_per_minute", "give_up_after", "max_cost")
        for name in positive:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                problems.append(f"`{name}` must be positive, got {getattr(self, name)}")
        for name in ("prompt_price", "completion_price"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                problems.append(f"`{name}` cannot be negative, got {getattr(self, name)}")
        if self.max_cost is not None and self.prompt_price is None and self.completion_price is None:
            problems.append(
                "`max_cost` needs a price: set `prompt_price` and `completion_price` (per million tokens)"
            )
        if problems:
            raise InputError(problems)

    def cost(self, response: ChatResponse) -> float:
        """What an answer cost."""
        prompt, completion = self.prompt_price or 0.0, self.completion_price or 0.0
        return (response.prompt_tokens * prompt + response.completion_tokens * completion) / 1e6


@dataclass(frozen=True)
class Answer:
    """A request that was answered.

    Attributes:
        request: The request.
        response: What the teacher said.
        fresh: Whether it was sent now, and not read from the journal.
    """

    request: ChatRequest
    response: ChatResponse
    fresh: bool


@dataclass(frozen=True)
class Failure:
    """A request without an answer, and why."""

    request: ChatRequest
    reason: str


@dataclass
class DispatchStats:
    """What has happened so far; `models` counts the names that the endpoint gave."""

    asked: int = 0
    answered: int = 0
    from_journal: int = 0
    sent: int = 0
    failed: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Dispatcher:
    """Has requests answered by one teacher.

    Args:
        teacher: Who answers.
        journal: Where answers are kept and looked for.
        limits: See `Limits`.

    Attributes:
        stats: Over all runs of this dispatcher.
        pacer: How many requests are in flight and may be.
    """

    def __init__(self, teacher: Teacher, journal: Journal, limits: Limits | None = None):
        self.teacher = teacher
        self.limits = limits or Limits()
        self.stats = DispatchStats()
        self.pacer = Pacer(
            self.limits.max_concurrency, self.limits.requests_per_minute, self.limits.tokens_per_minute
        )
        self._journal = journal
        self._stop: RunStopped | None = None
        self._good = time.monotonic()  # when something last went well
        self._failing: set[str] = set()  # requests that have failed since
        self._reached = False
        self._counted: set[str] = set()

    def stop(self, reason: RunStopped | None = None) -> None:
        """Send nothing more. What is in flight is waited for and journaled."""
        if self._stop is None:
            self._stop = reason or Interrupted(f"interrupted. {RESUME}")
        self.pacer.close()

    async def run(self, requests: Iterable[ChatRequest]) -> AsyncIterator[Answer | Failure]:
        """Answer requests, in the order in which answers come.

        Requests are drawn as there is room for them, so they may be many. Requests that are the same in all
        that is sent are sent once.

        Args:
            requests: What to ask.

        Yields:
            An answer or a failure for each request.

        Raises:
            RunStopped: Before all are answered: by `stop`, the budget, or a teacher that is gone.
            JournalError: The journal cannot be written.
        """
        waiting: dict[str, list[ChatRequest]] = {}
        tasks: set[asyncio.Task[tuple[str, Answer | Failure | None]]] = set()
        done: asyncio.Queue[asyncio.Task[tuple[str, Answer | Failure | None]]] = asyncio.Queue()
        self._good = time.monotonic()
        source, unanswered = iter(requests), False
        try:
            while True:
                for key, request, known in self._draw(source, waiting, tasks):
                    if isinstance(known, int):
                        task = asyncio.create_task(self._ask(key, request, known))
                        task.add_done_callback(done.put_nowait)
                        tasks.add(task)
                    else:
                        await asyncio.sleep(0)  # a long journal must not keep Ctrl-C from being heard
                        yield known
                if not tasks:
                    break
                task = await done.get()
                tasks.discard(task)
                key, outcome = task.result()
                for request in waiting.pop(key):
                    if outcome is None:
                        unanswered = True
                        continue
                    self.stats.failed += isinstance(outcome, Failure)
                    yield replace(outcome, request=request)
        finally:
            for task in tasks:
                task.cancel()
        # What stops a run after its last answer has stopped nothing.
        if self._stop is not None and (unanswered or next(source, None) is not None):
            raise self._stop

    def _draw(
        self, source: Iterator[ChatRequest], waiting: dict[str, list[ChatRequest]], tasks: set
    ) -> Iterator[tuple[str, ChatRequest, Answer | Failure | int]]:
        """Requests while there is room, each with its answer, or with how often it was tried."""
        while self._stop is None and len(tasks) < self.limits.max_concurrency:
            request = next(source, None)
            if request is None:
                return
            self.stats.asked += 1
            key = request.key(self.teacher)
            if key in waiting:
                waiting[key].append(request)
                continue
            known = self._from_journal(key, request)
            if isinstance(known, int):
                waiting[key] = [request]
            yield key, request, known

    def _from_journal(self, key: str, request: ChatRequest) -> Answer | Failure | int:
        kept = self._journal.find(key)
        reason = ""
        for raw in kept:
            try:
                response = self.teacher.read(raw)
            except MalformedResponse as error:
                reason = str(error)
                continue
            self.stats.from_journal += 1
            self._count(key, response)
            return Answer(request, response, fresh=False)
        if len(kept) >= self.limits.max_attempts:
            self.stats.failed += 1
            return Failure(request, reason)
        return len(kept)

    async def _ask(
        self, key: str, request: ChatRequest, attempts: int
    ) -> tuple[str, Answer | Failure | None]:
        """Try until there is an answer; None where the run stops first."""
        try:
            while True:
                await self.pacer.acquire()
                try:
                    return key, await self._attempt(key, request)
                except (TryAgain, MalformedResponse) as error:
                    turned_away = isinstance(error, TryAgain) and error.turned_away
                    attempts += not turned_away
                    if attempts >= self.limits.max_attempts:
                        return key, Failure(request, f"{error} ({attempts} attempts)")
                    self._check_health(key, turned_away, str(error))
                    await self._wait(error, attempts)
        except NoAnswer as error:
            if not self._reached and self.stats.failed >= _ALL_REFUSED:
                self._give_up(f"not one of the first {_ALL_REFUSED} requests could be answered: {error}")
            return key, Failure(request, str(error))
        except TeacherUnusable as error:
            self._give_up(str(error))
            return key, None
        except PacerClosed:
            return key, None

    async def _attempt(self, key: str, request: ChatRequest) -> Answer:
        started, tokens, congestion = time.monotonic(), 0, False
        self.stats.sent += 1
        try:
            raw = await self.teacher.attempt(request)
            await self._journal.add(key, request, self.teacher, raw)
            response = self.teacher.read(raw)
            tokens = response.prompt_tokens + response.completion_tokens
        except TryAgain as error:
            congestion = error.congestion
            raise
        finally:
            self.pacer.release(
                request.stage, time.monotonic() - started, tokens=tokens, congestion=congestion
            )
        self._good, self._reached = time.monotonic(), True
        self._failing.clear()
        self._count(key, response)
        return Answer(request, response, fresh=True)

    def _count(self, key: str, response: ChatResponse) -> None:
        self.stats.answered += 1
        if key in self._counted:  # the same request of another row: paid for once
            return
        self._counted.add(key)
        self.stats.models[response.model] += 1
        self.stats.prompt_tokens += response.prompt_tokens
        self.stats.completion_tokens += response.completion_tokens
        self.stats.cost += self.limits.cost(response)
        if self.limits.max_cost is not None and self.stats.cost >= self.limits.max_cost:
            self.stop(
                BudgetSpent(
                    f"`max_cost: {self.limits.max_cost}` is spent ({self.stats.cost:.4f}). {RESUME}, with a "
                    "higher `max_cost`"
                )
            )

    def _check_health(self, key: str, turned_away: bool, reason: str) -> None:
        self._failing.add(key)
        silent = time.monotonic() - self._good
        # Several: one request that keeps failing runs out of attempts and is listed. Who is turned away
        # never runs out of them.
        if silent > self.limits.give_up_after and (turned_away or len(self._failing) >= _SEVERAL):
            self._give_up(f"nothing but failures for {silent:.0f} s, the last one: {reason}")

    def _give_up(self, reason: str) -> None:
        self.stop(TeacherUnavailable(f"the teacher {self.teacher.model!r} cannot go on: {reason}. {RESUME}"))

    async def _wait(self, error: TryAgain | MalformedResponse, attempts: int) -> None:
        self.stats.retries[str(error)] += 1
        wait = random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempts))
        asked = error.retry_after if isinstance(error, TryAgain) else None
        if asked is not None:
            if asked > self.limits.give_up_after:
                self._give_up(f"it asks to wait for {asked:.0f} s ({error})")
            self.pacer.pause(asked)
            wait += asked
        await self.pacer.sleep(wait)


class stopped_by_signals:
    """Ctrl-C lets what is in flight come back; a second one does not.

    Args:
        dispatchers: What is stopped.
        loop: Where they run; the running one by default.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher], loop: asyncio.AbstractEventLoop | None = None):
        self._dispatchers = dispatchers
        self._loop = loop or asyncio.get_running_loop()

    def __enter__(self) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(name, self._stop)

    def __exit__(self, *_: object) -> None:
        self._release()

    def _stop(self) -> None:
        for dispatcher in self._dispatchers:
            dispatcher.stop()
        self._release()

    def _release(self) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(name)
