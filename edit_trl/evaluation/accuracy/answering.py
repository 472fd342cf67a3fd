"""Accuracy by generation: a model answers problems, and its final answers are checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import raise_problems
from edit_trl.common.tables import aligned
from edit_trl.common.thoughts import answer_part
from edit_trl.data.answers import AnswerType, check_answer
from edit_trl.data.row import TEMPLATE_COLUMNS, refuse_splits
from edit_trl.evaluation.accuracy.problems import Problem, encode, problems_of
from edit_trl.evaluation.accuracy.votes import Votes, Weight, count_votes, votes_problems
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import complete_items
from edit_trl.evaluation.runs.schema import EvaluateItem, Sample
from edit_trl.evaluation.runs.scores import mean_scores
from edit_trl.models.decoding import Decoding, Generated

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.models.decoding import Batching, Generator


Weigh = Callable[[Sequence[Problem], Sequence[Sequence[int]], Sequence[Sequence[Generated]]], list[list[Weight]]]
"""Takes problems, their prompts as token ids and the responses to each; returns the weight of each response."""


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
        majority_accuracy: Where votes have weights, the accuracy of the majority of the same responses; else None.
        weight_auc: How likely a right response has more weight than a wrong one to the same question (area under the
            ROC curve, mean over the items that have both); None without weights or such items.
        no_weight: Items where no answer has any weight, so that the majority decided.
    """

    items: int
    correct: int
    wrong: int
    unparsed: int
    cut_off: int
    accuracy: float
    lenient_accuracy: float
    majority_accuracy: float | None = None
    weight_auc: float | None = None
    no_weight: int = 0

    @classmethod
    def from_items(cls, items: Sequence[EvaluateItem]) -> Score:
        counts = Counter(item["verdict"] for item in items)
        means = mean_scores(items, "evaluate")
        accuracy, lenient_accuracy = means["accuracy"], means["lenient_accuracy"]
        assert accuracy is not None  # every item has both
        assert lenient_accuracy is not None
        return cls(
            items=len(items),
            correct=counts["correct"],
            wrong=counts["wrong"],
            unparsed=counts["unparsed"],
            cut_off=sum(item["cut_off"] for item in items),
            accuracy=accuracy,
            lenient_accuracy=lenient_accuracy,
            majority_accuracy=means.get("majority_accuracy"),
            weight_auc=means.get("weight_auc"),
            no_weight=sum(item.get("no_weight", False) for item in items),
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
        weight_tokens: Number of tokens that were run to find the weights of the responses.
    """

    overall: Score
    tasks: dict[str, Score]
    items: list[EvaluateItem]
    seconds: float
    generated_tokens: int
    weight_tokens: int = 0

    @classmethod
    def from_items(cls, items: Sequence[EvaluateItem], seconds: float) -> AccuracyResult:
        names = dict.fromkeys(item["task"] for item in items)
        tasks = {name: Score.from_items([item for item in items if item["task"] == name]) for name in names}
        samples = [sample for item in items for sample in item["samples"]]
        tokens = sum(sample["tokens"] for sample in samples), sum(sample.get("weight_tokens", 0) for sample in samples)
        return cls(Score.from_items(items), tasks, list(items), seconds, *tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as values that JSON can hold."""
        return asdict(self)


def evaluate_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | Sequence[Mapping[str, Any]],
    *,
    batch_size: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    votes: Votes = "majority",
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
        batch_size: Number of responses per batch; see `edit_trl.models.decoding.pack` for None.
        max_new_tokens: Maximum number of tokens per response.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_p: Probability mass of nucleus sampling.
        samples: Number of responses per problem, which vote on the answer (self-consistency, arXiv 2203.11171).
        votes: The weight of a response in the vote: `majority`, `likelihood` or `checked`; see
            `edit_trl.evaluation.accuracy.votes`.
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
        FloatingPointError: The log-probabilities that give the weights are not numbers.
    """
    from edit_trl.models.generation import ModelGenerator
    from edit_trl.models.loading import positions_of

    raise_problems(votes_problems(votes, samples))
    decoding = Decoding(max_new_tokens, temperature, top_p, samples, max_thinking_tokens)
    refuse_splits(dataset)
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
    weigh = weigher_of(votes, model, tokenizer, problems, max_new_tokens, chat_template_kwargs)
    started = time.perf_counter()
    items = answer_problems(problems, prompts, generator, weigh=weigh, progress=progress)
    return AccuracyResult.from_items(items, time.perf_counter() - started)


def weigher_of(
    votes: Votes,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    max_new_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> Weigh | None:
    """Return what finds the weights of responses, None where each has one vote; see `Weigher` for the rest."""
    if votes == "majority":
        return None
    from edit_trl.evaluation.accuracy.weighing import Weigher

    return Weigher(
        votes,
        model,
        tokenizer,
        problems,
        max_new_tokens=max_new_tokens,
        chat_template_kwargs=chat_template_kwargs,
    )


def answer_problems(
    problems: Sequence[Problem],
    prompts: Sequence[Any],
    generator: Generator,
    *,
    folder: RunFolder | None = None,
    stop: Mapping[str, Sequence[str]] | None = None,
    weigh: Weigh | None = None,
    progress: bool = True,
) -> list[EvaluateItem]:
    """Generate and check the answers to problems, except for those of the items that the folder already holds.

    Args:
        problems: The problems.
        prompts: Each problem in the form that the generator takes: token ids, or messages for an endpoint.
        generator: Generates the responses.
        folder: Stores each batch of items when it is finished.
        stop: The texts at which a response ends, by task, also where the generator went on.
        weigh: Finds the weights of the responses to some problems; None for one vote each.
        progress: Whether to show a progress bar.

    Returns:
        The items, in the order of the problems.
    """
    stop = stop or {}

    def make_items(batches: Sequence[list[int]]) -> Iterator[list[EvaluateItem]]:
        for batch, samples in generator.run(prompts, batches):
            asked = [problems[index] for index in batch]
            ended = [
                [_ended(response, stop.get(problem.task, ())) for response in drawn]
                for problem, drawn in zip(asked, samples, strict=True)
            ]
            weights = weigh(asked, [prompts[index] for index in batch], ended) if weigh else [None] * len(batch)
            yield [
                checked_item(problem, responses, weights=their_weights)
                for problem, responses, their_weights in zip(asked, ended, weights, strict=True)
            ]

    batches = generator.plan([len(prompt) for prompt in prompts])
    return complete_items(problems, batches, make_items, graded_again, "answering", "problems", folder, progress)


def checked_item(
    problem: Problem,
    responses: Sequence[Generated],
    stop: Sequence[str] = (),
    weights: Sequence[Weight] | None = None,
) -> EvaluateItem:
    """Check the responses to a problem, which end at `stop`; they vote on its answer, each once or with its weight."""
    samples = [_sample(problem, _ended(response, stop)) for response in responses]
    # Any: mypy knows no TypedDict whose fields are filled in by a loop.
    item: Any = {name: value for name, value in vars(problem).items() if name not in TEMPLATE_COLUMNS}
    votes = [(sample["verdict"], sample["value"]) for sample in samples]
    lenient_votes = [(sample["lenient_verdict"], sample["lenient_value"]) for sample in samples]
    ones = [1.0] * len(samples)
    values = [weight.value for weight in weights] if weights else ones
    (item["verdict"], item["value"]), no_weight = count_votes(votes, values)
    (item["lenient_verdict"], item["lenient_value"]), _ = count_votes(lenient_votes, values)
    item |= {"cut_off": sum(sample["cut_off"] for sample in samples), "samples": samples}
    if weights:
        (item["majority_verdict"], item["majority_value"]), _ = count_votes(votes, ones)
        item["no_weight"] = no_weight
        for sample, weight in zip(samples, weights, strict=True):
            sample |= {"weight": weight.value, "weight_tokens": weight.tokens}
    return item


def graded_again(problem: Problem, item: EvaluateItem) -> EvaluateItem:
    """Return an item with the verdicts of the present answer check on its stored responses."""
    samples, weights = item["samples"], None
    names: tuple[str, ...] = ("verdict", "value", "lenient_verdict", "lenient_value", "samples")
    responses = [Generated(sample["response"], sample["tokens"], sample["cut_off"]) for sample in samples]
    if "majority_verdict" in item:
        weights = [Weight(sample.get("weight"), sample.get("weight_tokens", 0)) for sample in samples]
        names += ("majority_verdict", "majority_value", "no_weight")
    checked: Any = checked_item(problem, responses, weights=weights)
    graded: Any = {name: checked[name] for name in names}
    return item | graded


def _ended(response: Generated, stop: Sequence[str]) -> Generated:
    text, part = response.text, answer_part(response.text) if stop else None
    if part is None:  # thoughts may hold these texts
        return response
    start = part[0] + len(text[part[0] :]) - len(text[part[0] :].lstrip())
    places = [place for end in stop if (place := text.find(end, start)) >= 0]
    return replace(response, text=text[: min(places)], cut_off=False, ids=None) if places else response


def _sample(problem: Problem, response: Generated) -> Sample:
    sample: Any = {"response": response.text}
    # The answer of a response that is not whole may be whole or not: it is none.
    text = None if response.cut_off or response.refused else response.text
    for prefix, lenient in (("", False), ("lenient_", True)):
        check = check_answer(text, problem.answer, problem.answer_type, lenient=lenient)
        sample[f"{prefix}verdict"], sample[f"{prefix}value"] = check.verdict, check.value
        sample[f"{prefix}span"] = list(check.span) if check.span else None
    return sample | {"cut_off": response.cut_off, "tokens": response.tokens}


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
    if any(result.overall.majority_accuracy is not None for result in every):
        shares = {"all, majority": "majority_accuracy", "AUC of weights": "weight_auc"}
        values = {label: [getattr(result.overall, name) for result in every] for label, name in shares.items()}
        counts[1:1] = [
            [label, *("-" if value is None else f"{value:.1%}" for value in row)] for label, row in values.items()
        ]
        counts += [
            ["no weight", *(f"{result.overall.no_weight} of {result.overall.items}" for result in every)],
            ["tokens generated", *(f"{result.generated_tokens:,}" for result in every)],
            ["tokens for weights", *(f"{result.weight_tokens:,}" for result in every)],
        ]
    return aligned([[["", *results]], by_task, counts])
