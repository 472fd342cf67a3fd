"""The recipe of Step-DPO: its loss is DPO's on the first step that differs, with the common steps as the prompt."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_llama
from trainers import make_trainer

RECIPE = Path(__file__).parents[2] / "recipes" / "baselines" / "step_dpo.yaml"
PROMPT = "Tom has 3 pens, buys 4 and loses 2. How many?\n"
COMMON = "3 + 4 = 7."
STEPS = {"chosen": " 7 - 2 = 5.", "rejected": " 7 - 2 = 6."}
REST = {"chosen": " So 5. Therefore, the answer is 5.", "rejected": " So 6. Therefore, the answer is 6."}


def log_probability(model, tokenizer, before: str, step: str) -> float:
    """The log-probability of a step after a text."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + step)]
    assert ids[1][: len(ids[0])] == ids[0]
    with torch.no_grad():
        logps = model(torch.tensor([ids[1]])).logits[0].log_softmax(-1)
    return sum(logps[i - 1, ids[1][i]].item() for i in range(len(ids[0]), len(ids[1])))


def test_the_loss_is_dpo_of_the_step_after_the_common_steps(tmp_path, tokenizer):
    stage = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"][1]
    options = {name: value for name, value in stage.items() if name not in ("name", "dataset_train_split")}
    options |= {"learning_rate": 0.05, "lr_scheduler_type": "constant", "optim": "sgd", "max_steps": 2}
    row = {"prompt": PROMPT} | {side: COMMON + STEPS[side] + REST[side] for side in STEPS}
    trainer = make_trainer(tmp_path, tokenizer, model=tiny_llama(), rows=[row], logging_steps=1, **options)
    # SGD with the same rate, by hand: the second loss is that of the model after the first step.
    student, reference = tiny_llama(), tiny_llama()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    student.train()
    before = PROMPT + COMMON
    ratio = 0.0
    for side, sign in (("chosen", 1), ("rejected", -1)):
        ids = tokenizer(before + STEPS[side], add_special_tokens=False)["input_ids"]
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        logps = student(torch.tensor([ids])).logits[0].log_softmax(-1)
        ratio = ratio + sign * sum(logps[i - 1, ids[i]] for i in range(start, len(ids)))
    ratio = ratio - ratio.detach()  # the reference is the student before its first step
    loss = -torch.nn.functional.logsigmoid(0.5 * ratio)
    loss.backward()
    assert not trainer.args.max_grad_norm  # no clipping
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    student.eval()
    gains = {
        side: log_probability(student, tokenizer, before, step) - log_probability(reference, tokenizer, before, step)
        for side, step in STEPS.items()
    }
    margin = 0.5 * (gains["chosen"] - gains["rejected"])
    assert margin > 0.01
    assert losses[1] == pytest.approx(math.log(1 + math.exp(-margin)), abs=1e-5)
