"""Accuracy by generation (L3): a student answers problems, its final answers are checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from edit_trl.common.tables import aligned
from edit_trl.data.answers import AnswerType, Verdict, check_answer
from edit_trl.evaluation.accuracy.problems import Problem, encode, problems_of
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.schema import EvaluateItem, Run, Sample, key_of
from edit_trl.evaluation.runs.scores import run_scores
from edit_trl.models.decoding import Decoding

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.models.decoding import Batching, Generated, Generator


@dataclass(frozen=True)
class Score:
    """Counts over some items. `accuracy` is correct / items: an unparsed answer is not right.

    Attributes:
        items: How many.
        correct: By strict extraction.
        wrong: Likewise.
        unparsed: Likewise: no answer was found.
        cut_off: Responses that ran into `max_new_tokens`; there may be several an item.
        accuracy: The share of right answers.
        lenient_accuracy: The same by lenient extraction.
    """

    items: int
    correct: int
    wrong: int
    unparsed: int
    cut_off: int
    accuracy: float
    lenient_accuracy: float

    @classmethod
    def of(cls, items: Sequence[EvaluateItem]) -> Score:
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
        overall: Over all items.
        tasks: By task, in order of appearance.
        items: In the order of the dataset.
        seconds: Wall-clock time of the generation.
        generated_tokens: Tokens generated, EOS included.
    """

    overall: Score
    tasks: dict[str, Score]
    items: list[EvaluateItem]
    seconds: float
    generated_tokens: int

    @classmethod
    def of(cls, items: Sequence[EvaluateItem], seconds: float) -> AccuracyResult:
        names = dict.fromkeys(item["task"] for item in items)
        tasks = {name: Score.of([item for item in items if item["task"] == name]) for name in names}
        tokens = sum(sample["tokens"] for item in items for sample in item["samples"])
        return cls(Score.of(items), tasks, list(items), seconds, tokens)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
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
    progress: bool = True,
) -> AccuracyResult:
    """Let a model answer problems and check its final answers.

    Nothing of the model's own generation settings takes part, save its EOS tokens. Its mode, its settings
    and the random state are left as they were found.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer; conversational prompts go through its chat template.
        dataset: Rows with `prompt` (text or messages) and `answer`, and if they have them `task`, `id`,
            `answer_type`, `mistake` and `source`.
        batch_size: Responses a batch.
        max_new_tokens: Where a response is cut off.
        temperature: 0 is greedy.
        top_p: Nucleus sampling.
        samples: Responses a problem, of which the majority's answer counts (self-consistency,
            arXiv 2203.11171).
        seed: Of sampling.
        batching: See `edit_trl.models.generation`.
        answer_type: The type of every answer; where None, the row's `answer_type`, or what the known
            answer looks like.
        progress: Show a progress bar.

    Returns:
        Verdicts by item, task and overall.

    Raises:
        InputError: An option out of range, rows without prompt or answer, plain and conversational rows in
            one dataset, answers that are not of their type, conversational rows and a tokenizer without a
            chat template, or prompts too long for the model; before anything is generated.
    """
    from edit_trl.models.generation import ModelGenerator

    decoding = Decoding(max_new_tokens, temperature, top_p, samples)
    problems = problems_of(list(dataset), answer_type=answer_type)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    _, prompts = encode(problems, tokenizer, max_new_tokens=max_new_tokens, positions=positions)
    generator = ModelGenerator(
        model, tokenizer, decoding, batch_size=batch_size, batching=batching, seed=seed
    )
    started = time.perf_counter()
    items = answer_problems(problems, prompts, generator, progress=progress)
    return AccuracyResult.of(items, time.perf_counter() - started)


