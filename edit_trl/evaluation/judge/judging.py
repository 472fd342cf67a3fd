"""A judge, a large model, scores how well the chains of several models show the key steps.

The paper (arXiv 2405.19737, section 5.1) lets a large model score the chains of several students. The prompt
is our own. The judge sees the chains of an item side by side, without names, in a random order that depends
on the id of the item and the seed, so that a preference for a position averages out and can be measured.

Each line of a chain is quoted, so that no chain can imitate a part of the prompt. Only the last lines of a
judgement are read as scores.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from edit_trl.common.checks import at_least, not_negative, seed_range, share
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.options import Options
from edit_trl.common.templates import read_template, template_problems
from edit_trl.common.thoughts import split_thoughts
from edit_trl.models.chat.dispatch import Answer, Dispatcher, Failure
from edit_trl.models.chat.display import Watcher
from edit_trl.models.chat.protocol import ChatRequest, Sampling

SCORES = range(1, 11)
"""The scores that a judge may give."""

JudgeOutcome = Literal["judged", "unreadable", "cut off", "refused", "failed"]
_PLACEHOLDERS = frozenset({"question", "answer", "reference", "chains", "verdicts"})
_OPTIONAL = ("answer", "reference")
# Models write **Score 1:** 7, or Score 1: 7/10.
_VERDICT = re.compile(
    r"[\s*_]*score[\s*_]+([0-9]{1,3})[\s*_]*:[\s*_]*([0-9]{1,3})(?:\s*/\s*10)?[\s*_.]*", re.IGNORECASE
)


@dataclass(frozen=True)
class JudgeOptions(Options):
    """How a judge is asked.

    Attributes:
        temperature: Sampling temperature; 0 for greedy decoding. An endpoint is sent none if it is null.
        top_p: Probability mass of nucleus sampling. An endpoint is sent none if it is null.
        max_tokens: Maximum number of tokens per judgement; one that is cut off gives no score.
        seed: Seed of the order in which chains are shown.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float | None = 0.0
    top_p: float | None = 1.0
    max_tokens: int = 2048
    seed: int = 0

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from not_negative(temperature=self.temperature)
        yield from share(top_p=self.top_p)
        yield from at_least(1, max_tokens=self.max_tokens)
        yield from seed_range(seed=self.seed)


@dataclass(frozen=True)
class ChainSet:
    """The chains of several models for one question.

    Attributes:
        task: The task of the question.
        id: The name of the question within the task.
        question: The question.
        answer: The known answer.
        chains: The chain of each model, by the model's name.
        reference: A correct chain; None if there is none.
    """

    task: str
    id: str
    question: str
    answer: str
    chains: Mapping[str, str]
    reference: str | None = None


@dataclass(frozen=True)
class Judgement:
    """The judgement of the chains for a question.

    Attributes:
        chains: The chains that the judge was shown.
        order: The models, in the order in which their chains were shown.
        outcome: `judged`, or why there are no scores.
        scores: One of `SCORES` for each model, by name; empty unless `judged`.
        text: The text of the judge, or why there is none.
    """

    chains: ChainSet
    order: tuple[str, ...]
    outcome: JudgeOutcome
    scores: Mapping[str, int]
    text: str


