"""Chains of several models -> scores for showing the key steps, by a judge (L3).

The paper (arXiv 2405.19737, section 5.1) lets a large model score the chains of several students. The prompt
is our own. The judge sees the chains of an item side by side, without names, in an order that follows from
the item's id and the seed; how much it favours a place can then be measured, and averages out.

A chain is quoted, line by line, so that nothing in it can pass for a part of the prompt; and what the judge
says counts only in the lines that it was asked to end with.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from edit_trl.common.checks import at_least, not_negative
from edit_trl.common.errors import InputError
from edit_trl.common.templates import read_template, template_problems
from edit_trl.models.chat.dispatch import Answer, Dispatcher, Failure
from edit_trl.models.chat.display import Watcher
from edit_trl.models.chat.protocol import ChatRequest, ChatResponse, Sampling

SCORES = range(1, 11)
"""What a judge may give."""

JudgeOutcome = Literal["judged", "unreadable", "cut off", "refused", "failed"]
_PLACEHOLDERS = frozenset({"question", "answer", "reference", "chains", "verdicts"})
_OPTIONAL = ("answer", "reference")
# As models write it: **Score 1:** 7, or Score 1: 7/10
_VERDICT = re.compile(
    r"[\s*_]*score[\s*_]+([0-9]{1,3})[\s*_]*:[\s*_]*([0-9]{1,3})(?:\s*/\s*10)?[\s*_.]*", re.IGNORECASE
)


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: Where a judgement is cut off; one that is cut off gives no score.
        seed: Of the order in which chains are shown.

    Raises:
        InputError: A value out of range.
    """

    temperature: float = 0.0
    max_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        problems = not_negative(temperature=self.temperature) + at_least(1, max_tokens=self.max_tokens)
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class ChainSet:
    """The chains of several models for one question.

    Attributes:
        task: What the question belongs to.
        id: Its name within the task.
        question: The question.
        answer: Its known answer.
        chains: A chain by each model's name.
        reference: A correct chain, where there is one.
    """

    task: str
    id: str
    question: str
    answer: str
    chains: Mapping[str, str]
    reference: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge made of the chains for a question.

    Attributes:
        chains: What it was shown.
        order: The models, as their chains were shown.
        outcome: `judged`, or why there are no scores.
        scores: One of `SCORES` for each model, by name; empty unless `judged`.
        text: What the judge wrote, or why it did not.
    """

    chains: ChainSet
    order: tuple[str, ...]
    outcome: JudgeOutcome
    scores: Mapping[str, int]
    text: str


@dataclass(frozen=True)
class JudgeTemplate:
    """The prompt of a judge, with {placeholders}."""

    text: str

    @classmethod
    def load(cls, file: str | Path | None = None) -> JudgeTemplate:
        """The package's own, or a file of one's own.

        Raises:
            InputError: It cannot be read, or its placeholders are not those there are.
        """
        own = resources.files(__package__) / "templates" / "judge_key_steps.txt"
        try:
            text = read_template(Path(file) if file else own)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the template {file}: {error}") from error
        problems = template_problems(text, _PLACEHOLDERS, _OPTIONAL)
        if problems:
            raise InputError([f"{file}: {problem}" for problem in problems])
        return cls(text)

    @property
    def version(self) -> str:
        """A hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def fill(self, chains: ChainSet, order: Sequence[str]) -> str:
        """The prompt for some chains in an order."""
        reference = chains.reference
        # One pass: braces in a question or a chain are text.
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
    """The order of the models: from the item and the seed, not from how the models were listed."""
    order = sorted(chains.chains)
    random.Random(f"{seed}/{chains.task}/{chains.id}").shuffle(order)
    return tuple(order)


def read_scores(text: str, count: int) -> list[int] | None:
    """The scores that a judgement ends with.

    Only its last lines count, one a chain and in their order; whatever stands before, such as a chain that is
    quoted once more, is not looked at.

    Args:
        text: What the judge wrote.
        count: How many chains it was shown.

    Returns:
        Their scores, or None where it does not end in the form asked for.
    """
    # Without what is empty, and the fence of a code block around the verdict.
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
    """Have chains judged.

    Args:
        sets: The chains, a question each.
        judge: Who judges.
        options: See `JudgeOptions`.
        template: The prompt; the package's own where None.
        watcher: Is told of progress.

    Returns:
        Judgements, in the order of the sets.

    Raises:
        RunStopped: See `Dispatcher.run`; what was answered is in the journal.
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
            sampling=Sampling(options.temperature, max_tokens=options.max_tokens),
        )
        for number, (chains, order) in enumerate(zip(sets, orders, strict=True))
    )
    made: dict[int, Judgement] = {}
    async for result in judge.run(requests):
        number = int(result.request.row_id)
        made[number] = _judgement(sets[number], orders[number], result)
        if watcher:
            watcher.step(made[number].outcome, isinstance(result, Answer) and result.fresh)
    return [made[number] for number in range(len(sets))]


def _judgement(chains: ChainSet, order: tuple[str, ...], result: Answer | Failure) -> Judgement:
    if isinstance(result, Failure):
        return Judgement(chains, order, "failed", {}, result.reason)
    response = result.response
    scores = read_scores(response.text, len(order)) if response.finish_reason == "stop" else None
    if scores is None:
        return Judgement(chains, order, _why_not(response), {}, response.text)
    return Judgement(chains, order, "judged", dict(zip(order, scores, strict=True)), response.text)


def _why_not(response: ChatResponse) -> JudgeOutcome:
    reasons: dict[str, JudgeOutcome] = {"length": "cut off", "refused": "refused"}
    return reasons.get(response.finish_reason, "unreadable")


def _quoted(text: str) -> str:
    """Each line behind "> ", whatever it is that ends a line."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
