"""Accuracy by generation: a model answers problems, and its final answers are checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from edit_trl.common.tables import aligned
from edit_trl.common.thoughts import answer_part
from edit_trl.data.answers import AnswerType, Verdict, check_answer
from edit_trl.data.row import TEMPLATE_COLUMNS
from edit_trl.evaluation.accuracy.problems import Problem, encode, problems_of
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import complete_items
from edit_trl.evaluation.runs.schema import EvaluateItem, Sample
from edit_trl.models.decoding import Decoding, Generated

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.models.decoding import Batching, Generator


@dataclass(frozen=True)
class Score:
    """Counts over some items, by strict answer extraction.

    Attributes:
        items: Number of items.
        correct: Items with the correct answer.
        wrong: Items with a wrong answer.
        unparsed: Items in whose response no answer was found.
        cut_off: Responses that reached `max_new_tokens`, or `max_thinking_tokens` within their thoughts; an item may
            have several responses.
        accuracy: `correct / items`; an unparsed answer is not correct.
        lenient_accuracy: The accuracy by lenient extraction.
    """

    items: int
    correct: int
    wrong: int
    unparsed: int
    cut_off: int
    accuracy: float
    lenient_accuracy: float

    @classmethod
    def from_items(cls, items: Sequence[EvaluateItem]) -> Score:
        counts = Counter(item["verdict"] for item in items)
        lenient = sum(item["lenient_verdict"] == "correct" for item in items)
        return cls(
            items=len(items),
            correct=counts["correct"],
            wrong=counts["wrong"],
            unparsed=counts["unparsed"],
            cut_off=sum(item["cut_off"] for item in items),
            accuracy=counts["correct"] / len(items),
            lenient_accuracy=lenient / len(items),
        )


@dataclass(frozen=True)
class AccuracyResult:
    """A model's accuracy on a set of problems.

    Attributes:
        overall: The score over all items.
        tasks: The score of each task, in order of appearance.
        items: The items, in the order of the dataset.
        seconds: Wall-clock time of the generation.
        generated_tokens: Number of generated tokens, EOS included.
    """

    overall: Score
    tasks: dict[str, Score]
    items: list[EvaluateItem]
    seconds: float
    generated_tokens: int

    @classmethod
    def from_items(cls, items: Sequence[EvaluateItem], seconds: float) -> AccuracyResult:
        names = dict.fromkeys(item["task"] for item in items)
        tasks = {name: Score.from_items([item for item in items if item["task"] == name]) for name in names}
        tokens = sum(sample["tokens"] for item in items for sample in item["samples"])
        return cls(Score.from_items(items), tasks, list(items), seconds, tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as values that JSON can hold."""
        return asdict(self)


def evaluate_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    batching: Batching = "padded",
    answer_type: AnswerType | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_thinking_tokens: int | None = None,
    progress: bool = True,
) -> AccuracyResult:
    """Let a model answer problems and check its final answers.

    Of the model's own generation settings only the EOS tokens are used. The mode and the settings of the
    model and the random state are restored afterwards.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer, whose chat template formats conversational prompts.
        dataset: Rows with `prompt` (text or messages) and `answer`; optionally `task`, `id`, `answer_type`,
            `mistake`, `source`, `tools` and `chat_template_kwargs`.
        batch_size: Number of responses per batch.
        max_new_tokens: Maximum number of tokens per response.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_p: Probability mass of nucleus sampling.
        samples: Number of responses per problem; the majority's answer counts (self-consistency, arXiv 2203.11171).
        seed: Seed of sampling.
        batching: See `edit_trl.models.generation`.
        answer_type: Type of every answer; if None, the row's `answer_type`, or else the type inferred from
            the known answer.
        chat_template_kwargs: Values of the chat template's variables, such as {"enable_thinking": False}. Those of
            a row win.
        max_thinking_tokens: Number of tokens at which a response that still thinks is cut off; None for no limit
            but `max_new_tokens`.
        progress: Whether to show a progress bar.

    Returns:
        The verdicts by item, by task and overall.

    Raises:
        InputError: Before anything is generated: an option is out of range, a row lacks a prompt or an
            answer, the dataset mixes plain and conversational rows, an answer is not of its type, the
            tokenizer has no chat template for conversational rows or it has no such variable, or a prompt is too
            long for the model.
    """
    from edit_trl.models.generation import ModelGenerator
    from edit_trl.models.loading import positions_of

    decoding = Decoding(max_new_tokens, temperature, top_p, samples, max_thinking_tokens)
    problems = problems_of(list(dataset), answer_type=answer_type)
    positions = positions_of(model.config)
    prompts = encode(
        problems,
        tokenizer,
        max_new_tokens=max_new_tokens,
        positions=positions,
        chat_template_kwargs=chat_template_kwargs,
    )
    generator = ModelGenerator(model, tokenizer, decoding, batch_size=batch_size, batching=batching, seed=seed)
    started = time.perf_counter()
    items = answer_problems(problems, prompts, generator, progress=progress)
    return AccuracyResult.from_items(items, time.perf_counter() - started)


