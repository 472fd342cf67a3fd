"""Chat requests by OpenAI's batch files: upload a file of requests, wait, collect the answers, at a lower price.

All requests of a stage are sent at once. Which requests are in a file is journaled before a batch is made of it, and
the batch before it is waited for, so a run that ends meanwhile takes up the same batch when it is started again.
The `custom_id` of a request is its key in the journal. An answer of a batch is the answer that the endpoint gives to
the same request without one, and has the same key.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from edit_trl.common.checks import positive
from edit_trl.common.options import Options
from edit_trl.models.chat.batch_endpoint import WAITING, BatchEndpoint, TooLarge
from edit_trl.models.chat.dispatch import Answer, Dispatcher, Failure
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.limits import Limits
from edit_trl.models.chat.pacing import PacerClosed
from edit_trl.models.chat.protocol import (
    ChatRequest,
    NoAnswer,
    RawResponse,
    TeacherUnusable,
    TryAgain,
    read_json,
)
from edit_trl.models.chat.replies import short

Result = TypeVar("Result")

# The documented limits of a file; endpoints with lower ones refuse it.
MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000


@dataclass(frozen=True)
class BatchOptions(Options):
    """Batches of requests that an endpoint answers within a day, for less.

    Attributes:
        batch_discount: What the endpoint takes off the prices for requests in a batch; 0.5 halves them.
        poll_interval: Seconds between two looks at a batch that is waited for.

    Raises:
        InputError: A value is out of range.
    """

    batch_discount: float = 0.5
    poll_interval: float = 60.0

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from positive(poll_interval=self.poll_interval)
        if not 0 <= self.batch_discount < 1:
            yield f"`batch_discount` must be at least 0 and below 1, got {self.batch_discount}"

    def discounted(self, limits: Limits) -> Limits:
        """Return limits with the prices of requests in a batch."""
        names = ("prompt_price", "completion_price")
        prices = {name: price * (1 - self.batch_discount) for name in names if (price := getattr(limits, name))}
        return replace(limits, **prices)


@dataclass
class _Batch:
    """A batch that is waited for.

    Attributes:
        file: The id of its file of requests.
        id: Its own id; None until it is made of the file.
        keys: The requests.
        cost: The most that they may cost.
        started: When the wait began, by `time.monotonic`.
        state: What is shown of it.
    """

    file: str
    id: str | None
    keys: list[str]
    cost: float
    started: float = field(default_factory=time.monotonic)
    state: str = "sent"

    def __str__(self) -> str:
        return f"batch {short(self.id or f'of file {self.file}')}"


class BatchDispatcher(Dispatcher):
    """Answers requests by batches, all requests of a run at once; see `Dispatcher`.

    What fails is repeated together, in another batch, and every failure counts as an attempt. As much is sent at once
    as `max_cost` allows if every answer is as long as it can be.

    Args:
        teacher: The endpoint.
        journal: See `Dispatcher`; it also has the batches that are waited for.
        limits: See `Dispatcher`; prices are those of a batch. The limits of requests in flight do nothing here.
        poll_interval: Seconds between two looks at a batch.
        most_requests: The most requests in a file.
        most_bytes: The most bytes of a file.
    """

    teacher: BatchEndpoint

    def __init__(
        self,
        teacher: BatchEndpoint,
        journal: Journal,
        limits: Limits | None = None,
        *,
        poll_interval: float = BatchOptions.poll_interval,
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
    ):
        super().__init__(teacher, journal, limits)
        self._poll_interval = poll_interval
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._batches: list[_Batch] = []  # those that are waited for
        self._unsent: deque[str] = deque()
        self._attempts: Counter[str] = Counter()
        self._is_full = False  # whether the endpoint takes no more until a batch has ended
        self._told: set[str] = set()

    async def run(self, requests: Iterable[ChatRequest]) -> AsyncIterator[Answer | Failure]:
        """Answer requests; see `Dispatcher.run`."""
        rows: dict[str, list[ChatRequest]] = {}
        for request in requests:
            self.stats.asked += 1
            rows.setdefault(request.key(self.teacher), []).append(request)
        async for key, outcome in self._outcomes({key: same[0] for key, same in rows.items()}):
            for request in rows.pop(key):
                self.stats.failed += isinstance(outcome, Failure)
                yield replace(outcome, request=request)
        if self._stop is not None and rows:
            if self._batches:
                names = ", ".join(map(str, self._batches))
                self.tell(f"{names}: goes on at the endpoint, and is waited for again when the run is resumed", False)
            raise self._stop

    async def _outcomes(self, waiting: dict[str, ChatRequest]) -> AsyncIterator[tuple[str, Answer | Failure]]:
        """Yield the outcome of every request, until the run is stopped; those in `waiting` have none yet."""
        try:
            for key, request in list(waiting.items()):
                if answer := self._journaled(key, request):
                    del waiting[key]
                    yield key, answer
            self._take_up(waiting)
            while waiting and self._stop is None:
                await self._send(waiting)
                ended = False
                for batch in list(self._batches):
                    outcomes = await self._look_at(batch, waiting)
                    if outcomes is None:
                        continue
                    ended = True
                    if outcomes:
                        self._is_full = False
                    for key, outcome in outcomes:
                        if not isinstance(outcome, Exception):
                            del waiting[key]
                            yield key, outcome
                if not ended:
                    await self.pacer.sleep(self._poll_interval)
        except (NoAnswer, TeacherUnusable) as error:
            self._give_up(str(error))
        except PacerClosed:
            pass

    def _take_up(self, waiting: Mapping[str, ChatRequest]) -> None:
        """Wait for the batches of an earlier run that requests are in, and not send these again."""
        batches: dict[str, _Batch] = {}
        for key, file, name in self._journal.batch_requests():
            if key in waiting:
                batch = batches.setdefault(file, _Batch(file, name, [], 0.0))
                batch.keys.append(key)
                batch.cost += self.limits.most(waiting[key])
        for batch in batches.values():
            self.tell(f"{batch}: {len(batch.keys)} requests of an earlier run", False)
        self._batches = list(batches.values())
        sent = {key for batch in self._batches for key in batch.keys}
        self._unsent = deque(key for key in waiting if key not in sent)

    async def _send(self, waiting: Mapping[str, ChatRequest]) -> None:
        """Send what is not sent yet, in as few files as the limits allow.

        What `max_cost` does not allow beside the batches in progress is left for later. If there are none, the run is
        stopped.
        """
        while self._unsent and not self._is_full and self._stop is None:
            left, limit = math.inf, self.limits.max_cost
            if limit is not None:
                left = limit - self.stats.cost - sum(batch.cost for batch in self._batches)
            keys: list[str] = []
            data, cost, most, is_whole = bytearray(), 0.0, 0.0, False
            while self._unsent and not is_whole:
                key = self._unsent[0]
                line, most = self.teacher.line(key, waiting[key]), self.limits.most(waiting[key])
                if cost + most > left:
                    break
                is_whole = bool(keys) and (len(keys) == self._most_requests or len(data) + len(line) > self._most_bytes)
                if not is_whole:
                    keys.append(self._unsent.popleft())
                    data += line
                    cost += most
            if not keys:
                if limit is not None and not self._batches:
                    self._stop_for_budget(limit, most)
                return
            if is_whole:
                self._tell_once(
                    "split",
                    f"more than one file takes ({self._most_requests:,} requests, {self._most_bytes / 1e6:,.0f} MB): "
                    "the requests go into several batches",
                )
            await self._submit(keys, bytes(data), cost)

    async def _submit(self, keys: list[str], data: bytes, cost: float) -> None:
        try:
            batch = _Batch(await self._surely(partial(self.teacher.upload, data)), None, keys, cost)
            await self._journal.add_batch(batch.file, keys)
            self._batches.append(batch)
            await self._make(batch, is_new=True)
            self.stats.sent += len(keys)
            self._show(batch, f"{len(keys)} requests sent")
        except TooLarge as error:
            await self._forget(keys)
            self._make_smaller(keys, error)
        except TeacherUnusable as error:
            await self._forget(keys)
            raise TeacherUnusable(
                f"no batch can be made: {error}. An endpoint without OpenAI's batch API is asked by "
                "`teacher: openai_compatible`"
            ) from error

    async def _make(self, batch: _Batch, is_new: bool) -> str:
        """Make a batch of its file, and return its id; unless the file `is_new`, a batch of it is looked for first."""

        async def make() -> str:
            nonlocal is_new
            made = None if is_new else await self.teacher.find(batch.file)
            is_new = False  # where the answer is lost, the batch may have been made
            return made or await self.teacher.create(batch.file)

        batch.id = await self._surely(make)
        await self._journal.name_batch(batch.file, batch.id)
        return batch.id

    async def _look_at(
        self, batch: _Batch, waiting: Mapping[str, ChatRequest]
    ) -> list[tuple[str, Answer | Failure | Exception]] | None:
        """Return the outcomes of a batch that has ended; exceptions of requests that are asked again."""
        try:
            name = batch.id or await self._make(batch, is_new=False)
            state = await self._surely(partial(self.teacher.state, name))
            counts = state.get("request_counts")
            counts = counts if isinstance(counts, dict) else {}
            done = f", {counts['completed']} of {counts.get('total')} answered" if counts.get("completed") else ""
            self._show(batch, short(f"{state['status']}{done}"))
            if state["status"] in WAITING:
                return None
            files = [state[name] for name in ("output_file_id", "error_file_id") if isinstance(state.get(name), str)]
            if state["status"] == "failed" and not files:
                await self._forget(batch.keys)
                raise self.teacher.why_failed(state)
            texts = [await self._surely(partial(self.teacher.content, file)) for file in files]
        except TooLarge as error:
            await self._forget(batch.keys)
            self._make_smaller(batch.keys, error)
            return []
        except (NoAnswer, TeacherUnusable) as error:
            hint = "; if it is gone for good, `teacher: openai_compatible` asks what it left open"
            raise TeacherUnusable(f"{batch}: {error}{hint if 'status 404' in str(error) else ''}") from error
        return await self._read_lines(batch, "\n".join(texts).split("\n"), state["status"], waiting)

    async def _read_lines(
        self, batch: _Batch, lines: Iterable[str], status: str, waiting: Mapping[str, ChatRequest]
    ) -> list[tuple[str, Answer | Failure | Exception]]:
        keys, latency = set(batch.keys), time.monotonic() - batch.started
        raws: dict[str, RawResponse] = {}
        outcomes: dict[str, Answer | Failure | Exception] = {}
        for line in filter(str.strip, lines):
            try:
                entry = read_json(line)
            except (ValueError, RecursionError):
                continue  # its request is missing below
            key = entry.get("custom_id") if isinstance(entry, dict) else None
            if not isinstance(key, str) or key not in keys or key in raws:
                continue
            try:
                raws[key] = self.teacher.outcome(entry, latency)
            except (TryAgain, NoAnswer, TeacherUnusable) as error:
                outcomes[key] = error
        # Together, since they are committed together.
        await asyncio.gather(*(self._journal.add(key, waiting[key], self.teacher, raw) for key, raw in raws.items()))
        await self._forget(batch.keys)
        unusable: TeacherUnusable | None = None
        for key in batch.keys:
            outcome: Answer | Failure | Exception = outcomes.get(
                key, TryAgain(f"no readable line in the answers of a batch ({status})")
            )
            try:
                if key in raws:
                    outcome = self._answered(key, waiting[key], self.teacher.read(raws[key]))
            except TeacherUnusable as error:
                outcome = error
            if isinstance(outcome, TeacherUnusable):
                unusable = outcome
            outcomes[key] = self._repeated(key, waiting[key], outcome)
        again = sum(isinstance(outcome, Exception) for outcome in outcomes.values())
        if again or status != "completed":
            self.tell(
                f"{batch} {status}: {len(raws)} of {len(keys)} requests answered, {again} to be asked again", False
            )
        if unusable:
            self._give_up(str(unusable))
        return list(outcomes.items())

    def _repeated(
        self, key: str, request: ChatRequest, outcome: Answer | Failure | Exception
    ) -> Answer | Failure | Exception:
        """Return an outcome that is final, or the exception of a request that is asked again."""
        if isinstance(outcome, NoAnswer):
            return Failure(request, str(outcome))
        if isinstance(outcome, TryAgain):
            self._attempts[key] += 1
            if self._attempts[key] >= self.limits.max_attempts:
                return Failure(request, f"{outcome} ({self._attempts[key]} attempts)")
            self.stats.retries[str(outcome).partition(": ")[0]] += 1
            self._unsent.append(key)
        return outcome

    async def _surely(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Repeat a call until it succeeds, or nothing has for `give_up_after`.

        Raises:
            NoAnswer: It is refused.
            TeacherUnusable: Every call is refused.
            PacerClosed: The run is stopped.
        """
        self._last_success, attempts = time.monotonic(), 0
        while True:
            if self._stop is not None:
                raise PacerClosed
            try:
                return await call()
            except TryAgain as error:
                attempts += 1
                self._check_health("", True, str(error))
                await self._wait(error, attempts)

    async def _forget(self, keys: Sequence[str]) -> None:
        await self._journal.end_batch(keys)
        self._batches = [batch for batch in self._batches if batch.keys is not keys]

    def _make_smaller(self, keys: Sequence[str], error: TooLarge) -> None:
        """Send requests again that were too many: in smaller batches, or when the batches in progress have ended."""
        self._unsent.extendleft(reversed(keys))
        if self._batches:
            self._is_full = True
            return
        if len(keys) == 1:
            raise TeacherUnusable(f"a batch of one request is refused: {error}")
        self._most_requests = len(keys) // 2
        self._tell_once(
            "refused", f"{len(keys)} requests are too many for a batch ({error}): they go into smaller ones"
        )

    def _show(self, batch: _Batch, state: str) -> None:
        if state != batch.state:
            batch.state = state
            self.tell("; ".join(f"{one}: {one.state}" for one in self._batches), True)

    def _tell_once(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self.tell(text, False)
