"""The dispatcher takes answers from the journal, and asks the teacher for the others as fast as it can answer.

Answers are journaled before they are read, since they were paid for. What has not the form of an answer, such as the
error of a gateway, is not kept. An attempt that may succeed later is
repeated. A request that can never be answered is reported as a failure. When nothing is answered any more,
the run stops, and the message says how to resume it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import thoughts_part
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.limits import Limits
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

RESUME = "Everything answered so far is in the journal: run the same command again to resume"

# Waits of 0 to 1, 2, 4, ... seconds, with full jitter: requests that failed together are repeated apart.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0

# If the first so many requests can never be answered, the fault is not in the requests.
_ALL_REFUSED = 20

# The number of different requests that must fail before the fault is the teacher's, not a request's.
_SEVERAL = 5


class RunStopped(InputError):
    """The run ended early; every answer that was paid for is in the journal."""


class TeacherUnavailable(RunStopped):
    """The teacher stopped answering, or never did."""


class BudgetSpent(RunStopped):
    """`max_cost` does not cover another request."""


class Interrupted(RunStopped):
    """The run was asked to stop, such as by Ctrl-C."""


@dataclass(frozen=True)
class Answer:
    """A request that was answered.

    Attributes:
        request: The request.
        response: The teacher's answer.
        fresh: Whether the answer was received now, rather than read from the journal.
    """

    request: ChatRequest
    response: ChatResponse
    fresh: bool


@dataclass(frozen=True)
class Failure:
    """A request that was not answered, and the reason; `fresh` as in `Answer`: failures are not journaled."""

    request: ChatRequest
    reason: str
    fresh: bool = True


@dataclass
class DispatchStats:
    """Counts of a dispatcher.

    Attributes:
        asked: Requests received.
        from_journal: Answers read from the journal.
        sent: Attempts, each of which sent a request to the teacher.
        failed: Requests that were given up.
        retries: Repeated attempts, by reason.
        models: Answers, by the model name that the endpoint gave.
        prompt_tokens: Prompt tokens of all answers, journaled ones included.
        completion_tokens: Completion tokens of all answers.
        cost: The cost of all answers.
        unreported: Answers without the token counts that their cost depends on, which are counted at their most.
    """

    asked: int = 0
    from_journal: int = 0
    sent: int = 0
    failed: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unreported: int = 0


class Dispatcher:
    """Sends requests to one teacher, and looks up those that it has answered before.

    Args:
        teacher: The teacher.
        journal: The journal, in which answers are saved and looked up.
        limits: Limits of the requests.

    Attributes:
        stats: Counts over all runs of this dispatcher.
        pacer: Decides how many requests may be in flight.
        tell: Receives what is shown beside the progress; of a state, which the next one replaces, the second value is
            True.
    """

    def __init__(self, teacher: Teacher, journal: Journal, limits: Limits | None = None):
        self.teacher = teacher
        self.limits = limits or Limits()
        self.stats = DispatchStats()
        self._most = self.limits.most_in_flight(teacher.requests_at_once)
        rates = self.limits.requests_per_minute, self.limits.tokens_per_minute
        self.pacer = Pacer(self._most, *rates, start=teacher.requests_at_once)
        self.tell: Callable[[str, bool], None] = lambda text, is_state: None
        self._journal = journal
        self._stop: RunStopped | None = None
        self._last_success = time.monotonic()
        self._failing: set[str] = set()  # requests that have failed since
        self._reached = journal.has_response_of(teacher)  # whether any request was ever answered
        self._counted: set[str] = set()  # requests whose answer is in `stats`
        self._reserved: list[float] = []  # the most that each request in flight can cost
        self._cost_known = asyncio.Event()

    def stop(self, reason: RunStopped | None = None) -> None:
        """Send nothing more; requests in flight are waited for and journaled."""
        if self._stop is None:
            self._stop = reason or Interrupted(f"interrupted. {RESUME}")
        self.pacer.close()
        self._cost_known.set()

    async def run(self, requests: Iterable[ChatRequest]) -> AsyncIterator[Answer | Failure]:
        """Answer requests, in the order in which answers arrive.

        Requests are drawn only as there is room for them, so there may be arbitrarily many. Requests with
        the same key are sent once.

        Yields:
            An answer or a failure for each request.

        Raises:
            RunStopped: `stop` was called, the budget is spent or the teacher is gone, and not every request
                has been answered.
            JournalError: The journal cannot be written.
        """
        waiting: dict[str, list[ChatRequest]] = {}
        tasks: set[asyncio.Task[tuple[str, Answer | Failure | None]]] = set()
        done: asyncio.Queue[asyncio.Task[tuple[str, Answer | Failure | None]]] = asyncio.Queue()
        self._last_success = time.monotonic()
        source, unanswered = iter(requests), False
        try:
            while True:
                while self._stop is None and len(tasks) < self._most:
                    if (request := next(source, None)) is None:
                        break
                    self.stats.asked += 1
                    key = request.key(self.teacher)
                    waiting.setdefault(key, []).append(request)
                    if len(waiting[key]) == 1:
                        task = asyncio.create_task(self._answer(key, request))
                        task.add_done_callback(done.put_nowait)
                        tasks.add(task)
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
            await asyncio.gather(*tasks, return_exceptions=True)  # or what they raise would be logged
        # A stop after the last answer has not cut the run short.
        if self._stop is not None and (unanswered or next(source, None) is not None):
            raise self._stop

    async def _answer(self, key: str, request: ChatRequest) -> tuple[str, Answer | Failure | None]:
        """Take the answer from the journal, or ask for it; None if the run stops first."""
        try:
            return key, self._journaled(key, request) or await self._ask(key, request)
        except TeacherUnusable as error:
            self._give_up(str(error))
        return key, None

    def _journaled(self, key: str, request: ChatRequest) -> Answer | None:
        """Return the answer that is in the journal, if there is one.

        Raises:
            TeacherUnusable: See `_within_limit`.
        """
        for raw in self._journal.find(key):
            try:
                response = self.teacher.read(raw)
            except MalformedResponse:  # earlier versions also kept what is no answer
                continue
            self.stats.from_journal += 1
            self._count(key, request, response)
            return Answer(request, self._within_limit(request, response), fresh=False)
        return None

    async def _ask(self, key: str, request: ChatRequest) -> Answer | Failure | None:
        """Try until there is an answer or a failure; None if the run stops first.

        Raises:
            TeacherUnusable: No request can be answered.
        """
        attempts = 0
        try:
            while True:
                try:
                    async with self._reservation(request):
                        await self.pacer.acquire()
                        return await self._attempt(key, request)
                except (TryAgain, MalformedResponse) as error:
                    turned_away = isinstance(error, TryAgain) and error.turned_away
                    attempts += not turned_away
                    if attempts >= self.limits.max_attempts:
                        return Failure(request, f"{error} ({attempts} attempts)")
                    self._check_health(key, turned_away, str(error))
                    await self._wait(error, attempts)
        except NoAnswer as error:
            if not self._reached and self.stats.failed >= _ALL_REFUSED:
                self._give_up(f"not one of the first {_ALL_REFUSED} requests could be answered: {error}")
            return Failure(request, str(error))
        except PacerClosed:
            pass
        return None

    @asynccontextmanager
    async def _reservation(self, request: ChatRequest) -> AsyncIterator[None]:
        """Set aside the most that an attempt can cost until its cost is known, so that `max_cost` is never exceeded.

        Raises:
            PacerClosed: The money does not suffice for this request, also once those in flight are answered.
        """
        limit = self.limits.max_cost
        most = 0.0 if limit is None else self.limits.most(request)
        while limit is not None and self.stats.cost + sum(self._reserved) + most > limit:
            if not self._reserved:
                self._stop_for_budget(limit, most)
            if self._stop is not None:
                raise PacerClosed
            await self._cost_known.wait()
        self._reserved.append(most)
        try:
            yield
        finally:
            self._reserved.remove(most)
            # Whoever waits looks again.
            self._cost_known.set()
            if self._stop is None:
                self._cost_known.clear()

    def _stop_for_budget(self, limit: float, most: float) -> None:
        spent = f"`max_cost: {limit:g}` is spent ({self.stats.cost:.4f}; another request may cost {most:.4f})"
        if self.stats.unreported:
            spent += (
                f"; {self.stats.unreported} answers came without token counts (`usage`) and are counted as long as "
                "they can be"
            )
        self.stop(BudgetSpent(f"{spent}. {RESUME}, with a higher `max_cost`"))

    async def _attempt(self, key: str, request: ChatRequest) -> Answer:
        started, tokens, congestion = time.monotonic(), 0, False
        self.stats.sent += 1
        try:
            raw = await self.teacher.attempt(request)
            await self._journal.add(key, request, self.teacher, raw)
            response = self.teacher.read(raw)
            tokens = response.prompt_tokens + response.completion_tokens
            return self._answered(key, request, response)
        except TryAgain as error:
            congestion = error.congestion
            raise
        finally:
            self.pacer.release(request.stage, time.monotonic() - started, tokens=tokens, congestion=congestion)

    def _answered(self, key: str, request: ChatRequest, response: ChatResponse) -> Answer:
        """Count an answer that was received now; see `_within_limit` for what is raised."""
        self._last_success, self._reached = time.monotonic(), True
        self._failing.clear()
        self._count(key, request, response)
        return Answer(request, self._within_limit(request, response), fresh=True)

    def _count(self, key: str, request: ChatRequest, response: ChatResponse) -> None:
        if key in self._counted:  # the same request from another row is paid for once
            return
        self._counted.add(key)
        self.stats.models[response.model] += 1
        self.stats.prompt_tokens += response.prompt_tokens
        self.stats.completion_tokens += response.completion_tokens
        cost, is_reported = self.limits.cost(request, response)
        self.stats.cost += cost
        self.stats.unreported += not is_reported

    def _within_limit(self, request: ChatRequest, response: ChatResponse) -> ChatResponse:
        """Return a response, as cut off if it thinks longer than `Sampling.max_thinking_tokens`.

        Raises:
            TeacherUnusable: That cannot be told, since the length of the thoughts is not reported.
        """
        limit, count = request.sampling.max_thinking_tokens, response.thinking_tokens
        if limit is None or self.teacher.ends_thoughts or response.finish_reason != "stop":
            return response
        longest = response.completion_tokens or request.sampling.max_tokens
        if not count and longest > limit and thoughts_part(response.text):  # some servers always report 0
            raise TeacherUnusable(
                f"`max_thinking_tokens: {limit}` cannot be kept, since how long the model thinks is not reported "
                "(`usage.completion_tokens_details.reasoning_tokens`); leave it out, and limit the whole answer instead"
            )
        return replace(response, finish_reason="length") if count and count > limit else response

    def _check_health(self, key: str, turned_away: bool, reason: str) -> None:
        self._failing.add(key)
        silent = time.monotonic() - self._last_success
        # A single request that keeps failing runs out of attempts. One that is turned away never does.
        if silent > self.limits.give_up_after and (turned_away or len(self._failing) >= _SEVERAL):
            self._give_up(
                f"nothing but failures for {silent:.0f} s, the last one: {reason}; if it is these questions that fail, "
                "raise `give_up_after`"
            )

    def _give_up(self, reason: str) -> None:
        self.stop(TeacherUnavailable(f"the teacher {self.teacher.model!r} is no longer asked: {reason}. {RESUME}"))

    async def _wait(self, error: TryAgain | MalformedResponse, attempts: int) -> None:
        self.stats.retries[str(error).partition(": ")[0]] += 1
        wait = random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempts))
        retry_after = error.retry_after if isinstance(error, TryAgain) else None
        if retry_after is not None:
            if retry_after > self.limits.give_up_after:
                self._give_up(f"it asks to wait for {retry_after:.0f} s ({error})")
            self.pacer.pause(retry_after)
            wait += retry_after
        await self.pacer.sleep(wait)


@contextmanager
def stopped_by_signals(
    dispatchers: Sequence[Dispatcher], loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[None]:
    """Let a first Ctrl-C stop dispatchers, which wait for the requests in flight; a second one interrupts as usual.

    Args:
        dispatchers: The dispatchers to stop.
        loop: The event loop that they run in; the running one where None.
    """
    loop = loop or asyncio.get_running_loop()

    def release() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def stop() -> None:
        for dispatcher in dispatchers:
            dispatcher.stop()
        release()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        release()
