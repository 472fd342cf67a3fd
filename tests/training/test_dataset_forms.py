"""The forms in which people hand over datasets: with a format, saved with one, as dicts of splits, as streams."""

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset, DatasetDict, IterableDataset
from test_invariants import config
from train_recipe_runs import run_file, stage

from edit_trl import DualCoTTrainer, select_rows
from edit_trl.common.errors import InputError
from edit_trl.data import preparation
from edit_trl.data.dual_cots import load_dual_cots
from edit_trl.training import baselines

FORMATS = ["torch", "numpy", "pandas", "arrow"]
PLAIN = [
    row | {"mistake": ["sign"], "chosen_key_spans": [[0, 2]], "rejected_key_spans": [[0, 2]], "rating": n}
    for n, row in enumerate(ROWS)
]
CHAT = [conversational(row) for row in PLAIN]


def make(tmp_path, tokenizer, train, evaluation=None, **options) -> DualCoTTrainer:
    args = config(tmp_path, **{"max_steps": 2, **options})
    return DualCoTTrainer(
        tiny_llama(), args=args, train_dataset=train, eval_dataset=evaluation, processing_class=tokenizer
    )


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def outcome(tmp_path, tokenizer, data, **options):
    trainer = make(tmp_path, tokenizer, data, data, **options)
    trainer.train()
    return weights(trainer), [trainer.evaluate()["eval_loss"], trainer.evaluate(data)["eval_loss"]]


@pytest.mark.parametrize("rows", [PLAIN, CHAT], ids=["plain", "conversational"])
def test_a_format_changes_nothing(tmp_path, tokenizer, rows):
    data = Dataset.from_list(rows)
    options = {"key_step_method": "spans"}
    expected, scores = outcome(tmp_path, tokenizer, data, **options)
    for name in FORMATS:
        found = outcome(tmp_path, tokenizer, data.with_format(name), **options)
        assert torch.equal(found[0], expected), name
        assert found[1] == scores, name
    some = data.with_format("torch", columns=["prompt", "chosen"])  # the others are there, and not seen
    assert torch.equal(outcome(tmp_path, tokenizer, some, **options)[0], expected)
    by_name = make(tmp_path, tokenizer, data, {"a": data.with_format("torch"), "b": data.with_format("pandas")})
    assert {"eval_a_loss", "eval_b_loss"} <= by_name.evaluate().keys()


def test_a_transform_makes_the_rows(tmp_path, tokenizer):
    def transform(batch):
        return batch | {"prompt": [f"{prompt}Think first.\n" for prompt in batch["prompt"]]}

    data = Dataset.from_list(ROWS)
    expected = make(tmp_path, tokenizer, data.map(transform, batched=True), data.map(transform, batched=True))
    trainer = make(tmp_path, tokenizer, data.with_transform(transform), data.with_transform(transform))
    assert trainer.train_dataset.to_list() == expected.train_dataset.to_list()
    assert trainer.eval_dataset.to_list() == expected.eval_dataset.to_list()
    assert make(tmp_path, tokenizer, data).train_dataset["prompt_ids"][:] != trainer.train_dataset["prompt_ids"][:]
    trainer.train()
    trainer.evaluate(data.with_transform(transform))


@pytest.mark.parametrize("name", FORMATS)
def test_a_view_of_rows_with_a_format(name):
    data = Dataset.from_list(CHAT)
    for options in ({"mistake": ["sign"]}, {"view": "chosen"}, {"rows": 2}):
        assert select_rows(data.with_format(name), **options).to_list() == select_rows(data, **options).to_list()


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_that_was_saved_with_a_format(recipe, tmp_path, name):
    folder = tmp_path / "saved"
    data = Dataset.from_list(CHAT)
    data.with_format(name).save_to_disk(folder)
    assert load_dual_cots(folder).to_list() == CHAT
    options = ("--dataset", str(folder), "--mistake", "sign", "--max_steps", "1")
    assert stage(recipe, "warm_up", *options) == 0
    assert run_file(tmp_path / "out" / "warm_up")["finished"]


