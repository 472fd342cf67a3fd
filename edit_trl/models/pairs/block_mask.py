"""FlexAttention along a tree: its block mask, and the attention function that uses it.

No mask of T x T is made. The tokens of a row are numbered in the order of a walk through the tree that goes down each
branch before the next, so that the descendants of a token, and the token, have the numbers `enter` to `leave`. A query
sees a key if it is among the key's descendants: two comparisons. Which blocks of 128 x 128 are empty or seen whole is
counted from the stretches.

Rows are padded to a multiple of 128 inside the attention, where no other layer and no loss sees it. So batches of
almost any two lengths use the same compiled kernel.

Read in torch 2.13: `BlockMask.from_kv_blocks`, `FlexAttention does not support backward on CPU`. Read in transformers
5.24: `flex_attention_forward`, which compiles `torch.nn.attention.flex_attention` once and, as soon as it sees a second
length, for all lengths.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from transformers.integrations.flex_attention import flex_attention_forward

from edit_trl.models.pairs.collation import Stretch

BLOCK = 128

Numbers = NDArray[np.int32]


def walk(stretches: Sequence[Stretch]) -> tuple[Numbers, Numbers, Numbers]:
    """Return where a walk through the tree enters and leaves each token, and the token's position in its chains.

    Args:
        stretches: The tree of T tokens.

    Returns:
        `enter`, `leave` and `positions`, each of shape (T,). Token k is q or an ancestor of q exactly if
        `enter[k] <= enter[q] < leave[k]`.
    """
    tokens = stretches[-1].stop
    sizes, enter, leave, positions = np.zeros((4, tokens), dtype=np.int32)
    for start, stop, ancestors in stretches:
        own = stop - start
        sizes[start:stop] += np.arange(own, 0, -1, dtype=np.int32)
        for first, last in ancestors:
            sizes[first:last] += own
        before = sum(last - first for first, last in ancestors)
        positions[start:stop] = np.arange(before, before + own)
    free: dict[int, int] = {}  # by token: the first number below it that no branch has
    for start, stop, ancestors in stretches:
        fork = ancestors[-1][1] - 1 if ancestors else -1
        first = free.setdefault(fork, int(enter[fork]) + 1 if ancestors else 0)
        # Each token's branches come before the stretch itself goes on, so that all of the stretch is left at once.
        leave[start:stop] = free[fork] = first + sizes[start]
        enter[start:stop] = leave[start:stop] - sizes[start:stop]
    return enter, leave, positions


def tree_block_mask(stretches: Sequence[Stretch], device: torch.device, window: int | None = None) -> BlockMask:
    """Return the mask of the tokens that each token attends to, for FlexAttention.

    Args:
        stretches: The tree of T tokens.
        device: The device of the mask.
        window: Number of tokens that a token sees, itself included; all where None.

    Returns:
        A mask of shape (1, 1, T', T'), where T' is T rounded up to a multiple of 128. The tokens from T on are a chain
        of their own.
    """
    tokens = stretches[-1].stop
    padded = -(-tokens // BLOCK) * BLOCK
    if padded > tokens:
        stretches = [*stretches, Stretch(tokens, padded, ())]
    enter, leave, positions = walk(stretches)
    partial, full = _blocks(stretches, positions, window)
    # One tensor: each more would be one more length for the compiled kernel.
    nearest = positions - (window or 0)  # the position of the nearest token that is too far away
    table = torch.from_numpy(np.stack([enter, leave, positions, nearest])).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (table[0, key] <= table[0, query]) & (table[0, query] < table[1, key])

    def sees_in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        descends = (table[0, key] <= table[0, query]) & (table[0, query] < table[1, key])
        return descends & (table[2, key] > table[3, query])

    return BlockMask.from_kv_blocks(
        *_ordered(partial, device),
        *_ordered(full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees if window is None else sees_in_window,
        seq_lengths=(padded, padded),
    )


def _blocks(stretches: Sequence[Stretch], positions: Numbers, window: int | None) -> tuple[NDArray, NDArray]:
    """Return which blocks are seen in part and which whole: bool, shape (T / 128, T / 128), queries by keys."""
    count = len(positions) // BLOCK
    seen = np.zeros((count, count), dtype=np.int32)  # pairs of a query and a key that it sees, without the window
    for start, stop, ancestors in stretches:
        queries, own = _per_block(start, stop)
        for first, last in ancestors:
            keys, ancestor = _per_block(first, last)
            seen[queries, keys] += np.outer(own, ancestor)
        # Of its own stretch a token sees what comes before it, and itself.
        seen[queries, queries] += np.tril(np.outer(own, own), -1) + np.diag(own * (own + 1) // 2)
    some, whole = seen > 0, seen == BLOCK * BLOCK
    if window is not None:
        # From the nearest and the farthest tokens of two blocks: a block may count as seen in part of which nothing is.
        lowest, highest = (pick(positions.reshape(count, BLOCK), axis=1) for pick in (np.min, np.max))
        some &= lowest[:, None] - highest < window
        whole &= highest[:, None] - lowest < window
    return some & ~whole, whole


def _per_block(start: int, stop: int) -> tuple[slice, NDArray]:
    """Return the blocks that an interval of the row touches, and how many of its tokens each has."""
    blocks = np.arange(start // BLOCK, -(-stop // BLOCK))
    tokens = np.minimum((blocks + 1) * BLOCK, stop) - np.maximum(blocks * BLOCK, start)
    return slice(blocks[0], blocks[-1] + 1), tokens


def _ordered(blocks: NDArray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row has, shape (1, 1, rows), and all columns, theirs first; int32."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    counts, columns = (torch.from_numpy(numbers.astype(np.int32)) for numbers in (blocks.sum(1), order))
    return counts[None, None].to(device), columns[None, None].to(device)


_tried: set[tuple] = set()
"""What has had its backward pass compiled; see `_try_backward`."""


def block_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run FlexAttention; along a tree, padded to the length of its mask.

    Query, key and value have the shape (B, heads, T, size of a head).

    Raises:
        RuntimeError: and others: FlexAttention cannot be compiled for this model on this machine, be it the backward
            pass. Nothing has been added to a gradient then.
    """
    tokens = query.size(2)
    missing = attention_mask.shape[-1] - tokens if isinstance(attention_mask, BlockMask) else 0
    if missing > 0:
        query, key, value = (pad(tensor, (0, 0, 0, missing)) for tensor in (query, key, value))
    if not torch.compiler.is_compiling() and (module.training or torch.is_grad_enabled()):
        _try_backward(module, query, key, value, attention_mask, kwargs)
    output, lse = flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output[:, :tokens], lse


def _try_backward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    kwargs: dict[str, Any],
) -> None:
    """Run a backward pass whose gradients nobody keeps, the first time that FlexAttention sees tensors of a kind.

    It is compiled when it first runs. If that failed in the training step's own backward pass, some weights would have
    their gradients already and others would not; here, the batch can still be run in the padded layout.
    """
    function = mask.mask_mod.__name__ if isinstance(mask, BlockMask) else None
    kind = (query.shape, key.shape, query.dtype, value.dtype, query.device, kwargs.get("softcap"), function)
    if kind in _tried:
        return
    # Hooks of its own: those of gradient checkpointing count the tensors that a layer saves.
    with torch.enable_grad(), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
        output = flex_attention_forward(module, query, key, value, mask, **kwargs)[0]
        torch.autograd.grad(output, (query, key, value), torch.zeros_like(output))
    _tried.add(kind)
