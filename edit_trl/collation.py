"""Examples -> a batch (L1).

A collator lays the chains of a batch out as rows for one forward and says, for every completion
token of every pair, where in the forward's log-probabilities to find it (`chosen_index`,
`rejected_index`). Loss and metrics see only those, so they do not depend on the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is not scored, as everywhere in transformers."""

MODEL_INPUTS = ("input_ids", "attention_mask", "labels")
"""The entries of a batch that the model takes; the others belong to the loss and the metrics."""


@dataclass
class DualCoTCollator:
    """Padded layout: the correct chains of the batch, then the wrong ones, one chain a row.

    Rows are padded on the right whatever the tokenizer's `padding_side` is, which is for
    generation: with causal attention nothing then sees the padding.

    An example has `prompt_ids`, and for each side (`chosen`, `rejected`) `*_ids`, `*_key_mask`,
    `*_fork_mask`; `fork`, the index of the first completion token in which the chains differ; `row`,
    its number in the source; and, where a reference is precomputed, `reference_chosen_score` and
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
        >>> batch["labels"]
        tensor([[-100, -100,    7,    8,    9, -100],
                [-100, -100,    7,    4,    3,    9]])
        >>> batch["rejected_index"]  # into the flattened (2, 5) log-probabilities of the labels
        tensor([[6, 7, 8, 9]])
        >>> batch["rejected_key_mask"]
        tensor([[False,  True,  True, False]])

        ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate B examples.

        Returns:
            `input_ids`, `attention_mask`, `labels` of shape (2B, T), the correct chains first; for
            each side `*_index`, `*_mask`, `*_key_mask`, `*_fork_mask` of shape (B, longest
            completion); `fork`, `row` and the reference scores of shape (B,).
        """
        sides = ("chosen", "rejected")
        sequences = [ex["prompt_ids"] + ex[f"{side}_ids"] for side in sides for ex in examples]
        completions = [len(ex[f"{side}_ids"]) for side in sides for ex in examples]
        width = max(map(len, sequences))
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = self._model_inputs(sequences, completions, width)
        for number, side in enumerate(sides):
            rows = range(number * len(examples), (number + 1) * len(examples))
            batch |= self._side(examples, side, rows, width)
        for name in ("fork", "row", "reference_chosen_score", "reference_rejected_score"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    def _model_inputs(
        self, sequences: list[list[int]], completions: list[int], width: int
    ) -> dict[str, Tensor]:
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, (ids, completion) in enumerate(zip(sequences, completions, strict=True)):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
            labels[row, len(ids) - completion : len(ids)] = input_ids[row, len(ids) - completion : len(ids)]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    @staticmethod
    def _side(examples: Sequence[dict[str, Any]], side: str, rows: range, width: int) -> dict[str, Tensor]:
        longest = max(len(example[f"{side}_ids"]) for example in examples)
        index = torch.zeros(len(examples), longest, dtype=torch.long)
        masks = {
            name: torch.zeros(len(examples), longest, dtype=torch.bool)
            for name in ("mask", "key_mask", "fork_mask")
        }
        for pair, (row, example) in enumerate(zip(rows, examples, strict=True)):
            length = len(example[f"{side}_ids"])
            # The log-probabilities have one column fewer than the input: the first token has none.
            start = row * (width - 1) + len(example["prompt_ids"]) - 1
            index[pair, :length] = torch.arange(start, start + length)
            masks["mask"][pair, :length] = True
            for name in ("key_mask", "fork_mask"):
                masks[name][pair, :length] = torch.tensor(example[f"{side}_{name}"])
        return {f"{side}_index": index} | {f"{side}_{name}": m for name, m in masks.items()}
