"""Checkpoints that something is missing from, records that are broken, and a folder that another process trains in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import make_trainer

import edit_trl.training.resuming.checkpoints as checkpoints
from edit_trl.cli.main import run_command
from edit_trl.cli.train import train_stage
from edit_trl.common.errors import InputError
from edit_trl.common.locks import FOLDER_LOCK
from edit_trl.training.resuming.checkpoints import holding, last_checkpoint
from edit_trl.training.resuming.manifest import MANIFEST, fault_of

PARTS = (
    *("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("progress_0.json", "trainer_state.json", MANIFEST),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with the checkpoints 1, 2 and 3 of 3."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, True, max_steps=3).train()
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def told(monkeypatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(checkpoints.logger, "warning", texts.append)
    return texts


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def of_an_earlier_version(checkpoint: Path) -> None:
    """As it was written before the manifest listed the files."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["files"]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [remove, empty, cut, change])
def test_a_damaged_checkpoint_is_not_resumed_from(copy, told, part, damage):
    if (part, damage) == (MANIFEST, change):
        pytest.skip("the manifest is the one file that nothing else describes")
    newest = copy / "checkpoint-3"
    damage(newest / part)
    assert last_checkpoint(copy) == str(copy / "checkpoint-2")
    (text,) = told
    assert text.startswith(f"{newest} is ")
    assert part in text
    assert text.endswith("; not resumed from")
    with pytest.raises(InputError, match=part):
        checkpoints.check_checkpoint(newest, {})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [remove, empty, cut])
def test_one_of_an_earlier_version_is_looked_at_as_far_as_that_goes(copy, told, part, damage):
    if (part, damage) == ("progress_0.json", remove):
        pytest.skip("one per process, and how many there were is not known")
    newest = copy / "checkpoint-3"
    of_an_earlier_version(newest)
    assert fault_of(newest) is None
    damage(newest / part)
    assert last_checkpoint(copy) == str(copy / "checkpoint-2")
    assert part in told[0] or (damage is remove and "it has no weights" in told[0])


def test_the_run_ends_as_one_that_was_left_alone(run, copy):
    """From the checkpoint before the one that has lost its optimizer; and from one of an earlier version."""
    expected = load_file(run / "checkpoint-3" / "adapter_model.safetensors")
    (copy / "checkpoint-3" / "optimizer.pt").unlink()
    for earlier in (False, True):
        if earlier:
            of_an_earlier_version(copy / "checkpoint-2")
            shutil.rmtree(copy / "checkpoint-3")
        trainer = make_trainer(copy.parent, True, max_steps=3)
        trainer.train(resume_from_checkpoint=True)
        resumed = load_file(copy / "checkpoint-3" / "adapter_model.safetensors")
        assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


def test_none_is_left(copy, told):
    for number, part in enumerate(("optimizer.pt", "scheduler.pt", "rng_state.pth"), start=1):
        (copy / f"checkpoint-{number}" / part).unlink()
    with pytest.raises(InputError) as caught:
        last_checkpoint(copy)
    text = str(caught.value)
    assert text.startswith(f"no checkpoint in {copy} can be resumed from: checkpoint-3 is damaged: ")
    assert all(part in text for part in ("optimizer.pt", "scheduler.pt", "rng_state.pth"))
    assert text.endswith("remove the checkpoints to start from the beginning")
    assert told == []


def test_the_card_of_a_checkpoint_may_be_edited(copy):
    (copy / "checkpoint-3" / "README.md").write_text("mine")
    (copy / "checkpoint-3" / "notes.txt").write_text("mine")
    assert fault_of(copy / "checkpoint-3") is None


@pytest.mark.parametrize("content", ["[1]", '{"run": 1, "resumable": true}', '{"run": {}}', "[" * 100_000])
def test_a_manifest_that_is_none(copy, content):
    (copy / "checkpoint-3" / MANIFEST).write_text(content)
    assert fault_of(copy / "checkpoint-3").startswith("is damaged: ")


def test_one_of_trl_has_no_manifest(copy):
    """The newest that has all its parts; a run that was killed while it wrote its first one starts anew."""
    for number in (1, 2, 3):
        (copy / f"checkpoint-{number}" / MANIFEST).unlink()
    assert last_checkpoint(copy, described=False) == str(copy / "checkpoint-3")
    cut(copy / "checkpoint-3" / "optimizer.pt")
    assert last_checkpoint(copy, described=False) == str(copy / "checkpoint-2")
    for number in (1, 2):
        (copy / f"checkpoint-{number}" / "trainer_state.json").unlink()
    assert last_checkpoint(copy, described=False) is None


# The command

RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
output_dir: {output}
per_device_train_batch_size: 2
max_steps: 2
save_strategy: steps
save_steps: 1
use_cpu: true
report_to: none
gradient_checkpointing: false
"""


@pytest.fixture
def recipe(tmp_path, saved_student):
    from conftest import ROWS

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(student=saved_student, data=data, output=tmp_path / "out"))
    return path


def test_records_that_are_broken_are_named(recipe, tmp_path, capfd):
    output = tmp_path / "out"
    assert run_command(train_stage, ["--config", str(recipe)]) == 0
    assert not {file.name for file in output.iterdir()} & set(FOLDER_LOCK)
    record = output / "run.json"
    whole = json.loads(record.read_text())
    for content in ("", "{", "[1]", '{"finished": null}', '{"options": []}', "[" * 100_000):
        record.write_text(content)
        assert run_command(train_stage, ["--config", str(recipe)]) == 2
        assert f"{record}" in capfd.readouterr().err.partition("error: ")[2]
    record.write_text(json.dumps(whole | {"finished": None}))
    for checkpoint in output.glob("checkpoint-*"):
        (checkpoint / "rng_state.pth").write_bytes(b"")
    assert run_command(train_stage, ["--config", str(recipe)]) == 2
    errors = capfd.readouterr().err
    assert f"error: no checkpoint in {output} can be resumed from: checkpoint-2 is damaged: " in errors
    assert "rng_state.pth has 0 bytes" in errors


# One training in a folder

HOLD = """
import sys, time
from edit_trl.training.resuming.checkpoints import holding
from transformers import TrainingArguments
with holding(sys.argv[1], TrainingArguments(sys.argv[1], use_cpu=True)):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_training_is_told_which_process_holds_the_folder(tmp_path, holder, recipe, capfd):
    assert run_command(train_stage, ["--config", str(recipe), "--output_dir", str(tmp_path / "run")]) == 2
    assert f"is in use by process {holder.pid}" in capfd.readouterr().err
    trainer = make_trainer(tmp_path, False, max_steps=1)
    with pytest.raises(InputError, match=f"run is in use by process {holder.pid}; wait until it ends"):
        trainer.train()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    trainer.train()  # a killed process holds nothing
    assert trainer.state.global_step == 1


def test_holding_leaves_nothing_behind(tmp_path):
    args = make_trainer(tmp_path, False).args
    folder = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="bad rows"), holding(folder, args), holding(folder, args):
        raise ValueError("bad rows")  # in the trainer, which is in the command
    assert not (tmp_path / "a").exists()
    with holding(folder, args):
        (folder / "run.json").write_text("{}")
    assert [file.name for file in folder.iterdir()] == ["run.json"]


def test_other_processes_of_a_run_hold_nothing(tmp_path, holder):
    args = make_trainer(tmp_path, False).args
    args.distributed_state.process_index = 1
    try:
        with holding(tmp_path / "run", args):
            time.sleep(0)
    finally:
        args.distributed_state.process_index = 0
