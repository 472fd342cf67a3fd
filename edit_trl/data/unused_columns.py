"""Columns of a dataset that training does not use: they are named once, so that a misspelt one is noticed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from edit_trl.common.errors import show
from edit_trl.data.row import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, SPAN_COLUMNS, TEMPLATE_COLUMNS

# Names that other datasets give a beginning of the answer, such as Math-Step-DPO.
_PREFIXES = ("initial_reason_steps", "initial_steps", "shared_prefix")


def unknown_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns that are none of a dual CoT's."""
    return [column for column in columns if column not in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)]


def unused_columns(columns: Collection[str], key_step_method: str | None = None, *, conversational: bool = True) -> str:
    """Return a phrase that names the columns that are not used; "" if all are.

    Spans are named only where a method other than `spans` ignores those of somebody else: rows of `edit-trl generate`,
    which have a `source`, come with spans for any method.

    Args:
        columns: The columns of a dataset.
        key_step_method: How key steps are found; None where spans are not to be named.
        conversational: Whether the rows are messages, which a chat template renders.
    """
    missing = [column for column in OPTIONAL_COLUMNS if column not in columns]
    names = [f"{_shown(column)}{_meant(column, missing)}" for column in unknown_columns(columns)]
    if key_step_method not in (None, "spans") and "source" not in columns:
        names += [f"{column} (for `key_step_method: spans`)" for column in SPAN_COLUMNS if column in columns]
    if not conversational:
        names += [
            f"{column} (for messages, and these rows are plain)" for column in TEMPLATE_COLUMNS if column in columns
        ]
    return f"columns not used: {', '.join(names)}" if names else ""


def _shown(column: str) -> str:
    return column if re.fullmatch(r"[\w.-]{1,60}", column) else show(column)


def _meant(column: str, names: Collection[str]) -> str:
    """Return a hint at the column that another one misspells or stands for, if it seems so."""
    if column in _PREFIXES and "prefix" in names:
        return f""" (a beginning of the answer? --column_mapping '{{"{column}": "prefix"}}')"""
    plain = {name.removesuffix("s"): name for name in names}
    spelt = column.lower().replace("-", "_").replace(" ", "_").removesuffix("s")
    # Short names are too similar to one another: a "score" is no misspelt "source".
    close = [spelt] if spelt in plain else difflib.get_close_matches(spelt, [n for n in plain if len(n) > 8], 1, 0.85)
    return f" (did you mean `{plain[close[0]]}`?)" if close else ""
