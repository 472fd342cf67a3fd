"""Accuracy by generation (L3): a student answers problems, its final answers are checked."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig

from edit_trl.answers import AnswerType, Verdict, check_answer
from edit_trl.dual_cot_row import is_conversational
from edit_trl.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Item:
    """One problem and what the model made of it.

    Attributes:
        id: The row's id, or its number, from 1.
        task: The row's task; "all" where it has none.
        prompt: The text the model was given.
        response: The text it wrote.
        answer: The known answer.
        value: The normalised answer found, or None.
        span: Its [start, end) characters in the response, or None.
        verdict: Correct, wrong or unparsed.
        cut_off: Whether the response ran into `max_new_tokens`.
    """

    id: str
    task: str
    prompt: str
    response: str
    answer: str
    value: str | None
    span: tuple[int, int] | None
    verdict: Verdict
    cut_off: bool


@dataclass(frozen=True)
class Score:
    """Counts over some items. `accuracy` is correct / items: an unparsed answer is not right."""

    items: int
    correct: int
    wrong: int
    unparsed: int
    cut_off: int
    accuracy: float

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Score":
        counts = Counter(item.verdict for item in items)
        return cls(
            items=len(items),
            correct=counts["correct"],
            wrong=counts["wrong"],
            unparsed=counts["unparsed"],
            cut_off=sum(item.cut_off for item in items),
            accuracy=counts["correct"] / len(items),
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
    items: list[Item]
    seconds: float
    generated_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def evaluate_accuracy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: "Dataset | Sequence[Mapping[str, Any]]",
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    answer_type: AnswerType | None = None,
    progress: bool = True,
) -> AccuracyResult:
    """Let a model answer problems greedily and check its final answers.

    Nothing of the model's own generation settings takes part, save its EOS tokens. Its mode, its settings
    and the random state are left as they were found.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer; conversational prompts go through its chat template.
        dataset: Rows with `prompt` (text or messages) and `answer`, and if they have them `task`, `id`
            and `answer_type`.
        batch_size: Prompts a batch.
        max_new_tokens: Where a response is cut off.
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
    _check_options(batch_size, max_new_tokens, answer_type)
    rows = list(dataset)
    types = _answer_types(rows, answer_type)
    prompts = _prompts(rows, tokenizer)
    # A template has written a conversation's special tokens already.
    special = not is_conversational(rows[0])
    encoded = [tokenizer(prompt, add_special_tokens=special)["input_ids"] for prompt in prompts]
    _check_lengths(encoded, max_new_tokens, model)
    started = time.perf_counter()
    responses, cut_off, tokens = _generate(model, tokenizer, encoded, batch_size, max_new_tokens, progress)
    seconds = time.perf_counter() - started
    items = []
    for number, (row, response) in enumerate(zip(rows, responses, strict=True)):
        check = check_answer(response, row["answer"], types[number])
        items.append(
            Item(
                id=row.get("id") or str(number + 1),
                task=row.get("task") or "all",
                prompt=prompts[number],
                response=response,
                answer=row["answer"],
                value=check.value,
                span=check.span,
                verdict=check.verdict,
                cut_off=cut_off[number],
            )
        )
    names = dict.fromkeys(item.task for item in items)
    tasks = {name: Score.of([item for item in items if item.task == name]) for name in names}
    return AccuracyResult(Score.of(items), tasks, items, seconds, tokens)


def format_table(results: Mapping[str, AccuracyResult]) -> str:
    """A plain-text table: accuracy by task and model, then unparsed, cut-off and seconds."""
    models = list(results)
    tasks = list(dict.fromkeys(task for result in results.values() for task in result.tasks))
    rows = [["", *models]]
    for task in tasks:
        scores = [result.tasks.get(task) for result in results.values()]
        rows.append([task, *(f"{score.accuracy:.1%}" if score else "-" for score in scores)])
    every = list(results.values())
    rows.append(["all", *(f"{result.overall.accuracy:.1%}" for result in every)])
    rows.append(["unparsed", *(f"{r.overall.unparsed} of {r.overall.items}" for r in every)])
    rows.append(["cut off", *(f"{r.overall.cut_off} of {r.overall.items}" for r in every)])
    rows.append(["seconds", *(f"{result.seconds:.0f}" for result in every)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1 : 1 + len(tasks)], rule, *lines[1 + len(tasks) :]])


def _check_options(batch_size: int, max_new_tokens: int, answer_type: AnswerType | None) -> None:
    problems = [
        f"{name} must be at least 1, got {value!r}"
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens))
        if value < 1
    ]
    if answer_type is not None and answer_type not in get_args(AnswerType):
        problems.append(f"unknown answer_type {answer_type!r}, not in {get_args(AnswerType)}")
    if problems:
        raise InputError(problems)