def answer_problems(
    problems: Sequence[Problem],
    prompts: Sequence[Any],
    generator: Generator,
    *,
    folder: RunFolder | None = None,
    progress: bool = True,
) -> list[EvaluateItem]:
    """Have problems answered.

    Args:
        problems: What is asked.
        prompts: Each problem as the generator takes it: token ids, or messages for an endpoint.
        generator: Who answers.
        folder: Where items are kept as they come, and finished ones are taken from.
        progress: Show a progress bar.

    Returns:
        Items in the order of the problems.
    """
    done = dict(folder.done) if folder else {}
    keys = [(problem.task, problem.id) for problem in problems]
    batches = generator.plan([len(prompt) for prompt in prompts])
    # A batch is answered as a whole: in another batch, a response may differ in its last digits.
    left = [batch for batch in batches if any(keys[index] not in done for index in batch)]
    count = sum(map(len, left))
    bar = tqdm(
        total=len(problems),
        initial=len(problems) - count,
        desc="Generating",
        unit="problem",
        disable=not progress or not count,
    )
    started, tokens = time.perf_counter(), 0
    if folder:
        folder.start()
    with bar:
        for batch, samples in generator.run(prompts, left):
            items = [
                checked_item(problems[index], drawn) for index, drawn in zip(batch, samples, strict=True)
            ]
            done |= {key_of(item): item for item in items}
            if folder:
                folder.append(items)
            tokens += sum(sample.tokens for drawn in samples for sample in drawn)
            bar.update(len(batch))
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):.0f} tokens/s")
    return [done[key] for key in keys]


def finish_run(folder: RunFolder, problems: Sequence[Problem]) -> Run:
    """Write the scores of a run whose items are all there."""
    order = [(problem.task, problem.id) for problem in problems]
    return folder.finish(order, *run_scores([folder.done[key] for key in order], "evaluate"))


def checked_item(problem: Problem, drawn: Sequence[Generated]) -> EvaluateItem:
    """Check the samples of a problem; the majority's answer is the item's."""
    samples = [_sample(problem, one) for one in drawn]
    verdict, value = _majority([(sample["verdict"], sample["value"]) for sample in samples])
    lenient = _majority([(sample["lenient_verdict"], sample["lenient_value"]) for sample in samples])
    return {
        "task": problem.task,
        "id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "answer_type": problem.answer_type,
        "mistake": problem.mistake,
        "source": problem.source,
        "verdict": verdict,
        "value": value,
        "lenient_verdict": lenient[0],
        "lenient_value": lenient[1],
        "cut_off": sum(sample["cut_off"] for sample in samples),
        "samples": samples,
    }


def _sample(problem: Problem, drawn: Generated) -> Sample:
    strict, lenient = (
        check_answer(drawn.text, problem.answer, problem.answer_type, lenient=lenient)
        for lenient in (False, True)
    )
    return {
        "response": drawn.text,
        "verdict": strict.verdict,
        "value": strict.value,
        "span": list(strict.span) if strict.span else None,
        "lenient_verdict": lenient.verdict,
        "lenient_value": lenient.value,
        "lenient_span": list(lenient.span) if lenient.span else None,
        "cut_off": drawn.cut_off,
        "tokens": drawn.tokens,
    }


def _majority(votes: Sequence[tuple[Verdict, str | None]]) -> tuple[Verdict, str | None]:
    """The answer most samples give, the earliest of equals; who gives none has no vote."""
    counts = Counter(vote for vote in votes if vote[1] is not None)
    return counts.most_common(1)[0][0] if counts else ("unparsed", None)


def format_table(results: Mapping[str, AccuracyResult]) -> str:
    """A plain-text table: accuracy by task and model, then lenient, unparsed, cut-off and seconds."""
    models = list(results)
    tasks = list(dict.fromkeys(task for result in results.values() for task in result.tasks))
    rows = [["", *models]]
    for task in tasks:
        scores = [result.tasks.get(task) for result in results.values()]
        rows.append([task, *(f"{score.accuracy:.1%}" if score else "-" for score in scores)])
    every = list(results.values())
    rows.append(["all", *(f"{result.overall.accuracy:.1%}" for result in every)])
    rows.append(["all, lenient", *(f"{result.overall.lenient_accuracy:.1%}" for result in every)])
    rows.append(["unparsed", *(f"{r.overall.unparsed} of {r.overall.items}" for r in every)])
    rows.append(
        ["cut off", *(f"{r.overall.cut_off} of {sum(len(i['samples']) for i in r.items)}" for r in every)]
    )
    rows.append(["seconds", *(f"{result.seconds:.0f}" for result in every)])
    return aligned([rows[:1], rows[1 : 1 + len(tasks)], rows[1 + len(tasks) :]])