def answer_problems(
    problems: Sequence[Problem],
    prompts: Sequence[Any],
    generator: Generator,
    *,
    folder: RunFolder | None = None,
    stop: Mapping[str, Sequence[str]] | None = None,
    progress: bool = True,
) -> list[EvaluateItem]:
    """Generate and check the answers to problems, except for those of the items that the folder already holds.

    Args:
        problems: The problems.
        prompts: Each problem in the form that the generator takes: token ids, or messages for an endpoint.
        generator: Generates the responses.
        folder: Stores each batch of items when it is finished.
        stop: The texts at which a response ends, by task, also where the generator went on.
        progress: Whether to show a progress bar.

    Returns:
        The items, in the order of the problems.
    """
    stop = stop or {}

    def make_items(batches: Sequence[list[int]]) -> Iterator[list[EvaluateItem]]:
        for batch, samples in generator.run(prompts, batches):
            yield [
                checked_item(problems[index], responses, stop.get(problems[index].task, ()))
                for index, responses in zip(batch, samples, strict=True)
            ]

    batches = generator.plan([len(prompt) for prompt in prompts])
    return complete_items(problems, batches, make_items, graded_again, "Generating", "problem", folder, progress)


def checked_item(problem: Problem, responses: Sequence[Generated], stop: Sequence[str] = ()) -> EvaluateItem:
    """Check the responses to a problem, which end at `stop`; the answer of the majority becomes the item's answer."""
    samples = [_sample(problem, _ended(response, stop)) for response in responses]
    item: dict[str, Any] = {name: value for name, value in vars(problem).items() if name not in TEMPLATE_COLUMNS}
    for prefix in ("", "lenient_"):
        votes = [(sample[f"{prefix}verdict"], sample[f"{prefix}value"]) for sample in samples]
        item[f"{prefix}verdict"], item[f"{prefix}value"] = _majority(votes)
    return item | {"cut_off": sum(sample["cut_off"] for sample in samples), "samples": samples}


def graded_again(problem: Problem, item: EvaluateItem) -> EvaluateItem:
    """Return an item with the verdicts of the present answer check on its stored responses."""
    responses = [Generated(sample["response"], sample["tokens"], sample["cut_off"]) for sample in item["samples"]]
    checked = checked_item(problem, responses)
    names = ("verdict", "value", "lenient_verdict", "lenient_value", "samples")
    return item | {name: checked[name] for name in names}


def _ended(response: Generated, stop: Sequence[str]) -> Generated:
    text, part = response.text, answer_part(response.text) if stop else None
    if part is None:  # thoughts may hold these texts
        return response
    start = part[0] + len(text[part[0] :]) - len(text[part[0] :].lstrip())
    places = [place for end in stop if (place := text.find(end, start)) >= 0]
    return replace(response, text=text[: min(places)], cut_off=False) if places else response


def _sample(problem: Problem, response: Generated) -> Sample:
    sample: dict[str, Any] = {"response": response.text}
    # The answer of a response that is not whole may be whole or not: it is none.
    text = None if response.cut_off or response.refused else response.text
    for prefix, lenient in (("", False), ("lenient_", True)):
        check = check_answer(text, problem.answer, problem.answer_type, lenient=lenient)
        sample[f"{prefix}verdict"], sample[f"{prefix}value"] = check.verdict, check.value
        sample[f"{prefix}span"] = list(check.span) if check.span else None
    return sample | {"cut_off": response.cut_off, "tokens": response.tokens}


def _majority(votes: Sequence[tuple[Verdict, str | None]]) -> tuple[Verdict, str | None]:
    """Return the most frequent answer, the earliest of equals; a sample without an answer has no vote."""
    counts = Counter(vote for vote in votes if vote[1] is not None)
    return counts.most_common(1)[0][0] if counts else ("unparsed", None)


def format_table(results: Mapping[str, AccuracyResult]) -> str:
    """Format a plain-text table of the accuracy by task and model, followed by the other counts."""
    every = list(results.values())
    tasks = dict.fromkeys(task for result in every for task in result.tasks)
    scores = {task: [result.tasks.get(task) for result in every] for task in tasks}
    by_task = [[task, *(f"{one.accuracy:.1%}" if one else "-" for one in scores[task])] for task in tasks]
    counts = [
        ["all", *(f"{result.overall.accuracy:.1%}" for result in every)],
        ["all, lenient", *(f"{result.overall.lenient_accuracy:.1%}" for result in every)],
        ["unparsed", *(f"{result.overall.unparsed} of {result.overall.items}" for result in every)],
        ["cut off", *(f"{r.overall.cut_off} of {sum(len(i['samples']) for i in r.items)}" for r in every)],
        ["seconds", *(f"{result.seconds:.0f}" for result in every)],
    ]
    return aligned([[["", *results]], by_task, counts])
