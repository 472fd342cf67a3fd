"""A generator whose model is behind an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edit_trl.common.thoughts import in_our_form
from edit_trl.evaluation.accuracy.problems import Problem
from edit_trl.evaluation.journaled_endpoint import JournaledEndpoint
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, Sampling, Teacher
from edit_trl.models.cluster.cluster import Engine
from edit_trl.models.decoding import Decoding, Generated


class EndpointGenerator(JournaledEndpoint):
    """A `Generator` whose model is behind an endpoint.

    Args:
        client, folder, limits, engine, allow_unanswered: See `JournaledEndpoint`. Where a request may stay
            unanswered, its response is empty.
        problems: The problems that it is asked.
        decoding: How responses are generated.
        seed: The seed of the first sample; each further sample adds one. None to send no seed.
        stop: The texts that end a response, by task.
    """

    def __init__(
        self,
        client: Teacher,
        folder: Path,
        problems: Sequence[Problem],
        decoding: Decoding,
        limits: Limits,
        seed: int | None,
        engine: Engine = "local",
        *,
        stop: Mapping[str, tuple[str, ...]] | None = None,
        allow_unanswered: bool = False,
    ):
        super().__init__(client, folder, limits, engine, allow_unanswered=allow_unanswered)
        self._problems, self._decoding, self._seed, self._stop = problems, decoding, seed, stop or {}

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Plan one question per batch, since answers arrive in any order."""
        return [[index] for index in range(len(lengths))]

    def run(
        self, prompts: Sequence[str | list[dict[str, str]]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`.

        Raises:
            InputError: See `JournaledEndpoint.answers`.
        """
        samples: dict[int, dict[int, Generated]] = {index: {} for (index,) in batches}
        for answer in self.answers(self._requests(prompts, list(samples))):
            index = int(answer.request.row_id)
            samples[index][answer.request.sample] = _generated(answer.response)
            if len(samples[index]) == self._decoding.samples:
                yield [index], [_in_order(samples.pop(index), self._decoding.samples)]
        for index, drawn in samples.items():
            yield [index], [_in_order(drawn, self._decoding.samples)]

    def name_of(self, request: ChatRequest) -> str:
        """See `JournaledEndpoint.name_of`."""
        return "/".join(self._problems[int(request.row_id)].key)

    def _requests(self, prompts: Sequence[str | list[dict[str, str]]], indexes: Sequence[int]) -> Iterator[ChatRequest]:
        decoding = self._decoding
        limits = decoding.temperature, decoding.top_p, decoding.max_new_tokens
        for index in indexes:
            prompt, stop = prompts[index], self._stop.get(self._problems[index].task, ())
            sampling = Sampling(*limits, stop, decoding.max_thinking_tokens)
            if isinstance(prompt, str):
                messages: tuple[tuple[str, str], ...] = (("user", prompt),)
            else:
                messages = tuple((message["role"], message["content"]) for message in prompt)
            for sample in range(decoding.samples):
                seed = None if self._seed is None else self._seed + sample
                yield ChatRequest("student", str(index), "", messages, sampling, sample, seed)


def _generated(response: ChatResponse) -> Generated:
    reason = response.finish_reason
    return Generated(in_our_form(response.text), response.completion_tokens, reason == "length", reason == "refused")


def _in_order(drawn: Mapping[int, Generated], count: int) -> list[Generated]:
    """Return the samples by their number; those that were not answered are empty."""
    return [drawn.get(sample, Generated("", 0, cut_off=False)) for sample in range(count)]