@dataclass(frozen=True)
class JudgeTemplate:
    """The prompt template of a judge, with {placeholders}."""

    text: str

    @classmethod
    def load(cls, file: str | Path | None = None) -> JudgeTemplate:
        """Load the built-in template, or a file.

        Raises:
            InputError: The file cannot be read, or its placeholders are wrong.
        """
        own = resources.files(__package__) / "templates" / "judge_key_steps.txt"
        try:
            text = read_template(Path(file) if file else own)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the template {file}: {error}") from error
        raise_problems(f"{file}: {issue}" for issue in template_problems(text, _PLACEHOLDERS, _OPTIONAL))
        return cls(text)

    @property
    def version(self) -> str:
        """A hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def fill(self, chains: ChainSet, order: Sequence[str]) -> str:
        """Return the prompt for the chains of a question, shown in the given order."""
        reference = chains.reference
        # A single `format`, so that braces in a question or a chain remain text.
        return self.text.format(
            question=_quoted(chains.question),
            answer=_quoted(chains.answer),
            reference=f"A correct solution:\n{_quoted(reference)}\n\n" if reference is not None else "",
            chains="\n\n".join(
                f"Reasoning {place}:\n{_quoted(chains.chains[name])}" for place, name in enumerate(order, 1)
            ),
            verdicts="\n".join(f"Score {place}: N" for place in range(1, len(order) + 1)),
        )


def shown_order(chains: ChainSet, seed: int) -> tuple[str, ...]:
    """Return the order of the models, which depends only on the item and the seed."""
    order = sorted(chains.chains)
    random.Random(f"{seed}/{chains.task}/{chains.id}").shuffle(order)
    return tuple(order)


def read_scores(text: str, count: int) -> list[int] | None:
    """Read the scores at the end of a judgement.

    Only the last lines count, one per chain and in their order. Everything before them, such as another quote
    of a chain, is ignored.

    Args:
        text: The text of the judge.
        count: Number of chains that the judge was shown.

    Returns:
        The scores, or None if the text does not end in the requested form.
    """
    # Ignore empty lines and the fence of a code block around the scores.
    lines = [line for line in text.splitlines() if line.strip(" \t`")][-count:]
    verdicts = [match for line in lines if (match := _VERDICT.fullmatch(line))]
    scores = [int(verdict[2]) for verdict in verdicts]
    if [int(verdict[1]) for verdict in verdicts] != list(range(1, count + 1)):
        return None
    return scores if all(score in SCORES for score in scores) else None


async def judge_chains(
    sets: Sequence[ChainSet],
    judge: Dispatcher,
    *,
    options: JudgeOptions | None = None,
    template: JudgeTemplate | None = None,
    watcher: Watcher | None = None,
) -> list[Judgement]:
    """Let a judge score chains, with the built-in template by default; `watcher` is notified of the progress.

    Returns:
        The judgements, in the order of `sets`.

    Raises:
        RunStopped: See `Dispatcher.run`; all answers received are in the journal.
    """
    options, template = options or JudgeOptions(), template or JudgeTemplate.load()
    orders = [shown_order(chains, options.seed) for chains in sets]
    if watcher:
        watcher.stage("judge", len(sets))
    requests = (
        ChatRequest(
            stage="judge",
            row_id=str(number),
            template=template.version,
            messages=(("user", template.fill(chains, order)),),
            sampling=Sampling(options.temperature, options.top_p, options.max_tokens),
        )
        for number, (chains, order) in enumerate(zip(sets, orders, strict=True))
    )
    judgements: dict[int, Judgement] = {}
    async for result in judge.run(requests):
        number = int(result.request.row_id)
        judgements[number] = _judgement(sets[number], orders[number], result)
        if watcher:
            watcher.step(judgements[number].outcome, result.fresh)
    return [judgements[number] for number in range(len(sets))]


def _judgement(chains: ChainSet, order: tuple[str, ...], result: Answer | Failure) -> Judgement:
    if isinstance(result, Failure):
        return Judgement(chains, order, "failed", {}, result.reason)
    response = result.response
    unfinished: dict[str, JudgeOutcome] = {"length": "cut off", "refused": "refused"}
    if response.finish_reason in unfinished:
        return Judgement(chains, order, unfinished[response.finish_reason], {}, response.text)
    scores = read_scores(split_thoughts(response.text).answer or "", len(order))
    if scores is None:
        return Judgement(chains, order, "unreadable", {}, response.text)
    return Judgement(chains, order, "judged", dict(zip(order, scores, strict=True)), response.text)


def _quoted(text: str) -> str:
    """Return the text with "> " before each line, where `splitlines` finds all kinds of line endings."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
