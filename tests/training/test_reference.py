import math

import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_llama
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trainers import make_trainer

from edit_trl import DualCoTCollator
from edit_trl.common.errors import InputError
from edit_trl.training.fork_selection import fork_histogram, hardest_forks, keep_hard_forks
from edit_trl.training.reference import adapter_off, add_scores, reference_problems, weights_hash


@pytest.fixture
def stored(tmp_path):
    """A dataset with files, as a prepared one has: its scores are cached beside them."""
    Dataset.from_list([{"value": n} for n in range(5)]).save_to_disk(tmp_path / "rows")
    return lambda: Dataset.load_from_disk(tmp_path / "rows")


def score(dataset, model, seen: list, settings="a", batch_size=2):
    def score_batch(batch):
        seen.append(len(batch["value"]))
        assert not model.training
        return {"double": 2.0 * batch["value"], "half": batch["value"] / 2}

    def collate(rows):
        return {"value": torch.tensor([row["value"] for row in rows])}

    return add_scores(
        dataset,
        score_batch,
        model=model,
        accelerator=Accelerator(cpu=True),
        collator=collate,
        batch_size=batch_size,
        settings=settings,
    )


def test_adds_columns_in_order(stored, model):
    model.train()
    dataset = score(stored(), model, [])
    assert dataset["double"][:] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert dataset["half"][:] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert dataset["value"][:] == [0, 1, 2, 3, 4]
    assert model.training


def test_computed_once(stored, model):
    seen: list[int] = []
    first = score(stored(), model, seen)
    assert seen == [2, 2, 1]
    second = score(stored(), model, seen)
    assert len(seen) == 3
    assert second.to_list() == first.to_list()


def test_another_model_or_setting_is_scored_anew(stored, model):
    seen: list[int] = []
    score(stored(), model, seen)
    score(stored(), model, seen, settings="b")
    score(stored(), tiny_llama(seed=1), seen)
    assert len(seen) == 9


def test_weights_hash():
    assert weights_hash(tiny_llama()) == weights_hash(tiny_llama())
    changed = tiny_llama()
    with torch.no_grad():
        changed.model.norm.weight[0] += 1e-3
    assert weights_hash(changed) != weights_hash(tiny_llama())
    assert weights_hash(tiny_llama().bfloat16()) != weights_hash(tiny_llama())


def test_histogram():
    text = fork_histogram([0.05, 0.95, 0.99, 1.0])
    assert "0.0: 25%" in text
    assert "0.9: 75%" in text


def test_keeps_hard_forks():
    dataset = Dataset.from_list([{"fork_confidence": c} for c in (0.2, 0.9, 0.91)])
    assert keep_hard_forks(dataset, 0.9)["fork_confidence"][:] == [0.2, 0.9]
    with pytest.raises(InputError, match=r"leaves no pair: .* with at least 0\.200"):
        keep_hard_forks(dataset, 0.1)


@pytest.mark.parametrize(
    ("confidences", "share", "kept"),
    [
        ([0.9, 0.1, 0.5, 0.2], 0.5, [1, 3]),
        ([0.9, 0.1, 0.5, 0.2], 0.25, [1]),
        ([0.9, 0.1, 0.5, 0.2], 1.0, [0, 1, 2, 3]),
        ([0.9, 0.1, 0.5], 0.5, [1, 2]),  # rounded up
        ([0.9, 0.1], 0.001, [1]),
        ([0.3, 0.7, 0.3, 0.3], 0.5, [0, 2]),  # of equals the earlier ones
        ([1 - n / 1000 for n in range(100)], 0.07, list(range(93, 100))),  # 0.07 * 100 > 7 in floats
    ],
)
def test_keeps_the_hardest_forks_in_row_order(confidences, share, kept):
    rows = [{"fork_confidence": c, "row": n} for n, c in enumerate(confidences)]
    assert hardest_forks(Dataset.from_list(rows), share)["row"][:] == kept


def test_another_configuration_of_the_same_weights_is_scored_anew():
    """A window or a rotary embedding is no weight, and decides the scores."""
    first, second, third = tiny_llama(), tiny_llama(), tiny_llama()
    second.config._name_or_path, second.config.use_cache = "elsewhere", False
    third.config.rope_parameters = {**third.config.rope_parameters, "rope_theta": 5e5}
    assert weights_hash(first) == weights_hash(second) != weights_hash(third)


# The model without its adapter, which must be the model before training


def refused(model="student", peft_config=None) -> list[str]:
    return list(reference_problems(model, peft_config))


@pytest.mark.parametrize("initial", ["pissa", "pissa_niter_4", "olora", "PiSSA", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_changes_the_weights_below_it_is_no_reference(initial):
    peft_config = LoraConfig(target_modules="all-linear")
    peft_config.init_lora_weights = initial  # PEFT asks for more options of some
    (problem,) = refused(peft_config=peft_config)
    assert problem.startswith(f"`init_lora_weights: {initial}` changes the weights below the adapter")
    assert problem.endswith("use `reference: precomputed`")


@pytest.mark.parametrize("initial", [True, False, "gaussian", "orthogonal", "mica"])
def test_other_adapters_leave_the_model_as_it_is(tokenizer, tmp_path, initial):
    """Checked against the scores of the model before it had the adapter."""
    example = make_trainer(tmp_path, tokenizer, layout="padded").train_dataset[0]
    batch = DualCoTCollator(0, layout="padded")([example])
    before = make_trainer(tmp_path, tokenizer, layout="padded")
    with torch.no_grad():
        expected = before.score_pairs(before.model.eval(), batch).chosen
    peft_config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=initial)
    assert refused(peft_config=peft_config) == []
    options = {"layout": "padded", "reference": "adapter_off", "preference_weight": 1.0, "max_steps": 2}
    trainer = make_trainer(tmp_path, tokenizer, peft_config=peft_config, **options)
    trainer.train()
    with torch.no_grad(), adapter_off(trainer.model):
        assert torch.equal(trainer.score_pairs(trainer.model, batch).chosen, expected)


def test_an_adapter_of_pissa_has_the_model_before_training_as_precomputed_reference(tokenizer, tmp_path):
    """What the message recommends: the preference term starts at log 2, since student and reference are the same."""
    peft_config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa")
    with pytest.raises(InputError, match="`init_lora_weights: pissa` changes the weights"):
        make_trainer(tmp_path, tokenizer, peft_config=peft_config, reference="adapter_off")
    options = {"reference": "precomputed", "preference_weight": 1.0, "max_steps": 1}
    trainer = make_trainer(tmp_path, tokenizer, peft_config=peft_config, **options)
    trainer.train()
    assert trainer.state.log_history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-5)


def test_weights_that_stay_when_the_adapter_is_off_are_no_reference():
    assert "`bias: all` trains the model's own biases" in refused(peft_config=LoraConfig(bias="all"))[0]
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert refused(model) == []
    model.get_input_embeddings().weight.requires_grad_(True)
    (problem,) = refused(model)
    assert "1 of the model's own weights are trained (base_model.model.model.embed_tokens.weight, ...)" in problem


def test_several_adapters_are_not_switched_off_at_once():
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]), adapter_name="first")
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"]))
    assert refused(model) == []  # the first alone is active
    model.base_model.set_adapter(["first", "second"])
    (problem,) = refused(model)
    assert "would switch off all active adapters (first, second)" in problem


def test_there_must_be_an_adapter():
    assert "needs an adapter to switch off" in refused()[0]
    assert "needs an adapter to switch off" in refused(tiny_llama())[0]
