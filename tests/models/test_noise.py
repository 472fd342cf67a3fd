"""NEFTune's noise: that of a chain in both layouts."""

import pytest
import torch
from conftest import ROWS, tiny_llama
from datasets import Dataset
from peft import LoraConfig
from test_invariants import config
from trainers import make_trainer

from edit_trl import DualCoTTrainer
from edit_trl.models.pairs.noise import noisy_embeddings

ALPHA = 5.0
LONG = [row | {"prompt": f"{n}. {row['prompt']}" * (1 + 2 * n)} for n, row in enumerate(ROWS)]


def seen_noise(trainer, **call) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The input of one forward in training, the noise that its embeddings got, and the batch."""
    embeddings, seen = trainer.accelerator.unwrap_model(trainer.model).get_input_embeddings(), []
    weight = embeddings.weight
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(trainer.train_dataset))])
    trainer.model.train()
    with noisy_embeddings(trainer.model, ALPHA, trainer.score_pairs.chain_lengths):
        hook = embeddings.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        trainer.score_pairs(trainer.model, batch, **call)
        hook.remove()
    ids, output = seen[-1]
    return ids, (output - weight[ids]).detach(), batch


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("with_rejected", [True, False])
def test_a_token_gets_the_noise_of_its_chain(tmp_path, tokenizer, lora, with_rejected):
    """At most α / sqrt(L d), and as large as uniform noise is, whatever else is in the batch."""
    peft_config = LoraConfig(r=2, target_modules="all-linear") if lora else None
    for layout in ("padded", "tree"):
        trainer = make_trainer(tmp_path, tokenizer, rows=LONG, layout=layout, peft_config=peft_config)
        _, noise, batch = seen_noise(trainer, with_rejected=with_rejected)
        size = noise.size(-1)
        examples, sides = batch["layout"].examples, ("chosen", "rejected")[: 1 + with_rejected]
        lengths = {s: [len(ex["prompt_ids"]) + len(ex[f"{s}_ids"]) for ex in examples] for s in sides}
        in_order = [length for side in sides for length in lengths[side]]
        if layout == "padded":
            rows = [(row, slice(0, length)) for row, length in enumerate(in_order)]
            parts = [(noise[row, part], part.stop) for row, part in rows]
        else:  # the correct chains have what is shared, the wrong ones what they add
            stretches = batch["layout"].stretches[: len(lengths) * len(examples)]
            parts = [
                (noise[0, start:stop], stop - start + sum(b - a for a, b in path)) for start, stop, path in stretches
            ]
            assert sorted(length for _, length in parts) == sorted(in_order)
        for values, length in parts:
            magnitude = ALPHA / (length * size) ** 0.5
            assert values.abs().max() <= magnitude * 1.001
            if values.numel() > 500:
                assert values.std().item() == pytest.approx(magnitude / 3**0.5, rel=0.1)
                assert values.abs().max() > 0.95 * magnitude


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_training_adds_it_and_nothing_else_does(tmp_path, tokenizer, layout):
    losses = {}
    for alpha in (None, 5.0):
        model = tiny_llama()
        trainer = DualCoTTrainer(
            model,
            args=config(tmp_path, layout=layout, neftune_noise_alpha=alpha, max_steps=2, learning_rate=0.0),
            train_dataset=Dataset.from_list(LONG),
            eval_dataset=Dataset.from_list(LONG),
            processing_class=tokenizer,
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] == before
        assert not model.get_input_embeddings()._forward_hooks
        assert not hasattr(model.get_input_embeddings(), "neftune_noise_alpha")
        losses[alpha] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[None][0] == pytest.approx(losses[None][1], rel=1e-5)
    assert losses[5.0][0] != losses[5.0][1]
    assert losses[5.0] == pytest.approx(losses[None], rel=0.05)
