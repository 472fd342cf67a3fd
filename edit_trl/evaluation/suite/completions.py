"""A model behind an endpoint that returns the log-probabilities of the tokens it is sent.

The endpoint is `/completions` with `echo` and `logprobs`, as in OpenAI's first API and in vLLM: for each
token of the prompt, its log-probability and the most likely token in its place. Prompts are token ids, so
that the endpoint scores exactly the tokens of the suite.

Read in vllm: `OpenAIServingCompletion.create_completion` (token ids as a prompt, `echo` with `logprobs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edit_trl.evaluation.suite.items import not_finite
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    FinishReason,
    NoAnswer,
    RawResponse,
    TeacherUnusable,
)
from edit_trl.models.chat.replies import first_choice, response_of

NEEDS = (
    "a suite needs the log-probabilities of the prompt's tokens: `/completions` with `echo` and `logprobs`, "
    "as in vLLM (not chat endpoints or llama.cpp). Serve the model with such an engine, or load it on this "
    "machine: `model` as a path or Hub id, without `base_urls`"
)


@dataclass(frozen=True)
class Completion(ChatResponse):
    """A completion.

    Attributes:
        choice: The first of the endpoint's choices, with `text` and `logprobs`.
    """

    choice: Mapping[str, Any] = field(default_factory=dict)


class CompletionTeacher(OpenAICompatibleTeacher):
    """A model that scores chains and continues prompts, which requests hold as token ids.

    A request with the stage "score" has the messages ("prompt", ids) and ("correct" or "wrong", ids), and
    asks for log-probabilities of the second. A request with the stage "continue" has only the first.
    """

    async def attempt(self, request: ChatRequest) -> RawResponse:
        """Ask once; see `Teacher.attempt`.

        Raises:
            TeacherUnusable: Also for an answer without what a suite needs. Such an answer does not reach the
                journal: the request is sent again once the model is served differently.
        """
        ids = [int(token) for _, part in request.messages for token in part.split()]
        body = {"prompt": ids, "max_tokens": request.sampling.max_tokens, "temperature": 0.0}
        if request.stage == "score":
            body |= {"echo": True, "logprobs": 1}
        try:
            raw = await self.complete(body)
        except (NoAnswer, TeacherUnusable) as error:
            raise type(error)(f"{self.address}, {request.row_id}: {error}. Note that {NEEDS}") from error
        self._check_completion(request, first_choice(raw)[1], len(ids))
        return raw

    def read(self, raw: RawResponse) -> Completion:
        """Read a completion; see `Teacher.read`."""
        body, choice = first_choice(raw)
        reason: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
        response = response_of(body, str(choice.get("text") or ""), reason)
        return Completion(**vars(response), choice=choice)

    def _check_completion(self, request: ChatRequest, choice: Mapping[str, Any], count: int) -> None:
        if request.stage == "continue":
            if not isinstance(choice.get("text"), str):
                raise TeacherUnusable(f"{self.address} returned no text, and {NEEDS}")
            return
        texts, logps, tops = logprobs_of(choice)
        if min(len(texts), len(logps), len(tops)) < count:
            raise TeacherUnusable(
                f"{self.address} returned {len(logps)} log-probabilities for {count} tokens, and {NEEDS}"
            )
        side, chain = request.messages[1]
        length = len(chain.split())
        chain_logps = [math.nan if logp is None else logp for logp in logps[count - length : count]]
        if issue := not_finite(request.row_id, side, chain_logps):
            raise TeacherUnusable(issue)


def logprobs_of(choice: Mapping[str, Any]) -> tuple[list[Any], list[float | None], list[Mapping[str, float]]]:
    """Return the text, the log-probability and the most likely tokens of each position, in lists."""
    logprobs = choice.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, Mapping) else {}
    lists = [logprobs.get(key) for key in ("tokens", "token_logprobs", "top_logprobs")]
    texts, logps, tops = (values if isinstance(values, list) else [] for values in lists)
    tops = [top if isinstance(top, Mapping) else {} for top in tops]
    tops = [{text: logp for text, logp in top.items() if isinstance(logp, int | float)} for top in tops]
    return texts, [logp if isinstance(logp, int | float) else None for logp in logps], tops
