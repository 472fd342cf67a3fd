"""Questions with known answers, read from a file, a folder or the Hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple, get_args

from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.data.answers import AnswerType, check_answer, check_answer_type, infer_answer_type
from edit_trl.data.files import check_local_source, is_text_file, load_table, read_rows, split_path
from edit_trl.data.row import TEMPLATE_COLUMNS, rows_of, template_options
from edit_trl.data.row_checks import checked_mapping, template_errors

COLUMNS = (
    *("question", "answer", "id", "task", "task_description", "answer_type", "choices", "context"),
    *TEMPLATE_COLUMNS,
)


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        id: The question's id in the source, or the number of its row.
        question: The text, including the options.
        answer: The known answer.
        answer_type: The type of the answer; inferred from the answer where None.
        task: The task that the question belongs to.
        task_description: A sentence that describes the task.
        tools: JSON schemas of the tools that the chat template names.
        chat_template_kwargs: Values of the chat template's variables for this question.
    """

    id: str
    question: str
    answer: str
    answer_type: AnswerType | None = None
    task: str | None = None
    task_description: str | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def kind(self) -> AnswerType:
        """The type of the answer, inferred where the question does not name it."""
        return self.answer_type or infer_answer_type(self.answer)


def read_questions(
    source: str | Path,
    *,
    name: str | None = None,
    split: str | None = None,
    column_mapping: Mapping[str, str] | None = None,
    answer_after: str | None = None,
    answer_type: AnswerType | None = None,
    task: str | None = None,
    task_descriptions: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Question]:
    """Read questions and check every row.

    The columns are `question` and `answer`, and optionally `id`, `task`, `task_description`, `answer_type`,
    `tools`, `chat_template_kwargs`, `context` (a passage before the question) and `choices`. Choices (a list of
    texts, or `{"text": [...], "label": [...]}` as in ARC) follow the question as (A), (B), ... The answer is then the
    label of a choice, its text, its number from 0, or a list with one of these. Digits in a text count from 0
    where one of the answers is "0" (as in HellaSwag), and from 1 where one is the last choice's number from 1.

    Args:
        source: A .jsonl, .json, .csv or .parquet file, a folder saved by `datasets`, or a Hub id.
        name: Configuration of a Hub dataset.
        split: Split; "train" where there are several.
        column_mapping: Their column name -> ours.
        answer_after: Text whose last occurrence in `answer` precedes the answer, such as "####".
        answer_type: Type of every answer.
        task: Task of the questions that do not name one.
        task_descriptions: Descriptions by task, for questions without one.
        limit: Maximum number of rows.

    Raises:
        InputError: A source that cannot be read, or all rows that are not questions, each with its file, row
            and column.
    """
    if answer_type is not None:
        check_answer_type(answer_type)
    rows, columns = read_table(source, name, split)
    where = str(source)
    mapping = checked_mapping(column_mapping or {}, columns, where, COLUMNS)
    names = {column: mapping.get(column, column) for column in columns}
    missing = [column for column in ("question", "answer") if column not in names.values()]
    if missing:
        raise InputError(
            f"{where}: no column {' and no column '.join(map(repr, missing))}; it has {', '.join(names.values())}. "
            'Name what they are called with `column_mapping: {"theirs": "ours"}`'
        )
    rows = [{name: row[column] for column, name in names.items() if column in row} for row in rows]
    first = _first_number(rows)
    questions: list[Question] = []
    errors: list[str] = []
    for number, row in enumerate(rows[:limit], 1):
        row["answer_type"] = answer_type or row.get("answer_type")
        row["task"] = task if row.get("task") in (None, "") else row["task"]
        row_errors = list(_row_errors(row, answer_after, first))
        errors += [f"{where}, row {number}, column {column!r}: {error}" for column, error in row_errors]
        if not row_errors:
            questions.append(_question(row, f"row {number}", answer_after, first, task_descriptions or {}))
    counts = Counter(question.id for question in questions)
    errors += [f"{where}: id {name!r} occurs {count} times" for name, count in counts.items() if count > 1]
    raise_problems(errors, where)
    if not questions:
        raise InputError(f"{where}: there are no questions")
    return questions


def read_table(source: str | Path, name: str | None, split: str | None) -> tuple[Sequence[dict], list[str]]:
    """Return the unchecked rows and columns of a source; raise an InputError if it cannot be found or read."""
    path = Path(source).expanduser()
    check_local_source(str(source), split, dataset_config=name)
    if (of_split := split_path(path, split)) is not None:
        path, source, split = of_split, of_split, None
    rows = read_rows(path) if is_text_file(path) else list(rows_of(load_table(str(source), name, split)))
    columns = dict.fromkeys(column for row in rows for column in row)
    # Skip columns without a value: AGIEval's files have an empty `answer` beside `label`.
    return rows, [column for column in columns if any(row.get(column) is not None for row in rows)]


