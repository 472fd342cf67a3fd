"""A model behind an endpoint, asked from synchronous code; each response is journaled before it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from edit_trl.common.errors import InputError
from edit_trl.models.chat.dispatch import Answer, Dispatcher, Failure, Limits, stopped_by_signals
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import ChatRequest, Teacher
from edit_trl.models.cluster.cluster import Engine


class JournaledEndpoint:
    """Asks a model that is evaluated, and resumes from the journal of the run.

    Args:
        client: The model.
        folder: The folder of the run, which holds the journal.
        limits: Limits on the requests to the endpoint.
        engine: Which machines ask it: this one, or those of a Ray cluster.

    Raises:
        InputError: The endpoint cannot be reached, or does not have the model; no prompt is sent yet.
    """

    def __init__(self, client: Teacher, folder: Path, limits: Limits, engine: Engine = "local"):
        if engine == "ray":
            from edit_trl.models.cluster.chat import on_ray

            client = on_ray({"model": client}, None, limits.max_concurrency)["model"]
        self._client, self._folder, self._limits = client, folder, limits
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._client.check())
        except InputError:
            self._close()
            raise

    def answers(self, requests: Iterable[ChatRequest]) -> Iterator[Answer]:
        """Send requests and yield their answers in the order of arrival; to be called once.

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
                    while (outcome := self._loop.run_until_complete(_next(outcomes))) is not None:
                        if isinstance(outcome, Failure):
                            failures.append(outcome)
                        else:
                            yield outcome
        finally:
            self._close()
        if failures:
            raise InputError(
                f"{len(failures)} requests got no answer, the first: {failures[0].reason}. The others are "
                "kept: run the same command again to ask these once more, or leave their rows out"
            )

    def _close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _next(outcomes: AsyncIterator[Answer | Failure]) -> Answer | Failure | None:
    return await anext(outcomes, None)
