"""The collator of dual CoTs: examples to a batch, in the tree layout or the padded one.

The collator lays out the chains of a batch for one forward pass. It also returns which predictions are scored
(`scored_positions`, `scored_labels`) and where among them each completion token is (`chosen_index`,
`rejected_index`). Loss and metrics see only the scored log-probabilities, so neither depends on the layout.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

BatchLayoutName = Literal["tree", "padded"]

SIDES = ("chosen", "rejected")
PAIR_COLUMNS = ("fork", "row", "reference_chosen_score", "reference_rejected_score")
EXAMPLE_COLUMNS = (
    "prompt_ids",
    *(f"{side}_{name}" for side in SIDES for name in ("ids", "key_mask", "fork_mask")),
    *PAIR_COLUMNS,
)
"""The columns of a prepared dataset that a batch is made of."""


class Stretch(NamedTuple):
    """A stretch of the row that continues a path of the tree.

    Attributes:
        start: Index of its first token in the row.
        stop: Index one past its last token.
        ancestors: The [start, stop) parts of the row that lead from the root to the stretch, in order. A
            token attends to all of them, and to its own stretch up to itself.
    """

    start: int
    stop: int
    ancestors: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BatchLayout:
    """The layout of a batch, known on the host without reading anything from the device.

    Attributes:
        examples: The examples, kept so that the batch can be collated again.
        chosen_rows: Number of rows of `input_ids` that hold the correct chains; these rows come first.
        chosen_width: Number of columns of these rows that the correct chains take.
        chosen_scored: Number of scored predictions that belong to the correct chains; they come first.
        tokens: Tokens in the input without padding, for the correct chains alone and for all chains.
        stretches: The tree, correct chains first; None in the padded layout.
        chosen_stretches: Number of stretches that hold the correct chains.
    """

    examples: Sequence[dict[str, Any]]
    chosen_rows: int
    chosen_width: int
    chosen_scored: int
    tokens: tuple[int, int]
    stretches: tuple[Stretch, ...] | None = None
    chosen_stretches: int = 0


@dataclass
class DualCoTCollator:
    """Lays out a batch of dual CoTs for one forward pass.

    Tree layout: one row that holds every shared token once. All chains of the batch are put into one prefix
    tree, so pairs share a system prompt, and pairs with the same prompt share the prompt. The row holds the
    paths of the correct chains, one after another, then the tokens that the wrong chains add. Position ids
    continue from the fork.

    Padded layout: the correct chains, then the wrong ones, one chain per row, padded on the right. The
    tokenizer's `padding_side` does not matter; it is meant for generation.

    An example has `prompt_ids`, and for each side (`chosen`, `rejected`) `*_ids`, `*_key_mask` and `*_fork_mask`;
    `fork`, the index of the first completion token in which the chains differ; `row`, the row's number in the source;
    and, where a reference is precomputed, `reference_chosen_score` and `reference_rejected_score`.

    Args:
        pad_token_id: Fills the rows of the padded layout; never attended to and never a label.
        pad_to_multiple_of: The length of these rows is rounded up to a multiple of this.
        layout: Which layout; may be changed between batches.

    Example:
        ```python
        >>> from edit_trl import DualCoTCollator
        >>> collator = DualCoTCollator(pad_token_id=0)
        >>> pair = {
        ...     "prompt_ids": [5, 6],
        ...     "chosen_ids": [7, 8, 9], "chosen_key_mask": [False, True, False],
        ...     "chosen_fork_mask": [False, True, False],
        ...     "rejected_ids": [7, 4, 3, 9], "rejected_key_mask": [False, True, True, False],
        ...     "rejected_fork_mask": [False, True, True, False],
        ...     "fork": 1, "row": 1,
        ... }
        >>> batch = collator([pair])
        >>> batch["input_ids"]  # 4 3 9 continue 5 6 7
        tensor([[5, 6, 7, 8, 9, 4, 3, 9]])
        >>> batch["position_ids"]
        tensor([[0, 1, 2, 3, 4, 3, 4, 5]])
        >>> batch["layout"].stretches
        (Stretch(start=0, stop=5, ancestors=()), Stretch(start=5, stop=8, ancestors=((0, 3),)))
        >>> batch["scored_positions"], batch["scored_labels"]  # token 7, at 2, predicts both 8 and 4
        (tensor([1, 2, 3, 2, 5, 6]), tensor([7, 8, 9, 4, 3, 9]))
        >>> batch["rejected_index"]
        tensor([[0, 3, 4, 5]])
        >>> batch["rejected_key_mask"]
        tensor([[False,  True,  True, False]])
        >>> DualCoTCollator(pad_token_id=0, layout="padded")([pair])["input_ids"]
        tensor([[5, 6, 7, 8, 9, 0],
                [5, 6, 7, 4, 3, 9]])

        ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    layout: BatchLayoutName = "tree"

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate B examples.

        Returns:
            `fork`, `row` and the reference scores, shape (B,). `input_ids`, with `position_ids` of shape (1, T) or
            `attention_mask` of shape (2B, T). `scored_positions`, positions in the flattened input, and
            `scored_labels`, the tokens predicted there, of shape (S,). For each side `*_index` into them, `*_mask`,
            `*_key_mask` and `*_fork_mask` of shape (B, longest completion), 0 at padding. `layout`, a `BatchLayout`.
        """
        batch: dict[str, Any] = {
            name: torch.tensor([example[name] for example in examples]) for name in PAIR_COLUMNS if name in examples[0]
        }
        lay_out = self._tree if self.layout == "tree" else self._padded
        tensors, indices = lay_out(examples)
        batch |= tensors
        for side in SIDES:
            batch |= _side(examples, side, indices[side])
        return batch

    def _padded(self, examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list]]:
        sequences = [ex["prompt_ids"] + ex[f"{side}_ids"] for side in SIDES for ex in examples]
        width = max(map(len, sequences))
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        positions: list[int] = []
        labels: list[int] = []
        indices: dict[str, list[range]] = {side: [] for side in SIDES}
        for row, (side, example) in enumerate((side, ex) for side in SIDES for ex in examples):
            ids = example[f"{side}_ids"]
            # A token is predicted one position before it.
            start = row * width + len(example["prompt_ids"]) - 1
            indices[side].append(range(len(labels), len(labels) + len(ids)))
            positions += range(start, start + len(ids))
            labels += ids
        chosen_scored = sum(map(len, indices["chosen"]))
        tokens = sum(map(len, sequences[: len(examples)])), sum(map(len, sequences))
        layout = BatchLayout(examples, len(examples), width, chosen_scored, tokens)
        tensors = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "scored_positions": torch.tensor(positions),
            "scored_labels": torch.tensor(labels),
            "layout": layout,
        }
        return tensors, indices

    @staticmethod
    def _tree(examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list]]:
        tree = _PrefixTree()
        paths, sizes, stretch_counts = {}, [], []
        for side in SIDES:
            paths[side] = [tree.insert(ex["prompt_ids"], ex[f"{side}_ids"]) for ex in examples]
            sizes.append(len(tree.tokens))
            stretch_counts.append(len(tree.stretches))
        # One prediction per token, however many chains share it; those of the correct chains come first.
        scored = sorted({node for side in SIDES for path in paths[side] for node in path})
        entry = {node: number for number, node in enumerate(scored)}
        layout = BatchLayout(
            examples,
            chosen_rows=1,
            chosen_width=sizes[0],
            chosen_scored=sum(node < sizes[0] for node in scored),
            tokens=(sizes[0], sizes[1]),
            stretches=tuple(tree.stretches),
            chosen_stretches=stretch_counts[0],
        )
        tensors = {
            "input_ids": torch.tensor([tree.tokens]),
            "position_ids": torch.tensor([tree.depths]),
            "scored_positions": torch.tensor([tree.parents[node] for node in scored]),
            "scored_labels": torch.tensor([tree.tokens[node] for node in scored]),
            "layout": layout,
        }
        return tensors, {side: [[entry[n] for n in path] for path in paths[side]] for side in SIDES}


class _PrefixTree:
    """Chains that share their common beginnings; a node is an index in the row."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.stretches: list[Stretch] = []
        self._children: dict[tuple[int, int], int] = {}

    def insert(self, prompt: Sequence[int], completion: Sequence[int]) -> list[int]:
        """Add a chain and return the nodes of its completion."""
        node, path, start = -1, [], len(self.tokens)
        for depth, token in enumerate(chain(prompt, completion)):
            child = self._children.setdefault((node, token), len(self.tokens))
            if child == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = child
            path.append(node)
        new = len(self.tokens) - start
        if new:
            self.stretches.append(Stretch(start, len(self.tokens), _intervals(path[: len(path) - new])))
        return path[len(prompt) :]


def _intervals(nodes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending indices as [start, stop) intervals."""
    intervals: list[list[int]] = []
    for node in nodes:
        if intervals and intervals[-1][1] == node:
            intervals[-1][1] += 1
        else:
            intervals.append([node, node + 1])
    return tuple((start, stop) for start, stop in intervals)


def _side(examples: Sequence[dict[str, Any]], side: str, indices: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    shape = len(examples), max(map(len, indices))
    index = torch.zeros(shape, dtype=torch.long)
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name in ("mask", "key_mask", "fork_mask")}
    for pair, (example, entries) in enumerate(zip(examples, indices, strict=True)):
        length = len(entries)
        index[pair, :length] = torch.tensor(entries)
        masks["mask"][pair, :length] = True
        for name in ("key_mask", "fork_mask"):
            masks[name][pair, :length] = torch.tensor(example[f"{side}_{name}"])
    return {f"{side}_index": index} | {f"{side}_{name}": mask for name, mask in masks.items()}
