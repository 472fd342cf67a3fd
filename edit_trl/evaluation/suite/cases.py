"""Dual CoTs -> the cases of a suite: checked, with unique ids, tokenized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from edit_trl.common.errors import InputError, raise_problems, show
from edit_trl.common.spans import merged_spans
from edit_trl.data.answers import AnswerType, check_answer
from edit_trl.data.row import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    TEMPLATE_COLUMNS,
    chain_text,
    is_chosen_alone,
    is_conversational,
    pairs_of,
    with_prompt,
    with_template_values,
)
from edit_trl.data.row_checks import check_rows, find_row_errors
from edit_trl.data.tokenization import TokenizedDualCoT, tokenize_with_offsets
from edit_trl.key_steps import KeyStepMethod
from edit_trl.models.chat_templates import check_variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, "answer_type")


@dataclass(frozen=True)
class SuiteCase:
    """A correct chain and a wrong chain of the same question, as tokens of a model.

    Attributes:
        row: Number of the row in the data, from 1.
        task: The task it belongs to.
        id: Its name within the task; stable, so that two models can be compared.
        prompt: Text, or messages.
        chosen: Text of the correct chain.
        rejected: Text of the wrong chain.
        answer: The known answer.
        answer_type: The type of the answer; inferred from the answer if None.
        mistake: Kinds of mistake of the wrong chain.
        source: Where the pair comes from.
        given: The row's `prefix`, `tools` and `chat_template_kwargs`, as far as it has them.
        tokens: Token ids, key masks and fork.
        offsets: For each side, the [start, end) characters of each token in the chain. Tokens outside the
            text have an empty span at its beginning or end.
    """

    row: int
    task: str
    id: str
    prompt: str | list[dict[str, Any]]
    chosen: str
    rejected: str
    answer: str | None
    answer_type: AnswerType | None
    mistake: list[str] | None
    source: str | None
    given: dict[str, Any]
    tokens: TokenizedDualCoT
    offsets: dict[str, list[Span]]

    @property
    def key(self) -> tuple[str, str]:
        """The task and the id."""
        return self.task, self.id

    @property
    def name(self) -> str:
        """The name of the pair in messages."""
        return f"row {self.row} ({self.id})"

    def ids(self, part: Literal["prompt", "chosen", "rejected"]) -> list[int]:
        """Return the token ids of the prompt or of a chain."""
        tokens: Mapping[str, Any] = self.tokens
        return tokens[f"{part}_ids"]

    @property
    def prefix(self) -> list[int]:
        """Token ids of the prompt and of the shared beginning of both chains."""
        return self.tokens["prompt_ids"] + self.tokens["chosen_ids"][: self.tokens["fork"]]

    @property
    def beginning(self) -> str:
        """Text of the shared beginning of both chains."""
        fork, offsets = self.tokens["fork"], self.offsets["chosen"]
        start, end = offsets[fork]
        # A token of the template has no place of its own.
        return self.chosen[: start if start < end else max((stop for _, stop in offsets[:fork]), default=0)]

    @property
    def length(self) -> int:
        """Number of tokens in a forward, where shared tokens count once."""
        tokens = self.tokens
        return len(self.prefix) + len(tokens["chosen_ids"]) + len(tokens["rejected_ids"]) - 2 * tokens["fork"]

    def key_spans(self, side: str) -> list[list[int]]:
        """Return the key tokens of a side, as [start, end) characters of its chain."""
        text = self.chosen if side == "chosen" else self.rejected
        mask = self.tokens["chosen_key_mask" if side == "chosen" else "rejected_key_mask"]
        return [list(span) for span in merged_spans(mask, self.offsets[side], text)]

    def content(self) -> list[Any]:
        """Return everything that does not depend on the tokenizer or a model, for a hash of the data."""
        return [
            *(self.task, self.id, self.prompt, self.chosen, self.rejected),
            *(self.answer, self.answer_type, self.mistake, self.source),
            *([self.given] if self.given else ()),
        ]


def cases_of(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    key_step_method: KeyStepMethod = "words",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    positions: int | None = None,
    max_new_tokens: int = 0,
    limit: int | None = None,
    where: str = "dataset",
) -> tuple[list[SuiteCase], int]:
    """Check dual CoTs and make cases of them.

    A row with several wrong chains makes several cases, with the ids ID, ID/2, ID/3, ... A row without an id
    is named by its number, and a row without a task belongs to the task "all".

    Args:
        rows: Dual CoTs, plain or conversational.
        tokenizer: The tokenizer of the model; it must be a fast one, which gives the offsets of tokens.
        key_step_method: How key steps are found.
        chat_template_kwargs: Values of the chat template's variables; those of a row win.
        positions: Maximum number of tokens of the model; None for no limit.
        max_new_tokens: The most tokens to generate after the shared beginning; 0 to generate nothing.
        limit: The most cases to make, from the beginning of the rows.
        where: The name of the rows in messages.

    Returns:
        The cases, and the number of rows that were left out because they have only a correct chain.

    Raises:
        InputError: There are no rows; or names every row that is not a dual CoT, has the id of another row,
            has an invalid answer, or is too long for the model; or the tokenizer cannot process the rows.
    """
    rows = list(rows)
    if not rows:
        raise InputError(f"{where}: the suite is empty: there are no rows")
    check_rows(rows, f"{where}, ", _COLUMNS)
    rows = list(map(with_prompt, rows))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    raise_problems(find_row_errors(rows, columns, where), where)
    if chat_template_kwargs:
        if not is_conversational(rows[0]):
            raise InputError(f"{where}: `chat_template_kwargs` is for a chat template, and the prompts are plain text")
        check_variables(tokenizer, chat_template_kwargs)
        rows = [with_template_values(row, chat_template_kwargs) for row in rows]
    if not tokenizer.is_fast:
        raise InputError(
            f"a suite places tokens in the chains' texts, which the slow tokenizer "
            f"{tokenizer.name_or_path} cannot; use a fast one"
        )
    pairs = list(_pairs(rows))[:limit]
    left_out = sum(map(is_chosen_alone, rows))
    if not pairs:
        raise InputError(
            f"{where}: the suite is empty: all of its {left_out} rows are correct chains alone "
            "(`rejected: []`), and a case needs a wrong one"
        )
    keys = Counter((pair.get("task") or "all", name) for _, name, pair in pairs)
    raise_problems(
        f"{where}: two pairs of task {task!r} would have the id {name!r}; change the ids of the rows"
        for (task, name), count in keys.items()
        if count > 1
    )
    cases, errors = [], []
    for number, name, pair in pairs:
        try:
            case = _case(number, name, pair, tokenizer, key_step_method)
            if case.answer_type not in (None, *get_args(AnswerType)):
                raise InputError(f"`answer_type` must be one of {get_args(AnswerType)}, got {show(case.answer_type)}")
            if max_new_tokens and case.answer is not None:
                check_answer(None, case.answer, case.answer_type)
        except InputError as error:
            errors.append(f"{where}, row {number}: {error}")
            continue
        issues = _length_issues(case, positions, max_new_tokens)
        errors += [f"{where}, row {number}: {issue}" for issue in issues]
        cases.append(case)
    raise_problems(errors)
    return cases, left_out


def _pairs(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield the row number, the id and the content of each pair."""
    for number, row in enumerate(rows, 1):
        if is_chosen_alone(row):
            continue
        for place, pair in enumerate(pairs_of(row), 1):
            name = row.get("id") or str(number)
            yield number, name if place == 1 else f"{name}/{place}", pair


