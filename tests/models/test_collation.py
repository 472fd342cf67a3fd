import doctest

import pytest
import torch

import edit_trl.models.pairs.collation
from edit_trl.models.pairs.collation import DualCoTCollator, Stretch

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
# The prompt and the correct chain of PAIR, another wrong chain.
SIBLING = PAIR | {
    "rejected_ids": [7, 8, 1, 9],
    "rejected_key_mask": [False, False, True, False],
    "rejected_fork_mask": [False, False, True, False],
    "fork": 2,
}
BATCHES = [[PAIR], [PAIR, SHORT], [SHORT, PAIR, SHORT], [PAIR, SIBLING], [SIBLING, SHORT, PAIR]]
MASKS = {
    "chosen_mask": [[True, True, True], [True, True, False]],
    "chosen_key_mask": [[False, True, False], [True, False, False]],
    "chosen_fork_mask": [[False, True, False], [True, False, False]],
    "rejected_mask": [[True] * 4, [True, True, False, False]],
    "rejected_key_mask": [[False, True, True, False], [True, False, False, False]],
    "rejected_fork_mask": [[False, True, False, False], [True, False, False, False]],
    "fork": [1, 0],
    "row": [3, 8],
}


def as_lists(batch) -> dict[str, list]:
    return {name: value.tolist() for name, value in batch.items() if name != "layout"}


def test_the_documented_example():
    assert doctest.testmod(edit_trl.models.pairs.collation).attempted > 0
    assert doctest.testmod(edit_trl.models.pairs.collation).failed == 0


def test_two_pairs_padded():
    batch = DualCoTCollator(pad_token_id=0, layout="padded")([PAIR, SHORT])
    assert as_lists(batch) == MASKS | {
        "input_ids": [[5, 6, 7, 8, 9, 0], [1, 2, 9, 0, 0, 0], [5, 6, 7, 4, 3, 9], [1, 3, 9, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1] * 6, [1, 1, 1, 0, 0, 0]],
        # Rows of 6: chosen token 2 of row 0 is predicted at position 1, of row 1 at 6 + 0.
        "scored_positions": [1, 2, 3, 6, 7, 13, 14, 15, 16, 18, 19],
        "scored_labels": [7, 8, 9, 2, 9, 7, 4, 3, 9, 3, 9],
        "chosen_index": [[0, 1, 2], [3, 4, 0]],
        "rejected_index": [[5, 6, 7, 8], [9, 10, 0, 0]],
    }
    layout = batch["layout"]
    assert (layout.chosen_rows, layout.chosen_width, layout.chosen_scored) == (2, 6, 5)
    assert layout.tokens == (8, 17)
    assert layout.stretches is None


def test_two_pairs_as_a_tree():
    batch = DualCoTCollator(pad_token_id=0)([PAIR, SHORT])
    assert as_lists(batch) == MASKS | {
        "input_ids": [[5, 6, 7, 8, 9, 1, 2, 9, 4, 3, 9, 3, 9]],
        "position_ids": [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 1, 2]],
        "scored_positions": [1, 2, 3, 5, 6, 2, 8, 9, 5, 11],
        "scored_labels": [7, 8, 9, 2, 9, 4, 3, 9, 3, 9],
        "chosen_index": [[0, 1, 2], [3, 4, 0]],
        "rejected_index": [[0, 5, 6, 7], [8, 9, 0, 0]],
    }
    layout = batch["layout"]
    assert layout.stretches == (
        Stretch(0, 5, ()),
        Stretch(5, 8, ()),
        Stretch(8, 11, ((0, 3),)),
        Stretch(11, 13, ((5, 6),)),
    )
    assert layout.chosen_stretches == 2
    assert (layout.chosen_rows, layout.chosen_width, layout.chosen_scored) == (1, 8, 5)
    assert layout.tokens == (8, 13)


def test_pairs_of_one_prompt_share_it():
    layout = DualCoTCollator(pad_token_id=0)([PAIR, SIBLING])["layout"]
    assert layout.stretches == (Stretch(0, 5, ()), Stretch(5, 8, ((0, 3),)), Stretch(8, 10, ((0, 4),)))


def test_a_shared_beginning_of_prompts_is_run_once():
    other = SHORT | {"prompt_ids": [5, 6, 1]}  # such as a system prompt
    layout = DualCoTCollator(pad_token_id=0)([PAIR, other])["layout"]
    assert layout.stretches[1] == Stretch(5, 8, ((0, 2),))
    # Its wrong chain continues two stretches of the row.
    assert layout.stretches[3] == Stretch(11, 13, ((0, 2), (5, 6)))


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("examples", BATCHES)
def test_each_chain_can_be_read_back(examples, layout):
    """From the root to each completion token lies its chain, and the token is what is predicted there."""
    batch = DualCoTCollator(0, pad_to_multiple_of=8, layout=layout)(examples)
    ids = batch["input_ids"].flatten().tolist()
    runs = batch["layout"].stretches or [
        Stretch(start, start + batch["input_ids"].size(1), ())
        for start in range(0, len(ids), batch["input_ids"].size(1))
    ]

    def path_to(position: int) -> list[int]:
        run = next(run for run in runs if run.start <= position < run.stop)
        before = [i for start, stop in run.ancestors for i in range(start, stop)]
        return [ids[i] for i in [*before, *range(run.start, position + 1)]]

    for pair, example in enumerate(examples):
        for side in ("chosen", "rejected"):
            entries = batch[f"{side}_index"][pair][batch[f"{side}_mask"][pair]]
            assert batch["scored_labels"][entries].tolist() == example[f"{side}_ids"]
            for number, position in enumerate(batch["scored_positions"][entries].tolist()):
                assert path_to(position) == example["prompt_ids"] + example[f"{side}_ids"][:number]


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("examples", BATCHES)
def test_the_correct_chains_come_first(examples, layout):
    batch = DualCoTCollator(pad_token_id=0, layout=layout)(examples)
    facts = batch["layout"]
    assert batch["chosen_index"].max() < facts.chosen_scored
    rows, columns = divmod(batch["scored_positions"][: facts.chosen_scored].max().item(), facts.chosen_width)
    assert rows < facts.chosen_rows
    assert columns < facts.chosen_width


def test_pad_to_multiple_of():
    assert DualCoTCollator(0, 8, layout="padded")([PAIR])["input_ids"].shape == (2, 8)
    assert DualCoTCollator(0, 6, layout="padded")([PAIR])["input_ids"].shape == (2, 6)


def test_reference_scores_come_along():
    batch = DualCoTCollator(0)([PAIR | {"reference_chosen_score": -1.5, "reference_rejected_score": -2.0}])
    assert torch.equal(batch["reference_chosen_score"], torch.tensor([-1.5]))
    assert torch.equal(batch["reference_rejected_score"], torch.tensor([-2.0]))
