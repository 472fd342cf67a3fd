"""The weights of responses in a vote, from the log-probabilities of the student that wrote them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from edit_trl.common.errors import InputError, raise_problems
from edit_trl.data.mistake_views import VERDICTS, check_prompt
from edit_trl.data.tokenization import tokenize_with_offsets
from edit_trl.evaluation.accuracy.votes import Votes, Weight
from edit_trl.models.generation import Engine, undisturbed
from edit_trl.models.pairs.collation import SIDES, DualCoTCollator
from edit_trl.models.pairs.scoring import make_pair_scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.evaluation.accuracy.problems import Problem
    from edit_trl.models.decoding import Generated
    from edit_trl.models.pairs.scoring import Layout, PairLogps

logger = logging.getLogger(__name__)

# The most tokens per forward, before those that responses to a question share are taken out. A longer one runs alone.
_TOKENS_PER_FORWARD = 4096


class Weigher:
    """Finds the weights of responses; the tree layout runs what the responses to a question share only once.

    The mode, the settings and the hooks of the model and the random state are restored after each call.

    Args:
        votes: `likelihood` or `checked`; see `edit_trl.evaluation.accuracy.votes`.
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        problems: The questions.
        max_new_tokens: Maximum number of tokens per response.
        chat_template_kwargs: Values of the chat template's variables; those of a problem win.

    Raises:
        InputError: For `checked`: the verdicts "Yes" and "No" begin with the same token, or the prompt that asks for
            one would not fit into the model's positions after a response of `max_new_tokens`. Names the rows.
    """

    def __init__(
        self,
        votes: Votes,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        *,
        max_new_tokens: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self._votes, self._model, self._tokenizer = votes, model, tokenizer
        self._template_values = chat_template_kwargs
        self._engine = Engine(model, tokenizer)
        self._layout: Layout = "auto"
        if votes == "checked":
            self._check(problems, max_new_tokens)

    def __call__(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[Generated]],
    ) -> list[list[Weight]]:
        """Return the weight of each response to each problem.

        A response that is cut off or refused can have no answer, hence it has no weight. One in which no answer is
        found is weighed all the same, since another version of the answer check may find one.

        Args:
            problems: Some of the problems.
            prompts: Token ids of their prompts.
            responses: The responses to each of them.

        Raises:
            FloatingPointError: A log-probability is not a number; names the question.
        """
        weights = [[Weight()] * len(drawn) for drawn in responses]
        places, examples = [], []
        for number, drawn in enumerate(responses):
            for sample, response in enumerate(drawn):
                if response.cut_off or response.refused:
                    continue
                example = self._example(problems[number], prompts[number], response)
                if example is not None:
                    places.append((number, sample))
                    examples.append(example)
        for (number, sample), weight in zip(places, self._weights(examples), strict=True):
            if weight.value is not None and math.isnan(weight.value):
                raise FloatingPointError(
                    f"{'/'.join(problems[number].key)}: the weight of a response is {weight.value}. Are the weights of "
                    "the model sound? In float16 large activations overflow: try `dtype: bfloat16` or `float32`"
                )
            weights[number][sample] = weight
        return weights

    def _example(self, problem: Problem, prompt: Sequence[int], response: Generated) -> dict[str, Any] | None:
        """Return what is scored, as an example of the collator; None for a response that cannot be weighed."""
        if self._votes == "checked":
            example = self._verdicts(problem, response.text)
        else:
            ids = response.ids
            if ids is None:  # its text was cut where another question begins
                ids = self._tokenizer(response.text, add_special_tokens=False)["input_ids"]
            example = _example(list(prompt), list(ids), list(ids))
        if not example["chosen_ids"]:
            return None
        if _length(example) > (self._engine.positions or math.inf):
            logger.warning(
                f"{'/'.join(problem.key)}: a response has no vote, since weighing it takes {_length(example)} tokens "
                f"and the model has {self._engine.positions} positions"
            )
            return None
        return example

    def _verdicts(self, problem: Problem, chain: str) -> dict[str, Any]:
        """Return the prompt that asks whether a chain is right, with the first token of each verdict.

        Both are tokenized as the rows of the view `check` are for training. What a chat template puts before any
        answer is part of the prompt.
        """
        prompt = check_prompt(problem.prompt, chain)
        is_plain = isinstance(prompt, str)
        row = {
            side: verdict if is_plain else [{"role": "assistant", "content": verdict}]
            for side, verdict in VERDICTS.items()
        }
        row |= {"prompt": prompt, **problem.template_options(self._template_values)}
        tokens, offsets = tokenize_with_offsets(row, self._tokenizer, key_step_method="edit")
        fork = tokens["fork"]
        firsts = [[tokens["chosen_ids"][fork]], [tokens["rejected_ids"][fork]]]
        shared = (offsets["chosen"] or [(0, 1)] * fork)[:fork]  # without offsets, any may be the verdict's
        if firsts[0] == firsts[1] or any(start < end for start, end in shared):
            verdicts = " and ".join(map(repr, VERDICTS.values()))
            raise InputError(
                f"`votes: checked` compares the first tokens of {verdicts}, and both begin with "
                f"{self._tokenizer.decode(tokens['chosen_ids'][: fork or 1])!r} by the tokenizer "
                f"({self._tokenizer.name_or_path}); use `votes: likelihood` or `majority`"
            )
        return _example(tokens["prompt_ids"] + tokens["chosen_ids"][:fork], *firsts)

    def _check(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        most, errors = self._engine.positions or math.inf, []
        for number, problem in enumerate(problems, 1):
            length = _length(self._verdicts(problem, ""))
            if length + max_new_tokens > most:
                errors.append(
                    f"row {number} ({problem.task} {problem.id}): to check a response takes {length} tokens and the "
                    f"response, which exceed the model's {most} positions with max_new_tokens={max_new_tokens}; "
                    "lower max_new_tokens"
                )
        raise_problems(errors)

    def _weights(self, examples: Sequence[dict[str, Any]]) -> Iterator[Weight]:
        """Yield the weight of each example, in order."""
        if not examples:
            return
        collator = DualCoTCollator(self._engine.pad_id)
        # The layouts are compared once; the scorer goes after each call, since continuous batching needs the model as
        # it was.
        check = _whole_text(max(examples, key=_length)) if self._layout == "auto" else None
        scorer = make_pair_scorer(self._model, collator, self._layout, check_example=check, with_best=True)
        try:
            for batch in _batches(examples):
                with undisturbed(self._model), torch.no_grad():
                    inputs = send_to_device(collator(batch), self._model.device)
                    logps = scorer(self._model, inputs, with_rejected=self._votes == "checked")
                yield from self._read(batch, logps)
        finally:
            self._layout = "padded" if scorer.tree is None else "tree"
            scorer.remove()

    def _read(self, batch: Sequence[dict[str, Any]], logps: PairLogps) -> list[Weight]:
        chosen = logps.chosen.double()
        if self._votes == "checked":
            assert logps.rejected is not None  # the other verdict
            values = (chosen - logps.rejected.double())[:, 0].sigmoid()
        else:
            counts = torch.tensor([len(example["chosen_ids"]) for example in batch], device=chosen.device)
            values = (chosen.sum(1) / counts).exp()
        # Each takes its part of the tokens that were run, by its length.
        ends = list(accumulate(map(_length, batch), initial=0))
        shares = [round(logps.tokens * end / ends[-1]) for end in ends]
        return [Weight(value, b - a) for value, (a, b) in zip(values.tolist(), pairwise(shares), strict=True)]


def _example(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """Return an example of the collator without key steps."""
    example: dict[str, Any] = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    for name in ("key_mask", "fork_mask"):
        example |= {f"chosen_{name}": [False] * len(chosen), f"rejected_{name}": [False] * len(rejected)}
    return example | {"fork": 0, "row": 0}


def _whole_text(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return an example that scores its prompt too: in half precision, single tokens vary too much for a check."""
    first, *rest = example["prompt_ids"]
    return _example([first], *(rest + example[f"{side}_ids"] for side in SIDES))


def _length(example: Mapping[str, Any]) -> int:
    return len(example["prompt_ids"]) + len(example["chosen_ids"])


def _batches(examples: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield successive examples that have at most `_TOKENS_PER_FORWARD` tokens together, or one that has more."""
    batch: list[dict[str, Any]] = []
    tokens = 0
    for example in examples:
        length = _length(example)
        if batch and tokens + length > _TOKENS_PER_FORWARD:
            yield batch
            batch, tokens = [], 0
        batch.append(example)
        tokens += length
    if batch:
        yield batch
