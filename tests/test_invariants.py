"""What must never change, whatever else does."""

import copy

import pytest
import torch
from conftest import ROWS, conversational, tiny_llama
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from edit_trl import DualCoTConfig, DualCoTTrainer
from edit_trl.losses import dual_cot_loss

SFT = {"chosen_key_weight": 1.0, "chosen_context_weight": 1.0, "preference_weight": 0.0}
EVERYTHING = {
    "chosen_key_weight": 2.0,
    "rejected_key_weight": 0.1,
    "preference_weight": 0.5,
    "preference_scope": "completion",
}


def config(tmp_path, **options) -> DualCoTConfig:
    defaults = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
    }
    return DualCoTConfig(str(tmp_path / "run"), **(defaults | options))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    assert any(tensor.abs().max() > 0 for tensor in first.values())
    scale = max(tensor.abs().max().item() for tensor in first.values())
    return max((first[name] - second[name]).abs().max().item() for name in first) / scale


def one_step(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first optimizer step, through the trainer's own loop."""
    seen = {}
    optimizer_step = trainer.create_optimizer

    def keep_gradients(*args, **kwargs):
        optimizer = optimizer_step(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: seen.update(gradients(trainer.model)))
        return optimizer

    trainer.create_optimizer = keep_gradients
    trainer.args.max_steps = 1
    trainer.train()
    return trainer.state.log_history[0]["loss"], seen


@pytest.mark.parametrize("form", [dict, conversational], ids=["plain", "conversational"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_sft_is_a_special_case(tmp_path, tokenizer, form, accumulation):
    """TRL's SFTTrainer on the correct chains: same loss, same gradients, chains of unequal length."""
    rows = [form(row) for row in ROWS]
    options = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    ours = DualCoTTrainer(
        tiny_llama(),
        args=config(tmp_path, **SFT, **options, normalization="step"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = SFTTrainer(
        tiny_llama(),
        args=SFTConfig(
            str(tmp_path / "sft"),
            **options,
            learning_rate=1e-2,
            max_grad_norm=0.0,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            train_sampling_strategy="sequential",
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]),
        processing_class=tokenizer,
    )
    loss, grads = one_step(ours)
    expected_loss, expected_grads = one_step(theirs)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert largest_difference(grads, expected_grads) < 1e-5


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_correct_chains_alone_train_as_pairs_do_without_their_wrong_ones(tmp_path, tokenizer, layout):
    """A warm-up looks at the correct chains alone, so it may do without the others; nothing else is asked
    of such rows where pairs stand beside them."""
    alone = [row | {"rejected": []} for row in ROWS]
    several = [row | {"rejected": [row["rejected"]]} for row in ROWS]
    runs = []
    for rows, options in ((alone, SFT), (several, SFT), (alone[:2] + several[2:], EVERYTHING)):
        trainer = DualCoTTrainer(
            tiny_llama(),
            args=config(tmp_path, **options, layout=layout),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        assert len(trainer.train_dataset) == 4
        runs.append((one_step(trainer), trainer.state.log_history[0]))
    (loss, grads), log = runs[0]
    assert loss == pytest.approx(runs[1][0][0], rel=1e-5)
    assert largest_difference(grads, runs[1][0][1]) < 1e-5
    assert "key_accuracy" not in log
    assert "fork/confidence" not in log
    mixed = runs[2][1]
    assert mixed["loss/preference"] > 0
    assert 0 <= mixed["key_accuracy"] <= 1


@pytest.mark.parametrize("normalization", ["completion", "key_tokens", "step"])
def test_gradient_accumulation_does_not_change_the_update(tmp_path, tokenizer, normalization):
    """8 x 1, 4 x 2, 1 x 8, and 3 + 3 + 2: the same eight pairs, the same update."""
    rows = [row | {"id": f"{row['id']}{n}"} for n in range(2) for row in ROWS]
    updates = []
    for size, steps in ((8, 1), (4, 2), (1, 8), (3, 3)):
        trainer = DualCoTTrainer(
            tiny_llama(),
            args=config(
                tmp_path,
                **EVERYTHING,
                normalization=normalization,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        updates.append(one_step(trainer))
    for loss, grads in updates[1:]:
        assert loss == pytest.approx(updates[0][0], rel=1e-5)
        assert largest_difference(grads, updates[0][1]) < 1e-5


def pair_losses(trainer, rows) -> list[float]:
    """Each pair's loss when its batch holds `rows` (indices into the prepared dataset)."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in rows])
    with torch.no_grad():
        return trainer.objective.loss(trainer.score_pairs(trainer.model.eval(), batch), batch).loss.tolist()


def test_batch_composition_and_padding_side_do_not_change_a_pair(tmp_path, tokenizer):
    losses = []
    for side in ("right", "left"):
        tokenizer.padding_side = side
        trainer = DualCoTTrainer(
            tiny_llama(),
            args=config(tmp_path, **EVERYTHING),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
        alone = [pair_losses(trainer, [i])[0] for i in range(4)]
        assert pair_losses(trainer, [0, 1, 2, 3]) == pytest.approx(alone, rel=1e-5)
        assert pair_losses(trainer, [3, 1]) == pytest.approx([alone[3], alone[1]], rel=1e-5)
        losses.append(alone)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_trainer_agrees_with_plain_logits(tmp_path, tokenizer, model):
    """The trainer's loss of a batch, against logits and log-softmax of each chain by itself."""
    trainer = DualCoTTrainer(
        copy.deepcopy(model),
        args=config(tmp_path, **EVERYTHING),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), batch).item()
    expected = []
    for example in trainer.train_dataset:
        sides = {}
        for side in ("chosen", "rejected"):
            prompt, ids = example["prompt_ids"], example[f"{side}_ids"]
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            sides[side] = logits.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1)).T
        masks = {
            f"{side}_{name}": torch.tensor([example[f"{side}_{key}"]])
            for side in sides
            for name, key in (("key_mask", "key_mask"),)
        }
        full = {f"{side}_mask": torch.ones_like(sides[side], dtype=torch.bool) for side in sides}
        expected.append(
            dual_cot_loss(
                sides["chosen"],
                sides["rejected"],
                full["chosen_mask"],
                full["rejected_mask"],
                masks["chosen_key_mask"],
                torch.tensor([example["rejected_fork_mask"]]),
                chosen_key_weight=2.0,
                rejected_key_weight=0.1,
                preference_weight=0.5,
                chosen_scope_mask=full["chosen_mask"],
                rejected_scope_mask=full["rejected_mask"],
            ).loss.item()
        )
    assert loss == pytest.approx(sum(expected) / 4, rel=1e-5)
