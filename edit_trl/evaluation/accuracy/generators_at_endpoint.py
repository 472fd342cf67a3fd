"""A model behind an endpoint that is measured (L4): here teachers and evaluation meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.models.chat.dispatch import Answer, Dispatcher, Failure, Limits
    from edit_trl.models.chat.protocol import ChatRequest, Teacher
    from edit_trl.models.decoding import Decoding, Generated

Prompt = Any  # text, or messages


class EndpointGenerator:
    """A `Generator` whose model is behind an endpoint; every response is journaled before it is read.

    Args:
        client: The model.
        journal: The folder of the journal.
        decoding: How responses are drawn.
        limits: How hard the endpoint is asked.
        seed: Sent with each request, one more for each sample.
    """

    batching = "endpoint"

    def __init__(self, client: Teacher, journal: Path, decoding: Decoding, limits: Limits, seed: int):
        self._client, self._folder, self._decoding = client, journal, decoding
        self._limits, self._seed = limits, seed
        self._loop = asyncio.new_event_loop()

    def check(self) -> None:
        """See that the endpoint is there and has the model; no prompt is sent.

        Raises:
            InputError: It is not, or has not.
        """
        try:
            self._loop.run_until_complete(self._client.check())
        except InputError:
            self._close()
            raise

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """A question is a batch: answers come in any order."""
        return [[index] for index in range(len(lengths))]

    def run(
        self, prompts: Sequence[Prompt], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`.

        Raises:
            InputError: The endpoint broke off, or left questions unanswered; what was answered is kept.
        """
        from edit_trl.models.chat.dispatch import Dispatcher, stopped_by_signals
        from edit_trl.models.chat.journal import Journal

        try:
            with Journal(self._folder) as journal:
                dispatcher = Dispatcher(self._client, journal, self._limits)
                with stopped_by_signals([dispatcher], self._loop):
                    yield from self._answers(dispatcher, prompts, batches)
        finally:
            self._close()

    def _close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _answers(
        self, dispatcher: Dispatcher, prompts: Sequence[Prompt], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        from edit_trl.models.chat.dispatch import Failure
        from edit_trl.models.decoding import Generated

        drawn: dict[int, dict[int, Generated]] = {index: {} for (index,) in batches}
        failures: list[Failure] = []
        answers = dispatcher.run(self._requests(prompts, list(drawn)))
        while (outcome := self._loop.run_until_complete(_next(answers))) is not None:
            if isinstance(outcome, Failure):
                failures.append(outcome)
                continue
            response, index = outcome.response, int(outcome.request.row_id)
            drawn[index][outcome.request.sample] = Generated(
                response.text.strip(), response.completion_tokens, response.finish_reason == "length"
            )
            if len(drawn[index]) == self._decoding.samples:
                yield [index], [[drawn[index][sample] for sample in range(self._decoding.samples)]]
        if failures:
            raise InputError(
                f"{len(failures)} requests got no answer, the first: {failures[0].reason}. The others are "
                "kept: run the same command again to ask these once more, or leave such questions out"
            )

    def _requests(self, prompts: Sequence[Prompt], indexes: Sequence[int]) -> Iterator[ChatRequest]:
        from edit_trl.models.chat.protocol import ChatRequest, Sampling

        decoding = self._decoding
        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.max_new_tokens)
        for index in indexes:
            prompt = prompts[index]
            messages = (
                [("user", prompt)]
                if isinstance(prompt, str)
                else [(message["role"], message["content"]) for message in prompt]
            )
            for sample in range(decoding.samples):
                yield ChatRequest(
                    stage="student",
                    row_id=str(index),
                    template="",
                    messages=tuple(messages),
                    sampling=sampling,
                    sample=sample,
                    seed=self._seed + sample,
                )


async def _next(answers: AsyncIterator[Answer | Failure]) -> Answer | Failure | None:
    return await anext(answers, None)
