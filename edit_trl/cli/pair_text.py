"""Dual CoTs as plain text, for `edit-trl inspect` in a pipe or a terminal without colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.terminal import visible, visible_line
from edit_trl.data.chains import turn_text

if TYPE_CHECKING:
    from edit_trl.data.pair_statistics import Pair

MOST_GROUPS = 30

HEADINGS = ("pairs", "key", "shared prefix", "correct", "wrong")


def bracketed(text: str, spans: Sequence[Sequence[int]]) -> str:
    """Return the text with its spans in [brackets]."""
    parts, place = [], 0
    for start, end in spans:
        parts += [text[place:start], "[", text[start:end], "]"]
        place = end
    return "".join([*parts, text[place:]])


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """Return a prompt as text; several messages are written with their roles."""
    if isinstance(prompt, str):
        return prompt.strip()
    if len(prompt) == 1:
        return turn_text(prompt[0]).strip()
    return "\n".join(f"{turn['role']}: {turn_text(turn).strip()}" for turn in prompt)


def pair_tags(pair: Pair) -> str:
    """Return the task, source, mistakes and shares of a pair, in one line."""
    parts = [pair.task, pair.source, f"mistake: {', '.join(pair.mistake)}" if pair.mistake else None]
    if pair.key_fraction is not None:
        parts.append(f"key {pair.key_fraction:.0%}, shared prefix {pair.shared_prefix:.0%}")
    return "; ".join(part for part in parts if part)


def pair_lines(pair: Pair, place: str) -> Iterator[str]:
    """Yield a pair with its key steps in [brackets]."""
    yield f"{place}  {visible(pair.id or f'row {pair.row}')}  ({visible(pair_tags(pair))})"
    fields = {"prompt": prompt_text(pair.prompt), "chosen": bracketed(pair.chosen, pair.chosen_spans)}
    if pair.rejected is not None:
        fields["rejected"] = bracketed(pair.rejected, pair.rejected_spans)
    fields["answer"] = pair.answer or ""
    for name, text in fields.items():
        if text:
            indented = visible(text).replace("\n", "\n" + " " * 12)
            yield f"  {name:<8}  {indented}"


def overview(source: str, pairs: Sequence[Pair], unit: str, method: str) -> list[str]:
    """Return statistics of all pairs, in a few lines."""
    from edit_trl.data.pair_statistics import pair_statistics

    statistics = pair_statistics(pairs)
    alone = len(pairs) - statistics.pairs
    lines = [f"{source}: {statistics.rows} rows, {statistics.pairs} pairs"]
    lines[0] += f", {alone} correct chains alone" if alone else ""
    if statistics.pairs:
        lines.append(
            f"key steps by {method!r}: {statistics.key_fraction:.1%} of a pair; "
            f"{statistics.shared_prefix:.1%} of the correct chain comes before the fork"
        )
        lengths = f"{statistics.chosen_length:.0f} {unit} correct, {statistics.rejected_length:.0f} wrong"
    else:
        lengths = f"{statistics.chosen_length:.0f} {unit}"
    lines.append(f"mean chain: {lengths}; median {statistics.median_length:.0f}, longest {statistics.longest}")
    return lines


def group_tables(pairs: Sequence[Pair]) -> dict[str, list[list[str]]]:
    """Return a table per group (task, mistake, source) that has several values: the value, then `HEADINGS`."""
    from edit_trl.data.pair_statistics import GROUPS, grouped_pairs, pair_statistics

    def cells(name: str, members: list[Pair]) -> list[str]:
        statistics = pair_statistics(members)
        shares = (statistics.key_fraction, statistics.shared_prefix)
        lengths = (statistics.chosen_length, statistics.rejected_length)
        return [
            visible_line(name),
            str(len(members)),
            *("-" if share is None else f"{share:.0%}" for share in shares),
            *("-" if length is None else f"{length:.0f}" for length in lengths),
        ]

    tables = {}
    for group in GROUPS:
        groups = grouped_pairs(pairs, group)
        if len(groups) > 1:
            rows = [cells(name, members) for name, members in groups.items()]
            tables[group] = rows[:MOST_GROUPS]
            if len(rows) > MOST_GROUPS:
                tables[group].append([f"... and {len(rows) - MOST_GROUPS} more", *[""] * len(HEADINGS)])
    return tables
