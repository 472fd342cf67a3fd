"""Examples -> a batch (L1).

A collator lays the chains of a batch out as rows for one forward and says which positions predict the
completion tokens (`chosen_positions`, `rejected_positions`). Only those pass the LM head, and loss and
metrics see only their log-probabilities, so neither depends on the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SIDES = ("chosen", "rejected")
PAIR_COLUMNS = ("fork", "row", "reference_chosen_score", "reference_rejected_score")
EXAMPLE_COLUMNS = (
    "prompt_ids",
    *(f"{side}_{name}" for side in SIDES for name in ("ids", "key_mask", "fork_mask")),
    *PAIR_COLUMNS,
)
"""What of a prepared dataset makes a batch."""


@dataclass
class DualCoTCollator:
    """Padded layout: the correct chains of the batch, then the wrong ones, one chain a row.

    Rows are padded on the right whatever the tokenizer's `padding_side` is, which is for generation: with
    causal attention nothing then sees the padding.

    An example has `prompt_ids`, and for each side (`chosen`, `rejected`) `*_ids`, `*_key_mask` and
    `*_fork_mask`; `fork`, the index of the first completion token in which the chains differ; `row`, its
    number in the source; and, where a reference is precomputed, `reference_chosen_score` and
    `reference_rejected_score`.

    Args:
        pad_token_id: Fills the rows; never attended to and never a label.
        pad_to_multiple_of: Rounds the row length up.

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
        >>> batch["input_ids"]
        tensor([[5, 6, 7, 8, 9, 0],
                [5, 6, 7, 4, 3, 9]])
        >>> batch["rejected_positions"]  # of the flattened (2, 6) input: token 6 predicts 7, ...
        tensor([ 7,  8,  9, 10])
        >>> batch["rejected_labels"]
        tensor([7, 4, 3, 9])
        >>> batch["rejected_key_mask"]
        tensor([[False,  True,  True, False]])

        ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate B examples.

        Returns:
            `input_ids` and `attention_mask` of shape (2B, T), the correct chains first. For each side
            `*_positions` and `*_labels` of shape (its completion tokens,), pair after pair: where the
            token is predicted in the flattened input, and which it is; and `*_mask`, `*_key_mask`,
            `*_fork_mask` of shape (B, longest completion), bool. `fork`, `row` and the reference scores of
            shape (B,).
        """
        sequences = [ex["prompt_ids"] + ex[f"{side}_ids"] for side in SIDES for ex in examples]
        width = max(map(len, sequences))
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        for number, side in enumerate(SIDES):
            batch |= self._side(examples, side, first_row=number * len(examples), width=width)
        for name in PAIR_COLUMNS:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    @staticmethod
    def _side(examples: Sequence[dict[str, Any]], side: str, first_row: int, width: int) -> dict[str, Tensor]:
        longest = max(len(example[f"{side}_ids"]) for example in examples)
        names = ("mask", "key_mask", "fork_mask")
        masks = {name: torch.zeros(len(examples), longest, dtype=torch.bool) for name in names}
        positions, labels = [], []
        for pair, example in enumerate(examples):
            length = len(example[f"{side}_ids"])
            # A token is predicted one position before it.
            start = (first_row + pair) * width + len(example["prompt_ids"]) - 1
            positions += range(start, start + length)
            labels += example[f"{side}_ids"]
            masks["mask"][pair, :length] = True
            for name in ("key_mask", "fork_mask"):
                masks[name][pair, :length] = torch.tensor(example[f"{side}_{name}"])
        tensors = {"positions": torch.tensor(positions), "labels": torch.tensor(labels)} | masks
        return {f"{side}_{name}": tensor for name, tensor in tensors.items()}
