import copy
from itertools import pairwise

import pytest
import torch
from conftest import ROWS, tiny_llama
from datasets import Dataset
from test_invariants import config, largest_difference, one_step

from edit_trl import DualCoTTrainer
from edit_trl.common.errors import InputError
from edit_trl.training.sampling import TokenBudgetBatches


def columns(size: int = 200, pairs_a_row: int = 1, seed: int = 0) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 200, (size,), generator=generator).tolist()
    return {
        "length": lengths,
        "unique_length": [length + length // 2 for length in lengths],
        "prompt_length": [length // 4 for length in lengths],
        "row": [pair // pairs_a_row + 1 for pair in range(size)],
    }


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_pair_once_and_no_batch_over_the_budget(layout, shuffle):
    data = columns()
    batches = list(TokenBudgetBatches(data, 1000, layout=layout, shuffle=shuffle))
    assert sorted(pair for batch in batches for pair in batch) == list(range(200))
    for batch in batches:
        unique = sum(data["unique_length"][pair] for pair in batch)
        padded = 2 * len(batch) * max(data["length"][pair] for pair in batch)
        assert (unique if layout == "tree" else padded) <= 1000
    # Well filled: no two neighbours would fit into one.
    if layout == "tree" and not shuffle:
        sizes = [sum(data["unique_length"][pair] for pair in batch) for batch in batches]
        assert all(a + b > 1000 for a, b in pairwise(sizes))


def test_padded_batches_hold_rows_of_similar_length():
    data = columns()
    batches = TokenBudgetBatches(data, 1000, layout="padded").batches
    width = sum(len(b) * max(data["length"][p] for p in b) for b in batches)
    assert width < 1.1 * sum(data["length"])


def test_order_is_the_seeds_and_the_epochs():
    data = columns()
    first, same, other = (TokenBudgetBatches(data, 1000, seed=seed) for seed in (1, 1, 2))
    assert list(first) == list(same) != list(other)
    same.set_epoch(1)
    assert list(first) != list(same)
    assert sorted(first) == sorted(same)
    assert next(iter(TokenBudgetBatches(data, 1000, shuffle=False)))[0] == 0


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_share_the_batches_evenly(processes):
    parts = [TokenBudgetBatches(columns(), 1000, processes=processes, rank=rank) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1
    assert all(len(list(part)) == len(part) for part in parts)
    assert sorted(p for part in parts for batch in part for p in batch) == list(range(200))


def test_more_processes_than_pairs():
    parts = [TokenBudgetBatches(columns(2), 1000, processes=3, rank=rank) for rank in range(3)]
    assert [len(list(part)) for part in parts] == [1, 1, 1]


def test_pairs_of_one_row_stay_together():
    data = columns(12, pairs_a_row=3)
    for name, value in (("length", 100), ("unique_length", 150), ("prompt_length", 60)):
        data[name] = [value] * 12
    # Three pairs of one prompt: 450 tokens, less the prompt of two of them.
    batches = TokenBudgetBatches(data, 330).batches
    assert sorted(map(sorted, batches)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(("layout", "longest"), [("tree", 299), ("padded", 400)])
def test_a_pair_over_the_budget_is_named(layout, longest):
    data = columns(3)
    data["length"][1], data["unique_length"][1] = 200, 299
    with pytest.raises(InputError) as caught:
        TokenBudgetBatches(data, 298, layout=layout)
    assert "pairs are longer than `max_tokens_per_batch: 298` (row" in str(caught.value)
    assert f"the longest has {longest} tokens in the {layout} layout" in str(caught.value)


def trainer_of(tmp_path, tokenizer, copies: int = 3, **options) -> DualCoTTrainer:
    rows = [row | {"id": f"{row['id']}{n}"} for n in range(copies) for row in ROWS]
    return DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("normalization", ["completion", "step"])
def test_the_loss_is_the_mean_over_the_pairs_of_the_step(tmp_path, tokenizer, normalization):
    """All twelve pairs in one optimizer step: batches by tokens, of unequal size, against one batch."""
    options = {"normalization": normalization, "preference_weight": 0.5}
    whole = one_step(trainer_of(tmp_path, tokenizer, per_device_train_batch_size=12, **options))
    filled = trainer_of(tmp_path, tokenizer, max_tokens_per_batch=300, **options)
    batches = filled.get_train_dataloader()
    sizes = [len(batch["row"]) for batch in batches]
    assert len(set(sizes)) > 1
    assert all(batch["layout"].tokens[1] <= 300 for batch in batches)
    options |= {"max_tokens_per_batch": 300, "gradient_accumulation_steps": len(sizes)}
    loss, gradients = one_step(trainer_of(tmp_path, tokenizer, **options))
    assert loss == pytest.approx(whole[0], rel=1e-5)
    assert largest_difference(gradients, whole[1]) < 1e-5


def test_a_run_by_tokens_can_be_resumed(tmp_path, tokenizer):
    options = {"max_tokens_per_batch": 300, "train_sampling_strategy": "random", "num_train_epochs": 3}
    options |= {"save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path, tokenizer, **options)
    whole.train()
    assert whole.state.global_step % len(whole.get_train_dataloader()) == 0
    resumed = trainer_of(tmp_path, tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_pair_over_the_budget_is_named_before_training(tmp_path, tokenizer):
    lengths = trainer_of(tmp_path, tokenizer).train_dataset["unique_length"]
    with pytest.raises(InputError, match=r"3 of 12 pairs .* \(rows \d+, \d+, \d+; the longest has"):
        trainer_of(tmp_path, tokenizer, max_tokens_per_batch=max(lengths) - 1)


def test_the_budget_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="`max_tokens_per_batch` must be at least 1, got 0"):
        config(tmp_path, max_tokens_per_batch=0)


def test_rows_are_grouped_by_length_where_they_are_padded(tmp_path, tokenizer):
    options = {"train_sampling_strategy": "random", "per_device_train_batch_size": 3}
    padded = trainer_of(tmp_path, tokenizer, copies=60, layout="padded", **options)
    lengths = padded.train_dataset["length"][:]
    order = list(copy.copy(padded._get_train_sampler()))
    groups = [[lengths[i] for i in order[start : start + 3]] for start in range(0, 240, 3)]
    assert sorted(order) == list(range(240))
    assert sum(max(group) > min(group) for group in groups) < 15  # 78 of 80 in a random order
    tree = trainer_of(tmp_path, tokenizer, **options)
    assert type(tree._get_train_sampler()).__name__ == "RandomSampler"
