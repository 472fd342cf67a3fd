"""A scorer whose model is behind an endpoint: see `edit_trl.evaluation.suite.completions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import thoughts_part
from edit_trl.evaluation.journaled_endpoint import JournaledEndpoint
from edit_trl.evaluation.runs.schema import Branch, Continuation, SuiteItem
from edit_trl.evaluation.suite.cases import SuiteCase
from edit_trl.evaluation.suite.completions import Completion, logprobs_of
from edit_trl.evaluation.suite.items import WrongTurnAt, continuation_of, suite_item
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.protocol import ChatRequest, Sampling, Teacher
from edit_trl.models.cluster.cluster import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Choice = Mapping[str, Any]


class ScoredChain(NamedTuple):
    """For each token of a chain, its log-probability, and the log-probability and text of the best token."""

    logps: list[float]
    best_logps: list[float]
    best_texts: list[str]


class EndpointScorer(JournaledEndpoint):
    """A `CaseScorer` whose model is behind an endpoint.

    Args:
        client, folder, limits, engine: See `JournaledEndpoint`; the client is a `CompletionTeacher`.
        tokenizer: The tokenizer of the model.
        cases: The suite.
        max_new_tokens: The most tokens to generate after the shared beginning; 0 to generate nothing.
    """

    def __init__(
        self,
        client: Teacher,
        folder: Path,
        limits: Limits,
        tokenizer: PreTrainedTokenizerBase,
        cases: Sequence[SuiteCase],
        *,
        max_new_tokens: int = 0,
        engine: Engine = "local",
    ):
        super().__init__(client, folder, limits, engine)
        self._tokenizer, self._cases, self._max_new_tokens = tokenizer, cases, max_new_tokens

    def plan(self) -> list[list[int]]:
        """Plan one case per batch, since answers arrive in any order."""
        return [[index] for index in range(len(self._cases))]

    def run(self, batches: Sequence[list[int]]) -> Iterator[list[SuiteItem]]:
        """See `edit_trl.evaluation.suite.evaluate_suite.CaseScorer.run`; items come in any order.

        Raises:
            InputError: See `JournaledEndpoint.answers`; also an endpoint that does not return the
                log-probabilities of the prompt, or has another tokenizer.
        """
        cases = {self._cases[index].name: self._cases[index] for (index,) in batches}
        choices: dict[str, dict[str, Choice]] = {name: {} for name in cases}
        for answer in self.answers(request for case in cases.values() for request in self._requests(case)):
            name = answer.request.row_id
            completion = answer.response
            assert isinstance(completion, Completion)  # what a `CompletionTeacher` answers
            choices[name][_purpose(answer.request)] = completion.choice
            if len(choices[name]) == (3 if self._max_new_tokens else 2):
                yield [self._item(cases[name], choices.pop(name))]

    def _requests(self, case: SuiteCase) -> Iterator[ChatRequest]:
        prompt = ("prompt", _text(case.ids("prompt")))
        for side, ids in (("correct", case.ids("chosen")), ("wrong", case.ids("rejected"))):
            messages = (prompt, (side, _text(ids)))
            # Some engines must generate at least one token. It comes last and is not read.
            yield ChatRequest("score", case.name, "", messages, Sampling(0.0, max_tokens=1))
        if self._max_new_tokens:
            sampling = Sampling(0.0, max_tokens=self._max_new_tokens)
            yield ChatRequest("continue", case.name, "", (("prompt", _text(case.prefix)),), sampling)

    def _item(self, case: SuiteCase, choices: Mapping[str, Choice]) -> SuiteItem:
        chosen = self._scored(case, "chosen", choices["correct"])
        rejected = self._scored(case, "rejected", choices["wrong"])
        greedy = None
        if self._max_new_tokens:
            greedy = self._continuation(case, chosen, rejected, choices["continue"])
        return suite_item(case, chosen.logps, rejected.logps, self._wrong_turn(case, chosen), greedy)

    def _scored(self, case: SuiteCase, side: Literal["chosen", "rejected"], choice: Choice) -> ScoredChain:
        start = len(case.tokens["prompt_ids"])
        ids = case.ids("prompt") + case.ids(side)
        texts, logps, tops = logprobs_of(choice)
        self._check_tokens(ids, texts)
        own = [float(logp) for logp in logps[start : len(ids)] if logp is not None]  # a prompt's first token has none
        places = range(start, len(ids))
        best = [_best(tops[place], texts[place], logp) for place, logp in zip(places, own, strict=True)]
        return ScoredChain(own, [logp for logp, _ in best], [text for _, text in best])

    def _check_tokens(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Check that most tokens have the same letters at the endpoint; engines write others differently."""
        ours = [_letters(self._tokenizer.decode([token])) for token in ids]
        theirs = [_letters(text) for text in texts[: len(ids)]]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a]
        if pairs and sum(a == b for a, b in pairs) < 0.5 * len(pairs):
            a, b = next((a, b) for a, b in pairs if a != b)
            raise InputError(
                f"`tokenizer: {self._tokenizer.name_or_path}` is not the tokenizer of the model at "
                f"{self._client.address}: {a!r} here is {b!r} there. Name the tokenizer of that model"
            )

    def _wrong_turn(self, case: SuiteCase, chosen: ScoredChain) -> WrongTurnAt | None:
        for position, token in enumerate(case.tokens["chosen_ids"]):
            if chosen.best_logps[position] > chosen.logps[position]:
                text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
                return WrongTurnAt(position, text, chosen.best_texts[position])
            if token == self._tokenizer.eos_token_id:
                break
        return None

    def _continuation(
        self, case: SuiteCase, chosen: ScoredChain, rejected: ScoredChain, choice: Choice
    ) -> Continuation:
        response, fork = choice["text"], case.tokens["fork"]
        branch: Branch = "neither"
        if chosen.logps[fork] >= chosen.best_logps[fork]:
            branch = "right"
        elif fork < len(rejected.logps) and rejected.logps[fork] >= rejected.best_logps[fork]:
            branch = "wrong"
        # Of thoughts, the markers may be special tokens, or stand in the prompt; the text of the chain has them.
        beginning = case.beginning
        if thoughts_part(case.chosen) is None:
            beginning = str(self._tokenizer.decode(case.tokens["chosen_ids"][:fork], skip_special_tokens=True))
        cut_off = choice.get("finish_reason") == "length"
        return continuation_of(case, beginning + response, response, branch, cut_off)


def _text(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _purpose(request: ChatRequest) -> str:
    """Return the part of the item that a request is for: the "correct" chain, the "wrong" chain, or "continue"."""
    return request.messages[1][0] if request.stage == "score" else request.stage


def _best(candidates: Mapping[str, float], text: str, logp: float) -> tuple[float, str]:
    """Return the log-probability and text of the most likely token; of the chain's own token if none is likelier."""
    best = max(candidates, key=lambda candidate: candidates[candidate], default=None)
    return (float(candidates[best]), str(best)) if best is not None and candidates[best] > logp else (logp, text)


def _letters(text: Any) -> str:
    return "".join(character for character in str(text) if character.isascii() and character.isalnum())
