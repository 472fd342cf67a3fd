"""A two-stage recipe for a tiny student, and its stages run in this process."""

import json

import pytest
from conftest import ROWS, conversational

from edit_trl.cli.main import run_command
from edit_trl.cli.train import train_stage

RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
output_dir: {output}
use_peft: true
lora_r: 4
lora_target_modules: all-linear
per_device_train_batch_size: 2
max_steps: 2
learning_rate: 1.0e-2
lr_scheduler_type: constant
gradient_checkpointing: false
use_cpu: true
bf16: false
report_to: none
logging_steps: 1
save_strategy: "no"
stages:
  - name: warm_up
    chosen_key_weight: 1.0
    preference_weight: 0.0
    normalization: step
  - name: key_steps
    learning_rate: 2.0e-3
"""


@pytest.fixture
def recipe(tmp_path, saved_student):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(conversational(row)) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(student=saved_student, data=data, output=tmp_path / "out"))
    return path


def stage(recipe, name: str | None, *options: str) -> int:
    """One stage in this process, as its launched process runs it."""
    names = ["--stage", name] if name else []
    return run_command(train_stage, ["--config", str(recipe), *names, *options])


def run_file(folder) -> dict:
    return json.loads((folder / "run.json").read_text())
