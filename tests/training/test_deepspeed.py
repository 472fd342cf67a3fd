"""ZeRO-2 and ZeRO-3 as recipes/accelerate has them: two processes on the CPU do what one does.

Only where DeepSpeed is installed; it compiles a part of itself at its first start, which takes minutes. With
`use_cpu` accelerate leaves DeepSpeed out; without it, no GPU in sight and `ddp_backend: gloo`, it does not.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROWS
from safetensors.torch import load_file

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
gradient_accumulation_steps: 2
max_steps: 4
learning_rate: 1.0e-3
lr_scheduler_type: constant
gradient_checkpointing: false
bf16: false
report_to: none
logging_steps: 1
disable_tqdm: true
layout: tree
# Each batch has other rows: in a tree, those that are the same share their tokens.
train_sampling_strategy: sequential
save_strategy: "no"
"""
# What is logged is a float32 sum in another order, after up to three steps of Adam.
LOG_TOLERANCE = 1e-4
# Adam makes much of a gradient that is nearly zero; each step moves a weight by about 1e-3.
WEIGHT_TOLERANCE = 1e-4
# What a process may end with once all is saved, as seen in 2 of about 10 runs of ZeRO-3: torch's gloo threads
# are still there when the interpreter is gone.
ABORTED = "terminate called without an active exception"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")]


def run(folder: Path, launcher: list[str], options: list[str]) -> dict:
    """Train by `python -m launcher`; what was logged and the weights."""
    # DeepSpeed looks for ninja on the PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PATH": path}
    recipe = ["--config", str(folder.parent / "recipe.yaml"), "--output_dir", str(folder)]
    command = [sys.executable, "-m", *launcher, "edit_trl.cli.train", *recipe, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    finished = done.returncode == 0 or ((folder / "run.json").is_file() and ABORTED in done.stderr)
    assert finished, done.stderr[-3000:]
    assert json.loads((folder / "run.json").read_text())["finished"], done.stderr[-3000:]
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {"logs": logs, "weights": load_file(folder / "model.safetensors")}


def train(folder: Path, stage: int | None, options: list[str]) -> dict:
    if stage is None:
        return run(folder, [], ["--use_cpu", "true", "--per_device_train_batch_size", "4", *options])
    config = str(CONFIGS / f"zero{stage}.yaml")
    launcher = ["accelerate.commands.launch", "--config_file", config, "--main_process_port", "0", "-m"]
    return run(folder, launcher, ["--ddp_backend", "gloo", "--per_device_train_batch_size", "2", *options])


@pytest.fixture
def recipe(tmp_path, saved_student):
    data = tmp_path / "rows.jsonl"
    rows = [row | {"id": f"{row['id']}{n}"} for n in range(4) for row in ROWS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(student=saved_student, data=data))


# In a warm-up the wrong chains are run beside the correct ones, without gradients.
@pytest.mark.parametrize("options", [[], ["--preference_weight", "0.0"]], ids=["key_steps", "warm_up"])
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_sharded_by_zero_train_as_one_does(recipe, tmp_path, stage, options):
    one, two = train(tmp_path / "one", None, options), train(tmp_path / "two", stage, options)
    keys = ("loss", "logps/chosen", "key_accuracy", "fork/confidence", "num_tokens")
    logs = [[{key: entry[key] for key in keys} for entry in r["logs"] if "loss" in entry] for r in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 4
    for ours, theirs in zip(*logs, strict=True):
        assert theirs == pytest.approx(ours, rel=LOG_TOLERANCE)
    assert two["weights"].keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=WEIGHT_TOLERANCE)
