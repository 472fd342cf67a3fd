"""Minimum edit alignment of two token sequences, and the alignment of the authors' code for replication."""

from collections import defaultdict
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that two sequences share at the start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def edit_masks(chosen: list[int], rejected: list[int]) -> tuple[list[bool], list[bool]]:
    """The tokens that differ in one minimum edit alignment (Levenshtein distance) of both chains.

    The common prefix and suffix are left out of the alignment: among alignments of equal cost, it might
    choose one that marks a shared end. They must not overlap ("a a" in "a a a").

    Returns:
        A mask of each chain, true for tokens that are deleted, inserted or replaced.
    """
    prefix = common_prefix(chosen, rejected)
    chosen_rest, rejected_rest = chosen[prefix:], rejected[prefix:]
    suffix = common_prefix(chosen_rest[::-1], rejected_rest[::-1])
    masks = [False] * len(chosen), [False] * len(rejected)
    edits = Levenshtein.editops(
        chosen_rest[: len(chosen_rest) - suffix], rejected_rest[: len(rejected_rest) - suffix]
    )
    for tag, chosen_at, rejected_at in edits.as_list():
        if tag != "insert":
            masks[0][prefix + chosen_at] = True
        if tag != "delete":
            masks[1][prefix + rejected_at] = True
    return masks


def reference_mask(own: list[int], other: list[int]) -> list[bool]:
    """The tokens of `own` that the authors' code deletes or replaces to turn it into `other`.

    `levenshtein_operations_tokens` in edit_dis_precal.py (github.com/C-W-D/CasCoD, commit 452b26d) removes
    the common prefix only and walks back from the end, preferring to delete, then to insert, then to keep
    or replace. It runs once per chain, so the two masks may come from different alignments, and a token at
    a shared end may be marked. The authors' padding is left out.

    Returns:
        A mask of `own`, true for tokens that are deleted or replaced.
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


def _distance_steps(own: list[int], other: list[int]) -> tuple[list[int], list[int]]:
    """The matrix D of edit distances, as the differences that walking back needs.

    Uses Myers' bit-parallel algorithm in the form of Hyyrö (2003): a column of D takes a handful of
    operations on one long integer, instead of len(own) steps in a table of Python lists.

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
