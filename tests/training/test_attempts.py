"""`auto_find_batch_size`: what follows after running out of memory is the run that was made."""

import gc
import json

import pytest
import torch
from conftest import ROWS
from datasets import Dataset
from test_resume import MANY_ROWS, assert_same, history, make_trainer
from trainers import make_trainer as make_plain_trainer

from edit_trl.common.errors import InputError


@pytest.fixture(autouse=True)
def quick_collection():
    """After each attempt accelerate collects garbage several times; here, in all that the other tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def run_out_of_memory(trainer, most: int, after: int = 0) -> list[int]:
    """Raise what CUDA raises, after as many steps, in a step with more than `most` pairs; return the pairs of each."""
    step, sizes = trainer.training_step, []

    def training_step(model, inputs, *args, **kwargs):
        loss = step(model, inputs, *args, **kwargs)
        sizes.append(len(inputs["fork"]))
        if len(inputs["fork"]) > most and trainer.state.global_step >= after:
            raise torch.OutOfMemoryError("CUDA out of memory. (made by the test)")
        return loss

    trainer.training_step = training_step
    return sizes


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "padded", "save_strategy": "no"},
        {"layout": "tree", "lr_decay_per_epoch": 0.5, "save_strategy": "no", "neftune_noise_alpha": 5.0},
        {"layout": "tree", "eval_strategy": "steps", "eval_steps": 2},
    ],
)
def test_the_run_is_that_of_the_size_that_fits(tmp_path, options):
    """The first attempt makes three steps, with dropout: all that they have changed is as before them."""
    found = make_trainer(tmp_path / "found", True, per_device_train_batch_size=4, auto_find_batch_size=True, **options)
    sizes = run_out_of_memory(found, most=3, after=2)
    found.train()
    assert sizes == [4, 4, 3, 4, *(2 * [3, 3, 3, 2])]
    asked = make_trainer(tmp_path / "asked", True, per_device_train_batch_size=3, **options)
    asked.train()
    assert_same(found, asked)


def test_checkpoints_are_those_of_the_attempt_that_was_kept_and_can_be_resumed(tmp_path):
    options = {"per_device_train_batch_size": 4, "auto_find_batch_size": True, "save_steps": 1, "layout": "padded"}
    whole = make_trainer(tmp_path, True, num_train_epochs=1, **options)
    kept_at_restart = []
    begin = whole._init_training_state

    def look(*args):
        kept_at_restart.append(sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")))
        return begin(*args)

    whole._init_training_state = look
    run_out_of_memory(whole, most=3, after=1)
    whole.train()
    assert kept_at_restart == [[], []]  # the first attempt saved one
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["train_batch_size"] == 3
    resumed = make_trainer(tmp_path, True, num_train_epochs=1, **options)
    sizes = run_out_of_memory(resumed, most=3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert sizes == [3, 2]
    assert_same(whole, resumed)
    # Less memory than before: the next checkpoint records the size that is in use then.
    smaller = make_trainer(tmp_path, True, num_train_epochs=1, **options)
    run_out_of_memory(smaller, most=2)
    smaller.train(resume_from_checkpoint=str(checkpoint))
    assert smaller.state.train_batch_size == 2


def test_batches_filled_by_tokens_get_smaller(tmp_path):
    options = {"max_tokens_per_batch": 700, "layout": "tree", "num_train_epochs": 1, "save_steps": 2}
    found = make_trainer(tmp_path / "found", False, auto_find_batch_size=True, **options)
    sizes = run_out_of_memory(found, most=3)
    found.train()
    assert max(sizes[-found.state.max_steps :]) <= 3 < max(sizes)
    budget = found.state.train_batch_size
    assert 160 < budget < 700
    asked = make_trainer(tmp_path / "asked", False, **options | {"max_tokens_per_batch": budget})
    asked.train()
    assert history(found) == history(asked)
    resumed = make_trainer(tmp_path / "found", False, auto_find_batch_size=True, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "found" / "run" / "checkpoint-2"))
    assert_same(found, resumed)


def test_no_size_fits(tmp_path):
    options = {"per_device_train_batch_size": 2, "auto_find_batch_size": True, "save_strategy": "no"}
    trainer = make_trainer(tmp_path, False, **options)
    run_out_of_memory(trainer, most=0)
    with pytest.raises(InputError, match=r"out of memory even with one pair in a batch .*lower `max_length`"):
        trainer.train()
    trainer = make_trainer(tmp_path, False, max_tokens_per_batch=250, **options)
    run_out_of_memory(trainer, most=0)
    with pytest.raises(
        InputError, match="out of memory even with batches of 115 tokens, the length of the longest pair"
    ):
        trainer.train()


def test_optimizers_that_were_given_start_anew(tmp_path, tokenizer):
    def run(size: int, **options):
        trainer = make_plain_trainer(tmp_path, tokenizer, rows=MANY_ROWS, per_device_train_batch_size=size, **options)
        optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
        return trainer

    found = run(4, auto_find_batch_size=True, max_steps=4)
    run_out_of_memory(found, most=3, after=2)
    found.train()
    asked = run(3, max_steps=4)
    asked.train()
    assert_same(found, asked)


def test_a_second_training_counts_its_own_tokens(tmp_path, tokenizer):
    trainer = make_plain_trainer(tmp_path, tokenizer, max_steps=2)
    counts = []
    for _ in range(2):
        trainer.train()
        counts.append([entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry])
    assert counts[0] == counts[1] == [counts[0][0], 2 * counts[0][0]]


# A run without a step


def test_a_run_without_a_step_is_an_error(tmp_path, tokenizer):
    trainer = make_plain_trainer(tmp_path, tokenizer, per_device_train_batch_size=8, dataloader_drop_last=True)
    with pytest.raises(
        InputError, match=r"would make no step.*`per_device_train_batch_size: 8`, `dataloader_drop_last: true`"
    ):
        trainer.train()
    trainer.args.dataloader_drop_last = False
    for name, value in (("num_train_epochs", 0), ("num_train_epochs", -1), ("max_steps", 0)):
        trainer.args.num_train_epochs, trainer.args.max_steps = 1, -1
        setattr(trainer.args, name, value)
        with pytest.raises(InputError, match=f"would make no step: .*`{name}: {value}`"):
            trainer.train()


def test_nothing_left_after_filtering_is_an_error(tmp_path, tokenizer):
    with pytest.raises(InputError, match="no pair is left to train on"):
        make_plain_trainer(tmp_path, tokenizer, max_key_fraction=1e-6)
    with pytest.raises(InputError, match="max_fork_confidence=1e-09 leaves no pair"):
        make_plain_trainer(tmp_path, tokenizer, max_fork_confidence=1e-9)


# Formats of a dataset


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "columns"])
def test_a_format_changes_nothing(tmp_path, tokenizer, form):
    spans = {"chosen_key_spans": [[3, 9]], "rejected_key_spans": [[3, 9]]}
    rows = [row | spans for row in ROWS]
    plain = Dataset.from_list(rows)
    shown = plain.with_format(columns=["prompt"]) if form == "columns" else plain.with_format(form)
    trained = []
    for dataset in (plain, shown):
        trainer = make_plain_trainer(tmp_path, tokenizer, max_steps=2)
        prepared = trainer._prepare_dataset(dataset, tokenizer, trainer.args)
        trainer.train_dataset = trainer._prepare_dataset(
            prepared.with_format(dataset.format["type"]), tokenizer, trainer.args
        )
        trainer.train()
        trainer.evaluate(dataset)
        trained.append(trainer)
    assert_same(*trained)
