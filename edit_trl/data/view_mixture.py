"""Mixtures of views: how many rows of each view a run trains on, by weight."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edit_trl.common.conversion import natural
from edit_trl.common.errors import InputError
from edit_trl.common.yaml_file import parse_yaml
from edit_trl.data.row import SPAN_COLUMNS, has_several_rejected, is_chosen_alone
from edit_trl.data.row_rewriting import Row, renamed

# The rows of `check` come in twos, one for each chain of a pair, so that half of the answers are yes.
_TOGETHER = {"check": 2}


def read_weights(value: Any) -> dict[str, Any]:
    """Read the weights of a mixture, a mapping or its YAML text; what they are is checked elsewhere.

    Raises:
        InputError: It is no mapping.
    """
    weights = natural(parse_yaml(value, "views") if isinstance(value, str) else value)
    if not isinstance(weights, dict):
        raise InputError(f"`views` must be weights by view, such as {{chosen: 1, check: 0.5}}, got {value!r}")
    return weights


def weight_problems(views: Mapping[Any, Any]) -> Iterator[str]:
    """Yield what is wrong with the weights of a mixture."""
    if not views:
        yield "`views` is empty; name views with their weights, such as {chosen: 1, check: 0.5}"
    for name, weight in views.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            yield f"`views`: the weight of {name!r} must be a number above 0, got {weight!r}"


def weighted_rows(rows: Sequence[Row], view: str, weight: float, seed: int) -> list[Row]:
    """Return some of the rows of a view, or all of them and some again.

    Args:
        rows: The rows of the view.
        view: Its name.
        weight: The number of rows, as a multiple of all: 0.5 draws half of them, 2 repeats each once.
        seed: Seed of the draw.

    Raises:
        InputError: No row is left.
    """
    size = _TOGETHER.get(view, 1)
    groups = len(rows) // size
    count = round(weight * groups)
    if not count:
        raise InputError(f"`views`: the weight {weight} leaves none of the {len(rows)} rows of {view!r}; raise it")
    whole, rest = divmod(count, groups)
    drawn = sorted(random.Random(f"{view} {seed}").sample(range(groups), rest))
    weighted = []
    for number, indexes in enumerate([*[range(groups)] * whole, drawn]):
        for index in indexes:
            group = rows[index * size : (index + 1) * size]
            weighted += [renamed(row, f"again {number}") if number else row for row in group]
    return weighted


def mixed(rows_by_view: Mapping[Any, Sequence[Row]]) -> list[Row]:
    """Return the rows of several views in one form, where ids are unique.

    Where one of the views has pairs, each row has a list of wrong chains, which is empty in rows of a chain alone.
    """
    rows = [
        renamed(row, view) if number else row
        for number, (view, members) in enumerate(rows_by_view.items())
        for row in members
    ]
    return rows if all(map(is_chosen_alone, rows)) else [_with_several(row) for row in rows]


def _with_several(row: Row) -> Row:
    if is_chosen_alone(row):
        return row | dict.fromkeys(SPAN_COLUMNS)
    if has_several_rejected(row):
        return row
    spans = {column: [row[column]] for column in SPAN_COLUMNS if row.get(column) is not None}
    return row | {"rejected": [row["rejected"]]} | spans