# Dicts of splits


def test_splits_with_other_columns_are_evaluated_each(tmp_path, tokenizer):
    splits = DatasetDict({"easy": Dataset.from_list(ROWS[:2]), "hard": Dataset.from_list(CHAT[2:])})
    metrics = make(tmp_path, tokenizer, Dataset.from_list(ROWS), splits).evaluate()
    assert {"eval_easy_loss", "eval_hard_loss"} <= metrics.keys()


@pytest.mark.parametrize("kind", [DatasetDict, dict])
def test_a_dict_to_train_on_is_refused(tmp_path, tokenizer, kind):
    splits = kind({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)})
    with pytest.raises(InputError) as caught:
        make(tmp_path, tokenizer, splits)
    assert caught.value.problems == [
        f"`train_dataset` must be one datasets.Dataset, got a {kind.__name__} of 'train', 'test'; choose a split, "
        "such as `train_dataset=dataset['train']`"
    ]


def test_predict_takes_rows_as_evaluate_does(tmp_path, tokenizer):
    trainer = make(tmp_path, tokenizer, Dataset.from_list(ROWS))
    rows = Dataset.from_list(CHAT[:3])
    output = trainer.predict(rows)
    assert output.predictions.shape == (3, 2)
    assert output.label_ids.tolist() == [0, 0, 0]
    assert output.metrics["test_loss"] == pytest.approx(trainer.evaluate(rows)["eval_loss"], rel=1e-5)
    with pytest.raises(InputError, match=r"choose a split, such as `test_dataset\['test'\]`"):
        trainer.predict(DatasetDict({"test": rows}))


def test_spans_that_are_missing_are_named_with_row_and_column(tmp_path, tokenizer):
    spans = {"chosen_key_spans": [[0, 5]], "rejected_key_spans": [[0, 5]]}
    rows = Dataset.from_list([ROWS[0] | spans, ROWS[1] | dict.fromkeys(spans)])
    with pytest.raises(InputError, match=r"row 2: method 'spans' needs chosen_spans.*column `chosen_key_spans`"):
        make(tmp_path, tokenizer, rows, key_step_method="spans")


def test_a_stream_is_refused(tmp_path, tokenizer):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    with pytest.raises(InputError, match="got IterableDataset; key steps are found once before training"):
        make(tmp_path, tokenizer, stream)
    for evaluation in (stream, {"a": stream}):
        with pytest.raises(InputError, match=r"`eval_dataset` must be a datasets.Dataset.*got IterableDataset"):
            make(tmp_path, tokenizer, Dataset.from_list(ROWS), evaluation)


# Columns that are not used


def test_unused_columns_are_named_once(tmp_path, tokenizer, log):
    make(tmp_path, tokenizer, Dataset.from_list(PLAIN), Dataset.from_list(ROWS))
    named = [line for line in log if "columns not used" in line]
    spans = "chosen_key_spans (for `key_step_method: spans`), rejected_key_spans (for `key_step_method: spans`)"
    assert named == [f"train dataset: columns not used: rating, {spans}"]


def test_a_line_is_not_repeated_in_a_process(tmp_path, tokenizer, caplog):
    preparation.logger.warning_once.cache_clear()
    for _ in range(2):
        make(tmp_path, tokenizer, Dataset.from_list([row | {"ratings": 5} for row in ROWS]))
    assert sum("columns not used: ratings" in line for line in caplog.messages) == 1


def test_unused_columns_of_a_baseline(tokenizer, monkeypatch):
    told = []
    monkeypatch.setattr(baselines.logger, "warning_once", told.append)
    baselines.preference_pairs(Dataset.from_list(PLAIN), tokenizer, None)
    assert told == ["train dataset: columns not used: rating"]
