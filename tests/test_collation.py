import doctest

import pytest
import torch

import edit_trl.collation
from edit_trl.collation import DualCoTCollator

PAIR = {
    "prompt_ids": [5, 6],
    "chosen_ids": [7, 8, 9],
    "chosen_key_mask": [False, True, False],
    "chosen_fork_mask": [False, True, False],
    "rejected_ids": [7, 4, 3, 9],
    "rejected_key_mask": [False, True, True, False],
    "rejected_fork_mask": [False, True, False, False],
    "fork": 1,
    "row": 3,
}
SHORT = {
    "prompt_ids": [1],
    "chosen_ids": [2, 9],
    "chosen_key_mask": [True, False],
    "chosen_fork_mask": [True, False],
    "rejected_ids": [3, 9],
    "rejected_key_mask": [True, False],
    "rejected_fork_mask": [True, False],
    "fork": 0,
    "row": 8,
}


def test_the_documented_example():
    assert doctest.testmod(edit_trl.collation).attempted > 0
    assert doctest.testmod(edit_trl.collation).failed == 0


def test_two_pairs_literally():
    batch = DualCoTCollator(pad_token_id=0)([PAIR, SHORT])
    expected = {
        "input_ids": [[5, 6, 7, 8, 9, 0], [1, 2, 9, 0, 0, 0], [5, 6, 7, 4, 3, 9], [1, 3, 9, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6, [1, 1, 1, 0, 0, 0]],
        # Rows of 6: chosen token 2 of row 0 is predicted at position 1, of row 1 at 6 + 0.
        "chosen_positions": [1, 2, 3, 6, 7],
        "chosen_labels": [7, 8, 9, 2, 9],
        "chosen_mask": [[True, True, True], [True, True, False]],
        "chosen_key_mask": [[False, True, False], [True, False, False]],
        "chosen_fork_mask": [[False, True, False], [True, False, False]],
        "rejected_positions": [13, 14, 15, 16, 18, 19],
        "rejected_labels": [7, 4, 3, 9, 3, 9],
        "rejected_mask": [[True] * 4, [True, True, False, False]],
        "rejected_key_mask": [[False, True, True, False], [True, False, False, False]],
        "rejected_fork_mask": [[False, True, False, False], [True, False, False, False]],
        "fork": [1, 0],
        "row": [3, 8],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected


@pytest.mark.parametrize("examples", [[PAIR], [PAIR, SHORT], [SHORT, PAIR, SHORT]])
def test_each_position_stands_before_its_label(examples):
    batch = DualCoTCollator(pad_token_id=0, pad_to_multiple_of=8)(examples)
    for side in ("chosen", "rejected"):
        labels = batch[f"{side}_labels"]
        assert torch.equal(batch["input_ids"].flatten()[batch[f"{side}_positions"] + 1], labels)
        # Pair after pair, as the true entries of the mask go.
        assert labels.tolist() == [token for example in examples for token in example[f"{side}_ids"]]
        assert batch[f"{side}_mask"].sum() == len(labels)


def test_pad_to_multiple_of():
    assert DualCoTCollator(0, pad_to_multiple_of=8)([PAIR])["input_ids"].shape == (2, 8)
    assert DualCoTCollator(0, pad_to_multiple_of=6)([PAIR])["input_ids"].shape == (2, 6)


def test_reference_scores_come_along():
    batch = DualCoTCollator(0)([PAIR | {"reference_chosen_score": -1.5, "reference_rejected_score": -2.0}])
    assert torch.equal(batch["reference_chosen_score"], torch.tensor([-1.5]))
    assert torch.equal(batch["reference_rejected_score"], torch.tensor([-2.0]))
