"""A generator whose model is behind an endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edit_trl.evaluation.journaled_endpoint import JournaledEndpoint
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.protocol import ChatRequest, Sampling, Teacher
from edit_trl.models.cluster.cluster import Engine
from edit_trl.models.decoding import Decoding, Generated


class EndpointGenerator(JournaledEndpoint):
    """A `Generator` whose model is behind an endpoint.

    Args:
        client, folder, limits, engine: See `JournaledEndpoint`.
        decoding: How responses are generated.
        seed: The seed of the first sample; each further sample adds one.
    """

    def __init__(
        self, client: Teacher, folder: Path, decoding: Decoding, limits: Limits, seed: int, engine: Engine = "local"
    ):
        super().__init__(client, folder, limits, engine)
        self._decoding, self._seed = decoding, seed

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
            response, index = answer.response, int(answer.request.row_id)
            samples[index][answer.request.sample] = Generated(
                response.text.strip(), response.completion_tokens, response.finish_reason == "length"
            )
            if len(samples[index]) == self._decoding.samples:
                yield [index], [[sample for _, sample in sorted(samples[index].items())]]

    def _requests(self, prompts: Sequence[str | list[dict[str, str]]], indexes: Sequence[int]) -> Iterator[ChatRequest]:
        decoding = self._decoding
        sampling = Sampling(decoding.temperature, decoding.top_p, decoding.max_new_tokens)
        for index in indexes:
            prompt = prompts[index]
            if isinstance(prompt, str):
                messages: tuple[tuple[str, str], ...] = (("user", prompt),)
            else:
                messages = tuple((message["role"], message["content"]) for message in prompt)
            for sample in range(decoding.samples):
                yield ChatRequest("student", str(index), "", messages, sampling, sample, self._seed + sample)
