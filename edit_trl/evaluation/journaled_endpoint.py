"""A model behind an endpoint, asked from synchronous code; each response is journaled before it is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.models.chat.dispatch import Answer, Dispatcher, Failure, Limits, stopped_by_signals
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import ChatRequest, Teacher
from edit_trl.models.cluster.cluster import Engine

UNANSWERED_FILE = "unanswered.jsonl"
_MOST_NAMED = 10


class JournaledEndpoint:
    """Asks a model that is evaluated, and resumes from the journal of the run.

    Args:
        client: The model.
        folder: The folder of the run, which holds the journal.
        limits: Limits on the requests to the endpoint.
        engine: Which machines ask it: this one, or those of a Ray cluster.
        allow_unanswered: Whether `answers` may end without the answers to some requests; None where that is no
            option.

    Raises:
        InputError: The endpoint cannot be reached, or does not have the model; no prompt is sent yet.
    """

    def __init__(
        self,
        client: Teacher,
        folder: Path,
        limits: Limits,
        engine: Engine = "local",
        *,
        allow_unanswered: bool | None = None,
    ):
        if engine == "ray":
            from edit_trl.models.cluster.chat import on_ray

            endpoint: Any = client  # the cluster's machines can make it, too
            client = on_ray({"model": endpoint}, None, limits.most_in_flight())["model"]
        self._client, self._folder, self._limits = client, folder, limits
        self._allow_unanswered = allow_unanswered
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._client.check())
        except InputError:
            self._close()
            raise

    def answers(self, requests: Iterable[ChatRequest]) -> Iterator[Answer]:
        """Send requests and yield their answers in the order of arrival; to be called once.

        Requests without an answer are listed in `unanswered.jsonl`, with what the endpoint says.

        Raises:
            InputError: The endpoint failed for good, or did not answer some requests. All answers received
                until then are in the journal.
        """
        failures: list[Failure] = []
        try:
            with Journal(self._folder) as journal:
                dispatcher = Dispatcher(self._client, journal, self._limits)
                with stopped_by_signals([dispatcher], self._loop):
                    outcomes = dispatcher.run(requests)
                    try:
                        while (outcome := self._loop.run_until_complete(_next(outcomes))) is not None:
                            if isinstance(outcome, Failure):
                                failures.append(outcome)
                            else:
                                yield outcome
                    except GeneratorExit:  # the answers cannot be used, but those in flight are paid for
                        dispatcher.stop()
                        with suppress(InputError):  # the run was stopped, or the journal cannot be written either
                            while self._loop.run_until_complete(_next(outcomes)) is not None:
                                pass
                        raise
        finally:
            self._close()
        self._report([(self.name_of(failure.request), failure.reason) for failure in failures])

    def name_of(self, request: ChatRequest) -> str:
        """Return the name of the item that a request is for."""
        return request.row_id

    def _report(self, failures: Sequence[tuple[str, str]]) -> None:
        file = self._folder / UNANSWERED_FILE
        if not failures:
            file.unlink(missing_ok=True)
            return
        lines = [json.dumps({"item": name, "reason": reason}, ensure_ascii=False) for name, reason in failures]
        write_whole(file, "".join(f"{line}\n" for line in lines))
        if self._allow_unanswered:
            return
        listed = [f"{name}: {reason}" for name, reason in failures[:_MOST_NAMED]]
        if len(failures) > len(listed):
            listed.append(f"... and {len(failures) - len(listed)} more, in {file}")
        way_out = ", or add `--allow_unanswered true` to count these as unparsed"
        raise InputError(
            listed,
            f"{len(failures)} requests got no answer. The others are kept: run the same command again to ask these "
            f"once more{'' if self._allow_unanswered is None else way_out}:",
        )

    def _close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _next(outcomes: AsyncIterator[Answer | Failure]) -> Answer | Failure | None:
    return await anext(outcomes, None)