def _row_errors(row: Mapping[str, Any], after: str | None, first: int | None) -> Iterator[tuple[str, str]]:
    question, choices = row.get("question"), _choices(row.get("choices"))
    if not isinstance(question, str) or not question.strip():
        yield "question", f"must be a text, got {show(question)}"
    for column in ("id", "task", "task_description", "context"):
        if not isinstance(row.get(column), str | None):
            yield column, f"must be a text, got {show(row[column])}"
    yield from template_errors(row)
    kind = row["answer_type"]
    if kind is not None and kind not in get_args(AnswerType):
        yield "answer_type", f"must be one of {', '.join(get_args(AnswerType))}, got {show(kind)}"
        return
    if row.get("choices") is not None and not choices:
        yield "choices", f"must be a list of texts (at most 26) or {{text, label}}, got {show(row['choices'])}"
        return
    answer = row.get("answer")
    if choices:
        if _label(answer, choices, first) is None:
            labels = ", ".join(choice.label for choice in choices)
            hint = "; digits may count from 0 or from 1 here: write an integer, which counts from 0, or the letter"
            is_unclear = first is None and isinstance(answer, str) and answer.strip().isdecimal()
            yield "answer", f"must name one of the choices {labels}, got {show(answer)}{hint if is_unclear else ''}"
        return
    if not isinstance(answer, str) or not answer.strip():
        yield "answer", f"must be a text, got {show(answer)}; write numbers as text"
        return
    if after is not None and after not in answer:
        yield "answer", f"has no {after!r} (`answer_after`), got {show(answer)}"
        return
    try:
        check_answer("", _final_part(answer, after), kind)
    except InputError as error:
        yield "answer", str(error)


def _question(
    row: Mapping[str, Any], name: str, after: str | None, first: int | None, descriptions: Mapping[str, str]
) -> Question:
    choices, text = _choices(row.get("choices")), row["question"].strip()
    if row.get("context"):
        text = f"{row['context'].strip()}\n{text}"
    if choices:
        text += "\nOptions:\n" + "\n".join(f"({choice.label}) {choice.text}" for choice in choices)
    return Question(
        id=row.get("id") or name,
        question=text,
        answer=f"({_label(row['answer'], choices, first)})" if choices else _final_part(row["answer"], after),
        answer_type=row["answer_type"] or ("choice" if choices else None),
        task=row["task"],
        task_description=row.get("task_description") or descriptions.get(row["task"] or ""),
        **template_options(row),
    )


def _final_part(answer: str, after: str | None) -> str:
    return (answer.rpartition(after)[2] if after else answer).strip()


class _Choice(NamedTuple):
    """A choice: the letter with which it is asked, its own label in the data or None, its text."""

    label: str
    own: str | None
    text: str


def _choices(value: Any) -> list[_Choice]:
    """Return the choices of a question; labels that are digits become letters."""
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
    else:
        texts, labels = value, None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return []
    own = labels if isinstance(labels, list) and len(labels) == len(texts) else [None] * len(texts)
    has_letters = None not in own and not any(str(label).isdigit() for label in own)
    if not has_letters and len(texts) > len(ascii_uppercase):
        return []
    return [
        # Some datasets have "(A) text" as the text of a choice.
        _Choice(letter, None if label is None else str(label), text.strip().removeprefix(f"({letter})").strip())
        for letter, label, text in zip(map(str, own) if has_letters else ascii_uppercase, own, texts, strict=False)
    ]


def _label(answer: Any, choices: Sequence[_Choice], first: int | None) -> str | None:
    """Return the letter of the choice that an answer names.

    Its own label comes before its letter, and that before its text, which may look like the label of another choice.
    An integer counts from 0, digits in a text from `first`.
    """
    if isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer
    if isinstance(answer, int) and not isinstance(answer, bool):
        return choices[answer].label if 0 <= answer < len(choices) else None
    if not isinstance(answer, str):
        return None
    text = answer.strip()
    name = text.strip("().")
    for names in (
        [name == choice.own for choice in choices],
        [name == choice.label for choice in choices],
        [text == choice.text for choice in choices],
    ):
        if sum(names) == 1:
            return choices[names.index(True)].label
    numbers = [] if first is None else [str(first + place) for place in range(len(choices))]
    return choices[numbers.index(name)].label if name in numbers else None


def _first_number(rows: Iterable[Mapping[str, Any]]) -> int | None:
    """Return whether digits that name choices without labels count from 0 or from 1; None if no answer tells it."""
    for row in rows:
        answer, choices = row.get("answer"), _choices(row.get("choices"))
        if (
            choices
            and choices[0].own is None
            and isinstance(answer, str)
            and answer.strip() in ("0", str(len(choices)))
        ):
            return int(answer.strip() != "0")
    return None
