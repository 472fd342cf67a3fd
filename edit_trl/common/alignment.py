"""Minimum edit alignment of two sequences, and the alignment of the authors' code for replication."""

from collections import defaultdict
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def common_prefix(first: Sequence, second: Sequence) -> int:
    """Return the number of leading items that two sequences share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def edit_masks(first: Sequence[int], second: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Mark the items that one minimum alignment deletes, inserts or replaces.

    The common prefix and suffix are left out of the alignment: among alignments of the same cost, it could
    prefer one that marks a shared tail. Prefix and suffix must not overlap ("a a" in "a a a").

    Args:
        first: Token ids.
        second: Token ids.

    Returns:
        A mask as long as each sequence, True where the item is deleted (`first`), inserted (`second`) or
        replaced (both).
    """
    prefix = common_prefix(first, second)
    first_rest, second_rest = first[prefix:], second[prefix:]
    suffix = common_prefix(first_rest[::-1], second_rest[::-1])
    masks = [False] * len(first), [False] * len(second)
    edits = Levenshtein.editops(first_rest[: len(first_rest) - suffix], second_rest[: len(second_rest) - suffix])
    for edit in edits:
        if edit.tag != "insert":
            masks[0][prefix + edit.src_pos] = True
        if edit.tag != "delete":
            masks[1][prefix + edit.dest_pos] = True
    return masks


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