def _case(
    number: int, name: str, pair: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, method: KeyStepMethod
) -> SuiteCase:
    tokens, offsets = tokenize_with_offsets(pair, tokenizer, key_step_method=method)
    chosen, rejected = chain_text(pair["chosen"]), chain_text(pair["rejected"])
    return SuiteCase(
        row=number,
        task=pair.get("task") or "all",
        id=name,
        prompt=pair["prompt"],
        chosen=chosen,
        rejected=rejected,
        answer=pair.get("answer"),
        answer_type=pair.get("answer_type"),
        mistake=pair.get("mistake"),
        source=pair.get("source"),
        given={column: pair[column] for column in ("prefix", *TEMPLATE_COLUMNS) if pair.get(column)},
        tokens=tokens,
        offsets={
            "chosen": _placed(offsets["chosen"], len(chosen)),
            "rejected": _placed(offsets["rejected"], len(rejected)),
        },
    )


def _placed(offsets: Sequence[Span] | None, length: int) -> list[Span]:
    """Return offsets in which tokens after the text are at its end; a tokenizer gives them (0, 0)."""
    assert offsets is not None  # `cases_of` refuses slow tokenizers
    last = max((place for place, (start, end) in enumerate(offsets) if start < end), default=-1)
    return [(start, end) if place <= last else (length, length) for place, (start, end) in enumerate(offsets)]


def _length_issues(case: SuiteCase, positions: int | None, max_new_tokens: int) -> Iterator[str]:
    if positions is None:
        return
    tokens = case.tokens
    longest = len(tokens["prompt_ids"]) + max(len(tokens["chosen_ids"]), len(tokens["rejected_ids"]))
    if longest > positions:
        yield f"prompt and chain have {longest} tokens, more than the model's {positions} positions"
    elif max_new_tokens and len(case.prefix) + max_new_tokens > positions:
        yield (
            f"a beginning of {len(case.prefix)} tokens and max_new_tokens={max_new_tokens} exceed the "
            f"model's {positions} positions; lower max_new_tokens, or set `greedy: false`"
        )
