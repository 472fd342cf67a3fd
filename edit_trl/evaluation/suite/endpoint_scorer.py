"""A model behind an endpoint as the judge of a suite (L4): the log-probabilities of what it is sent.

`/completions` with `echo` and `logprobs`, as OpenAI's first API had it and vLLM has it: for each token of the
prompt its log-probability, and the likeliest token in its place. Prompts are token ids, so that it is the
tokens of the suite that are scored.

Read in vllm: `OpenAIServingCompletion.create_completion` (token ids as a prompt, `echo` with `logprobs`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edit_trl.common.errors import InputError
from edit_trl.evaluation.runs.schema import Continuation, SuiteItem
from edit_trl.evaluation.suite.items import WrongTurnAt, check_finite, continuation_of, suite_item
from edit_trl.models.chat.protocol import MalformedResponse, NoAnswer, TeacherUnusable, TryAgain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edit_trl.evaluation.suite.cases import SuiteCase
    from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher

_ATTEMPTS, _WAIT = 6, 1.0
NEEDS = (
    "a suite needs the log-probabilities of the prompt's tokens: `/completions` with `echo` and `logprobs`, "
    "as vLLM has it (chat endpoints and llama.cpp do not). Serve the model with such an engine, or let it "
    "run here: `model` as a path or Hub id, without `base_urls`"
)


class Scored(NamedTuple):
    """A chain at the endpoint: each token's log-probability, the best one in its place, that one's text."""

    logps: list[float]
    best_logps: list[float]
    best: list[str]


class EndpointJudge:
    """Makes the items of a suite by asking an endpoint.

    Args:
        client: The model there; closed at the end of a run.
        tokenizer: The model's.
        cases: The suite.
        batch_size: Pairs asked about at once.
        max_new_tokens: How much is written after the shared beginning; 0 for nothing.
    """

    def __init__(
        self,
        client: OpenAICompatibleTeacher,
        tokenizer: PreTrainedTokenizerBase,
        cases: Sequence[SuiteCase],
        *,
        batch_size: int = 8,
        max_new_tokens: int = 0,
    ):
        self._client, self._tokenizer, self._cases = client, tokenizer, cases
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens

    def plan(self) -> list[list[int]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseJudge.plan`."""
        size, indexes = self._batch_size, list(range(len(self._cases)))
        return [indexes[start : start + size] for start in range(0, len(indexes), size)]

    def run(self, batches: Sequence[list[int]]) -> Iterator[list[SuiteItem]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseJudge.run`.

        Raises:
            InputError: The endpoint cannot be reached, refuses, has no log-probabilities of the prompt, or
                another tokenizer.
        """
        with asyncio.Runner() as runner:
            try:
                runner.run(self._client.check())
                for batch in batches:
                    yield runner.run(self._items([self._cases[index] for index in batch]))
            finally:
                runner.run(self._client.close())

    async def _items(self, cases: Sequence[SuiteCase]) -> list[SuiteItem]:
        return list(await asyncio.gather(*map(self._item, cases)))

    async def _item(self, case: SuiteCase) -> SuiteItem:
        chosen, rejected = await asyncio.gather(self._score(case, "chosen"), self._score(case, "rejected"))
        check_finite(case, chosen.logps, rejected.logps)
        greedy = await self._continuation(case, chosen, rejected) if self._max_new_tokens else None
        return suite_item(case, chosen.logps, rejected.logps, self._wrong_turn(case, chosen), greedy)

    async def _score(self, case: SuiteCase, side: Literal["chosen", "rejected"]) -> Scored:
        start = len(case.tokens["prompt_ids"])
        ids = case.tokens["prompt_ids"] + case.tokens[f"{side}_ids"]
        # Some engines must generate; what they add comes last, and is not read.
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        choice = await self._ask(case, body)
        found = choice.get("logprobs")
        found = found if isinstance(found, Mapping) else {}
        texts, logps, tops = (found.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
        if min(len(texts), len(logps), len(tops)) < len(ids):
            raise InputError(f"{self._client.address} gave {len(logps)} for {len(ids)} tokens, and {NEEDS}")
        self._check_tokens(ids, texts)
        places = range(start, len(ids))
        best = [_best(tops[place], texts[place], logps[place]) for place in places]
        return Scored(
            [float("nan") if logps[place] is None else float(logps[place]) for place in places],
            [logp for logp, _ in best],
            [text for _, text in best],
        )

    def _check_tokens(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Single tokens are written in more than one way; most of them alike."""
        ours = [_letters(self._tokenizer.decode([token])) for token in ids]
        theirs = [_letters(text) for text in texts[: len(ids)]]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a]
        if pairs and sum(a == b for a, b in pairs) < 0.5 * len(pairs):
            a, b = next((a, b) for a, b in pairs if a != b)
            raise InputError(
                f"the tokens of `tokenizer: {self._tokenizer.name_or_path}` are others to "
                f"{self._client.address}: {a!r} here is {b!r} there. Name the tokenizer of its model"
            )

    def _wrong_turn(self, case: SuiteCase, chosen: Scored) -> WrongTurnAt | None:
        for place, token in enumerate(case.tokens["chosen_ids"]):
            if chosen.best_logps[place] > chosen.logps[place]:
                text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
                return WrongTurnAt(place, text, chosen.best[place])
            if token == self._tokenizer.eos_token_id:
                break
        return None

    async def _continuation(self, case: SuiteCase, chosen: Scored, rejected: Scored) -> Continuation:
        body = {"prompt": case.prefix, "max_tokens": self._max_new_tokens, "temperature": 0.0}
        choice = await self._ask(case, body)
        response, fork = str(choice.get("text") or ""), case.tokens["fork"]
        branch: Literal["right", "wrong", "neither"] = "neither"
        if chosen.logps[fork] >= chosen.best_logps[fork]:
            branch = "right"
        elif fork < len(rejected.logps) and rejected.logps[fork] >= rejected.best_logps[fork]:
            branch = "wrong"
        beginning = self._tokenizer.decode(case.tokens["chosen_ids"][:fork], skip_special_tokens=True)
        cut_off = choice.get("finish_reason") == "length"
        return continuation_of(case, beginning + response, response, branch, cut_off)

    async def _ask(self, case: SuiteCase, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first choice of the answer."""
        for attempt in range(_ATTEMPTS):
            try:
                answer = await self._client.complete(body)
                break
            except (TryAgain, MalformedResponse) as error:
                if attempt == _ATTEMPTS - 1:
                    raise InputError(
                        f"{self._client.address} does not answer ({error}); run again later"
                    ) from error
                await asyncio.sleep(getattr(error, "retry_after", None) or _WAIT * 2**attempt)
            except (NoAnswer, TeacherUnusable) as error:
                raise InputError(
                    f"{self._client.address}, {case.name}: {error}. Note that {NEEDS}"
                ) from error
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise InputError(f"{self._client.address} answered without `choices`, and {NEEDS}")
        return choices[0]


def _best(top: Any, text: str, logp: float | None) -> tuple[float, str]:
    """The likeliest token in a place; the token itself where it is as likely."""
    others = top if isinstance(top, Mapping) else {}
    best = max(others, key=others.get, default=None)
    if best is None or logp is None or others[best] <= logp:
        return (float("-inf") if logp is None else logp), text
    return float(others[best]), str(best)


def _letters(text: Any) -> str:
    return "".join(character for character in str(text) if character.isascii() and character.isalnum())
