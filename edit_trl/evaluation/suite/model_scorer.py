"""A scorer whose model is in memory: one forward per batch of pairs, and a greedy continuation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from edit_trl.common.checks import at_least, not_negative
from edit_trl.common.errors import raise_problems
from edit_trl.common.thoughts import thoughts_part, without_opening
from edit_trl.evaluation.runs.schema import Branch, Continuation, SuiteItem
from edit_trl.evaluation.suite.cases import SuiteCase
from edit_trl.evaluation.suite.items import WrongTurnAt, continuation_of, not_finite, suite_item
from edit_trl.models.adapters import adapter_base
from edit_trl.models.decoding import Decoding
from edit_trl.models.generation import Engine, undisturbed
from edit_trl.models.loading import load_config, load_tokenizer, positions_of
from edit_trl.models.pairs.collation import DualCoTCollator
from edit_trl.models.pairs.scoring import Layout, PairLogps, make_pair_scorer
from edit_trl.models.responses import is_thinking
from edit_trl.models.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.evaluation.suite.config import SuiteArguments


class ModelScorer:
    """A `CaseScorer` whose model is in memory.

    The mode, the settings and the hooks of the model and the random state are restored after each batch.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        cases: The suite.
        batch_size: Number of pairs per forward.
        layout: See `evaluate_suite`.
        max_new_tokens: The most tokens to generate after the shared beginning; 0 to generate nothing.
        half_precision: Whether the forward runs in bf16 or fp16, independent of the dtype of the weights.

    Raises:
        InputError: The batch size is below 1, there is no EOS token, or the model has no embedding for a token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cases: Sequence[SuiteCase],
        *,
        batch_size: int = 8,
        layout: Layout = "auto",
        max_new_tokens: int = 0,
        half_precision: bool = False,
    ):
        raise_problems(at_least(1, batch_size=batch_size) + not_negative(max_new_tokens=max_new_tokens))
        self._model, self._tokenizer, self._cases = model, tokenizer, cases
        self._batch_size, self._layout, self._half_precision = batch_size, layout, half_precision
        self._max_new_tokens = max_new_tokens
        self._engine = Engine(model, tokenizer)
        ids = [(case.ids("prompt"), case.ids("chosen"), case.ids("rejected")) for case in cases]
        check_vocabulary(model, tokenizer, chain.from_iterable(ids))

    def plan(self) -> list[list[int]]:
        """See `CaseScorer.plan`. The longest cases come first, so that a lack of memory shows at once."""
        order = sorted(range(len(self._cases)), key=lambda index: -self._cases[index].length)
        size = self._batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def run(self, batches: Iterable[list[int]]) -> Iterator[list[SuiteItem]]:
        """See `CaseScorer.run`."""
        if not batches:
            return
        collator = DualCoTCollator(self._engine.pad_id)
        longest = max(self._cases, key=lambda case: case.length)
        scorer = make_pair_scorer(
            self._model,
            collator,
            self._layout,
            check_example=_example(longest),
            half_precision=self._half_precision,
            with_best=True,
        )
        try:
            for batch in batches:
                cases = [self._cases[index] for index in batch]
                # Not around the loop: changes that the caller makes between batches must stay.
                with undisturbed(self._model), torch.no_grad():
                    inputs = send_to_device(collator([_example(case) for case in cases]), self._model.device)
                    logps = scorer(self._model, inputs)
                yield self._items(cases, logps)
        finally:
            scorer.remove()

    def _items(self, cases: Sequence[SuiteCase], logps: PairLogps) -> list[SuiteItem]:
        assert logps.rejected is not None  # the scorer returns both
        assert logps.chosen_best is not None
        correct, best = (
            [values[: len(case.ids("chosen"))] for case, values in zip(cases, table.tolist(), strict=True)]
            for table in (logps.chosen, logps.chosen_best)
        )
        wrong = [row[: len(case.ids("rejected"))] for case, row in zip(cases, logps.rejected.tolist(), strict=True)]
        for case, chosen, rejected in zip(cases, correct, wrong, strict=True):
            issue = not_finite(case.name, "correct", chosen) or not_finite(case.name, "wrong", rejected)
            if issue:
                raise FloatingPointError(issue)
        greedy = self._continuations(cases, best) if self._max_new_tokens else [None] * len(cases)
        return [
            suite_item(case, chosen, rejected, self._wrong_turn(case, ids), continuation)
            for case, chosen, rejected, ids, continuation in zip(cases, correct, wrong, best, greedy, strict=True)
        ]

    def _wrong_turn(self, case: SuiteCase, best: Sequence[int]) -> WrongTurnAt | None:
        """Return the token at which greedy decoding leaves the correct chain; generation ends at an EOS token."""
        for position, (token, likeliest) in enumerate(zip(case.tokens["chosen_ids"], best, strict=True)):
            if token != likeliest:
                return WrongTurnAt(position, self._text([token]), self._text([likeliest]))
            if token in self._engine.eos_ids:
                break
        return None

    def _continuations(self, cases: Sequence[SuiteCase], best: Sequence[Sequence[int]]) -> list[Continuation]:
        """Generate the continuations of the shared beginnings.

        Their first tokens come from the forward that scored the pairs, so that a near tie is decided once.
        """
        firsts = [ids[case.tokens["fork"]] for case, ids in zip(cases, best, strict=True)]
        prompts = [(*case.prefix, first) for case, first in zip(cases, firsts, strict=True)]
        # Several pairs may have the same beginning.
        unfinished = [prompt for prompt in dict.fromkeys(prompts) if prompt[-1] not in self._engine.eos_ids]
        rest: dict[tuple[int, ...], Sequence[int]] = dict.fromkeys(prompts, ())
        if unfinished and self._max_new_tokens > 1:
            responses = self._engine.generate(unfinished, Decoding(self._max_new_tokens - 1))
            rest |= dict(zip(unfinished, responses, strict=True))
        return [
            self._continuation(case, [first, *rest[prompt]])
            for case, first, prompt in zip(cases, firsts, prompts, strict=True)
        ]

    def _continuation(self, case: SuiteCase, ids: list[int]) -> Continuation:
        response, ended = self._engine.split_at_eos(ids)
        fork = case.tokens["fork"]
        right, wrong = case.tokens["chosen_ids"][fork], case.tokens["rejected_ids"][fork : fork + 1]
        whole, continuation = self._texts(case, response)
        branch: Branch = "right" if ids[0] == right else "wrong" if ids[:1] == wrong else "neither"
        return continuation_of(case, whole, continuation, branch, not ended)

    def _texts(self, case: SuiteCase, response: list[int]) -> tuple[str, str]:
        """Return the shared beginning with its continuation, and the continuation alone."""
        prompt, shared = case.tokens["prompt_ids"], case.tokens["chosen_ids"][: case.tokens["fork"]]
        if thoughts_part(whole := self._engine.text_of(prompt, shared + response)) is None:
            beginning, whole = self._plain(shared), self._plain(shared + response)
            return whole, whole.removeprefix(beginning) if whole.startswith(beginning) else self._plain(response)
        text = self._engine.text_of(prompt + shared, response)
        return whole, without_opening(text) if is_thinking(self._tokenizer, prompt, shared) else text

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([*ids], clean_up_tokenization_spaces=False))

    def _plain(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def tokenizer_of(arguments: SuiteArguments) -> tuple[PreTrainedTokenizerBase, int | None]:
    """Load the tokenizer of a model that is not loaded yet, and read how many positions the model has."""
    model, trusted = arguments.source.model, arguments.trust_remote_code
    base = adapter_base(model)
    tokenizer = load_tokenizer(arguments.tokenizer or model, base, trust_remote_code=trusted)
    return tokenizer, positions_of(load_config(model, base, trust_remote_code=trusted))


def load_scorer(
    arguments: SuiteArguments, tokenizer: PreTrainedTokenizerBase, cases: Sequence[SuiteCase]
) -> ModelScorer:
    """Load the model of `edit-trl suite` into this process."""
    model, _ = arguments.source.load()
    size, length = arguments.batch_size, arguments.max_greedy_tokens
    return ModelScorer(model, tokenizer, cases, batch_size=size, max_new_tokens=length)


def _example(case: SuiteCase) -> dict[str, Any]:
    return {**case.tokens, "row": case.row}
