"""The questions of an evaluation: rows -> checked problems -> token ids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.data.answers import AnswerType, check_answer, check_answer_type, infer_answer_type
from edit_trl.data.row import TEMPLATE_COLUMNS, template_options, template_values
from edit_trl.data.row_checks import check_rows, message_error, template_errors
from edit_trl.models.chat_templates import check_variables, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("prompt", "answer", "id", "task", "answer_type", "mistake", "source", *TEMPLATE_COLUMNS)
"""The columns of a row with a prompt of its own."""


@dataclass(frozen=True)
class Problem:
    """A question and its answer.

    Attributes:
        task: The task it belongs to.
        id: Its name within the task; stable, so that the responses of two models can be compared.
        prompt: Text, or messages.
        answer: The known answer.
        answer_type: The type of the answer.
        mistake: The kinds of mistake of the wrong chain, if the question is that of a dual CoT.
        source: Where the question comes from.
        tools: JSON schemas of the tools that the chat template names.
        chat_template_kwargs: Values of the chat template's variables, which win over those of the run.
    """

    task: str
    id: str
    prompt: str | list[dict[str, Any]]
    answer: str
    answer_type: AnswerType
    mistake: list[str] | None = None
    source: str | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The task and the id."""
        return self.task, self.id

    def content(self) -> dict[str, Any]:
        """Return all fields, without what the problem does not give its chat template."""
        return {k: value for k, value in vars(self).items() if k not in TEMPLATE_COLUMNS or value is not None}

    def template_options(self, chat_template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the options of `render`, given the values of the run."""
        values = template_values(chat_template_kwargs, self.chat_template_kwargs)
        return {"tools": self.tools, "chat_template_kwargs": values}


def problems_of(
    rows: Sequence[Mapping[str, Any]], *, answer_type: AnswerType | None = None, task: str = "all", where: str = ""
) -> list[Problem]:
    """Check rows and make problems of them.

    Args:
        rows: Rows with `prompt` and `answer`, and optionally the other `COLUMNS`.
        answer_type: Type of every answer; if None, the row's `answer_type`, or else the type inferred from the answer.
        task: The task of rows without one.
        where: The name of the rows in messages.

    Raises:
        InputError: Names every row that lacks a prompt or an answer, is plain or conversational unlike the
            first row, has an answer that is not of its type, or has the same id as another row.
    """
    where = f"{where}, " if where else ""
    if not rows:
        raise InputError(f"{where}there is nothing to evaluate: no rows")
    if answer_type is not None and answer_type not in get_args(AnswerType):
        raise InputError(f"unknown answer_type {answer_type!r}, not in {get_args(AnswerType)}")
    if answer_type is not None:
        check_answer_type(answer_type)
    check_rows(rows, where, COLUMNS)
    columns = {str(column) for row in rows for column in row}
    missing = [column for column in ("prompt", "answer") if column not in columns]
    if missing:
        raise InputError(f"{where}no column {' and '.join(missing)}; the columns are {', '.join(sorted(columns))}")
    conversational = isinstance(rows[0].get("prompt"), list)
    raise_problems(
        f"{where}row {number}: {issue}"
        for number, row in enumerate(rows, 1)
        for issue in (
            _prompt_issue(row.get("prompt"), conversational),
            _answer_issue(row, answer_type or row.get("answer_type")),
            *_column_issues(row),
        )
        if issue
    )
    problems = [
        Problem(
            task=row.get("task") or task,
            id=str(number) if row.get("id") in (None, "") else str(row["id"]),
            prompt=row["prompt"],
            answer=row["answer"],
            answer_type=answer_type or row.get("answer_type") or infer_answer_type(row["answer"]),
            mistake=row.get("mistake"),
            source=row.get("source"),
            **template_options(row),
        )
        for number, row in enumerate(rows, 1)
    ]
    check_ids(problems, where)
    return problems


def check_ids(problems: Sequence[Problem], where: str = "") -> None:
    """Raise an InputError if an id occurs more than once in its task, since two runs could not be compared."""
    counts = Counter(problem.key for problem in problems)
    raise_problems(
        f"{where}id {name!r} occurs {count} times in task {task!r}"
        for (task, name), count in counts.items()
        if count > 1
    )


def check_template_options(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any] | None
) -> None:
    """Check what the problems and the run give a chat template, before the model is loaded.

    Raises:
        InputError: The template has no such variable; or the prompts are plain, for which no template is used.
    """
    given = bool(chat_template_kwargs) or any(problem.tools or problem.chat_template_kwargs for problem in problems)
    if given and isinstance(problems[0].prompt, str):
        raise InputError("`chat_template_kwargs` and `tools` are for a chat template, and the prompts are plain text")
    check_variables(tokenizer, chat_template_kwargs)
    errors: list[str] = []
    for number, problem in enumerate(problems, 1):
        try:
            check_variables(tokenizer, problem.template_options(None)["chat_template_kwargs"])
        except InputError as error:
            errors.append(f"row {number} ({problem.task} {problem.id}): {error}")
    raise_problems(errors)


def values_to_send(
    problems: Sequence[Problem], chat_template_kwargs: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the values of the chat template's variables that an endpoint is sent with each problem.

    Raises:
        InputError: The problems have different values, tools, or messages with more than a role and a text. Names them.
    """
    values = [problem.template_options(chat_template_kwargs)["chat_template_kwargs"] for problem in problems]
    issues = []
    for number, problem in enumerate(problems, 1):
        row = f"row {number} ({problem.task} {problem.id})"
        messages = problem.prompt if isinstance(problem.prompt, list) else []
        if problem.tools or any(message["content"] is None or message.get("tool_calls") for message in messages):
            issues.append(f"{row}: tools and their calls are not sent to an endpoint; load the model on this machine")
        if values[number - 1] != values[0]:
            issues.append(
                f"{row}: `chat_template_kwargs` {values[number - 1]} differ from the {values[0]} of row 1, and an "
                "endpoint is sent the same with every question; evaluate them in two runs"
            )
    raise_problems(issues)
    return values[0]


def encode(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    positions: int | None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Format problems for a model, by the chat template of its tokenizer if the prompts are messages.

    Args:
        problems: The problems.
        tokenizer: The tokenizer of the model.
        max_new_tokens: Maximum number of tokens per response.
        positions: Maximum number of tokens of a prompt and its response together; None for no limit.
        chat_template_kwargs: Values of the chat template's variables.

    Returns:
        The token ids of each prompt.

    Raises:
        InputError: The prompts are messages and there is no chat template, or it refuses some; or a prompt is too
            long: beyond its positions a model fails or, worse, generates nonsense that would count as wrong.
    """
    messages = not isinstance(problems[0].prompt, str)
    if messages and tokenizer.chat_template is None:
        raise InputError(
            f"the prompts are conversational but the tokenizer ({tokenizer.name_or_path}) has no chat "
            "template; ask by plain prompts (`conversational: false`)"
        )
    check_template_options(problems, tokenizer, chat_template_kwargs)
    texts, refused = [], []
    for number, problem in enumerate(problems, 1):
        try:
            options = problem.template_options(chat_template_kwargs)
            prompt = problem.prompt
            if not isinstance(prompt, str):
                prompt = render(tokenizer, prompt, add_generation_prompt=True, **options)
            texts.append(prompt)
        except InputError as error:
            refused.append(f"row {number} ({problem.task} {problem.id}): {error}")
    raise_problems(refused)
    # A chat template has already added the special tokens.
    encoded = [tokenizer(text, add_special_tokens=not messages)["input_ids"] for text in texts]
    most = positions or math.inf
    raise_problems(
        f"row {number}: `prompt` has no tokens"
        if not ids
        else f"row {number}: a prompt of {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed the "
        f"model's {most} positions; shorten the prompt or lower max_new_tokens"
        for number, ids in enumerate(encoded, 1)
        if not ids or len(ids) + max_new_tokens > most
    )
    return encoded


def _prompt_issue(prompt: Any, conversational: bool) -> str | None:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        return "`prompt` is missing or empty"
    if not isinstance(prompt, str | list):
        return f"`prompt` must be a text or a list of messages, got {show(prompt)}"
    if isinstance(prompt, list) != conversational:
        return "`prompt` is of another kind than row 1's: all must be texts, or all lists of messages"
    errors = () if isinstance(prompt, str) else map(message_error, prompt)
    return next((f"`prompt`: {error}" for error in errors if error), None)


def _column_issues(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the errors of columns that go into the items of a run as they are."""
    for column, kinds in (("task", str), ("id", str | int), ("source", str)):
        if not isinstance(row.get(column), kinds | None):
            yield f"`{column}` must be a text, got {show(row[column])}"
    yield from (f"`{column}` {error}" for column, error in template_errors(row))
    mistake = row.get("mistake")
    if mistake is not None and not (isinstance(mistake, list) and all(isinstance(kind, str) for kind in mistake)):
        yield f"`mistake` must be a list of texts, got {show(mistake)}"


def _answer_issue(row: Mapping[str, Any], kind: Any) -> str | None:
    answer = row.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return f"`answer` must be a text that is not empty, got {show(answer)}"
    if kind is not None and kind not in get_args(AnswerType):
        return f"unknown `answer_type` {show(kind)}, not in {get_args(AnswerType)}"
    try:
        check_answer(None, answer, kind)
    except InputError as error:
        return str(error)
    return None