def _answer_types(
    rows: Sequence[Mapping[str, Any]], answer_type: AnswerType | None
) -> list[AnswerType | None]:
    """The type of each answer, once every row has been checked."""
    if not rows:
        raise InputError("there is nothing to evaluate: the dataset has no rows")
    columns = {column for row in rows for column in row}
    missing = [column for column in ("prompt", "answer") if column not in columns]
    if missing:
        raise InputError(f"no column {' and '.join(missing)}; the columns are {', '.join(sorted(columns))}")
    types = [answer_type or row.get("answer_type") for row in rows]
    conversational = isinstance(rows[0].get("prompt"), list)
    _raise_all(
        f"row {number}: {problem}"
        for number, (row, kind) in enumerate(zip(rows, types, strict=True), 1)
        for problem in (_prompt_problem(row.get("prompt"), conversational), _answer_problem(row, kind))
        if problem
    )
    return types


def _raise_all(problems: Iterable[str], most: int = 20) -> None:
    found = list(problems)
    if found:
        more = [f"and {len(found) - most} more"] if len(found) > most else []
        raise InputError(found[:most] + more)


def _prompt_problem(prompt: Any, conversational: bool) -> str | None:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        return "`prompt` is missing or empty"
    if not isinstance(prompt, str | list):
        return f"`prompt` must be a text or a list of messages, got {prompt!r}"
    if isinstance(prompt, list) != conversational:
        return "`prompt` is of another kind than row 1's: all must be texts, or all lists of messages"
    well_formed = isinstance(prompt, str) or all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in prompt
    )
    return None if well_formed else f'`prompt` holds a message without "role" and "content": {prompt!r:.200}'


def _answer_problem(row: Mapping[str, Any], kind: str | None) -> str | None:
    answer = row.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return f"`answer` must be a text that is not empty, got {answer!r}"
    if kind is not None and kind not in get_args(AnswerType):
        return f"unknown `answer_type` {kind!r}, not in {get_args(AnswerType)}"
    try:
        check_answer(None, answer, kind)
    except InputError as error:
        return str(error)
    return None


def _prompts(rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    if not is_conversational(rows[0]):
        return [row["prompt"] for row in rows]
    if tokenizer.chat_template is None:
        raise InputError(
            f"the rows are conversational but the tokenizer ({tokenizer.name_or_path}) has no chat template"
        )
    return [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in rows
    ]


def _check_lengths(encoded: list[list[int]], max_new_tokens: int, model: "PreTrainedModel") -> None:
    """Beyond its positions a model breaks off or, worse, writes nonsense that would count as wrong."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    _raise_all(
        f"row {number}: `prompt` has no tokens"
        if not ids
        else f"row {number}: a prompt of {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed the "
        f"model's {most} positions; shorten the prompt or lower max_new_tokens"
        for number, ids in enumerate(encoded, 1)
        if not ids or len(ids) + max_new_tokens > most
    )


def _generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    encoded: list[list[int]],
    batch_size: int,
    max_new_tokens: int,
    progress: bool,
) -> tuple[list[str], list[bool], int]:
    """Greedy responses in the order of the prompts, whether each was cut off, tokens generated."""
    # Batches of like lengths pad little; the longest first, so that memory runs out at once or never.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    eos = _eos_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    config = GenerationConfig(
        do_sample=False, use_cache=True, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad
    )
    responses, cut_off, tokens = [""] * len(encoded), [False] * len(encoded), 0
    bar = tqdm(total=len(encoded), desc="Generating", unit="problem", disable=not progress)
    with _undisturbed(model, config), torch.inference_mode(), bar:
        started = time.perf_counter()
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = _left_pad([encoded[index] for index in batch], pad, model.device)
            output = model.generate(**inputs, generation_config=config)
            generated = output[:, inputs["input_ids"].size(1) :].tolist()
            for index, ids in zip(batch, generated, strict=True):
                end = next((i for i, token in enumerate(ids) if token in eos), None)
                cut_off[index] = end is None
                tokens += len(ids) if end is None else end + 1
                responses[index] = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
            bar.update(len(batch))
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - started):.0f} tokens/s")
    return responses, cut_off, tokens


def _eos_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Every token that ends a response: the model's, and the one it was trained to end with."""
    known = model.generation_config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else list(known)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError("neither the model nor the tokenizer has an EOS token, so no response would end")
    return ids


def _left_pad(sequences: list[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(sequence)) + sequence for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@contextmanager
def _undisturbed(model: "PreTrainedModel", config: GenerationConfig):
    """Eval mode and these generation settings inside; all as before, and the random state, outside.

    `generate` fills what its config leaves open from the model's own (transformers 5.23), so that a
    repetition penalty or beams set there would take part: the model's is out of the way meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    # With an adapter, both the wrapper and the model inside may hold one.
    own = [(m, m.generation_config) for m, _ in modes if "generation_config" in vars(m)]
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    for module, _ in own:
        module.generation_config = config
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, generation_config in own:
            module.generation_config = generation_config
        for module, training in modes:
            module.training = training
