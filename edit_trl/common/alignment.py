"""Minimum edit alignment of two sequences, and the alignment of the authors' code for replication."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from rapidfuzz.distance import Levenshtein, Postfix, Prefix

Stretch = tuple[int, int]
"""[start, end) items of a sequence."""


def common_prefix(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the number of leading items that two sequences share."""
    return Prefix.similarity(first, second)


def edited_stretches(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[list[Stretch], list[Stretch]]:
    """Find the items that one minimum alignment deletes (`first`), inserts (`second`) or replaces (both).

    The common prefix and suffix are left out of the alignment: among alignments of the same cost, it could
    prefer one that marks a shared tail. Prefix and suffix must not overlap ("a a" in "a a a").

    Args:
        first: Token ids, or words.
        second: Token ids, or words.

    Returns:
        For each sequence, the stretches of such items; between two of them, at least one item is kept.
    """
    prefix = common_prefix(first, second)
    first_rest, second_rest = first[prefix:], second[prefix:]
    suffix = Postfix.similarity(first_rest, second_rest)
    edits = Levenshtein.editops(first_rest[: len(first_rest) - suffix], second_rest[: len(second_rest) - suffix])
    stretches: tuple[list[Stretch], list[Stretch]] = [], []
    i = j = prefix
    for kept in edits.as_matching_blocks():  # the last one is empty, at the end
        first_end, second_end = prefix + kept.a, prefix + kept.b
        if i < first_end:
            stretches[0].append((i, first_end))
        if j < second_end:
            stretches[1].append((j, second_end))
        i, j = first_end + kept.size, second_end + kept.size
    return stretches


def stretch_mask(stretches: Iterable[Stretch], length: int) -> list[bool]:
    """Return one bool per item of a sequence, True in the stretches."""
    mask = [False] * length
    for start, end in stretches:
        mask[start:end] = [True] * (end - start)
    return mask


def authors_mask(own: Sequence[int], other: Sequence[int]) -> list[bool]:
    """Mark the tokens of `own` that the authors' code deletes or replaces to turn it into `other`.

    `levenshtein_operations_tokens` in edit_dis_precal.py (github.com/C-W-D/CasCoD, commit 452b26d) strips
    the common prefix only and walks back from the end, preferring to delete, then to insert, then to keep or
    replace. It runs once for each side, so the two masks may come from different alignments, and a token of a
    shared tail may be marked. The authors' padding is left out.
    """
    prefix = common_prefix(own, other)
    rises, grows = _distance_steps(own[prefix:], other[prefix:])
    mask = [False] * len(own)
    row, column = len(own) - prefix, len(other) - prefix
    while row:
        if not column or rises[column - 1] >> (row - 1) & 1:
            row -= 1
            mask[prefix + row] = True
        elif grows[column - 1] >> (row - 1) & 1:
            column -= 1
        else:
            row, column = row - 1, column - 1
            mask[prefix + row] = own[prefix + row] != other[prefix + column]
    return mask


def _distance_steps(own: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]]:
    """Compute the matrix D of edit distances as the differences that walking back needs.

    Myers' bit-parallel algorithm in the form of Hyyrö (2003): a column of D takes a handful of operations on
    one long integer, where a table of Python lists would take len(own) steps.

    Returns:
        For each column j of `other`, integers with bit i set where D[i+1][j+1] = D[i][j+1] + 1 and
        where D[i+1][j+1] = D[i+1][j] + 1.
    """
    ones = (1 << len(own)) - 1
    equal: defaultdict[int, int] = defaultdict(int)
    for i, token in enumerate(own):
        equal[token] |= 1 << i
    up, down = ones, 0  # where D grows and falls along the column
    rises, grows = [], []
    for token in other:
        same = equal[token]
        diagonal = (((same & up) + up) ^ up) | same | down  # D[i+1][j+1] = D[i][j]
        right, left = down | (ones & ~(diagonal | up)), diagonal & up
        grows.append(right)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(diagonal | right)) & ones, right & diagonal & ones
        rises.append(up)
    return rises, grows
