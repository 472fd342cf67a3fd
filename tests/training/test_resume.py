"""A run that is cut off and resumed, in every way that it can be."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROWS, byte_level_tokenizer, tiny_llama
from datasets import Dataset
from peft import LoraConfig
from test_invariants import config
from transformers import TrainerCallback

import edit_trl.training.resuming.checkpoints
from edit_trl import DualCoTTrainer
from edit_trl.cli.main import run_command
from edit_trl.cli.train import main, train_stage
from edit_trl.common.errors import InputError
from edit_trl.training.resuming.checkpoints import MANIFEST, UNFINISHED, last_checkpoint
from edit_trl.training.resuming.stopping import EXIT_CODE, StopSignals, TrainingStopped, handled

MANY_ROWS = [
    row | {"prompt": f"{n}. {row['prompt']}" * (1 + n), "id": f"{row['id']}{n}"} for n in range(3) for row in ROWS
][:11]


class CutOff(Exception):
    """Stands for the end of a process where the test needs its trainer again."""


class Stop(TrainerCallback):
    def __init__(self, step: int, how):
        self.step, self.how = step, how

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.how()


def cut_off():
    raise CutOff


def make_trainer(folder: Path, lora: bool, rows=MANY_ROWS, **options) -> DualCoTTrainer:
    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    defaults = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "random",
        "disable_tqdm": True,
    }
    return DualCoTTrainer(
        model,
        args=config(folder, **(defaults | options)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=byte_level_tokenizer(),
        peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear") if lora else None,
    )


def history(trainer) -> list[dict]:
    return [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in trainer.state.log_history
    ]


def assert_same(first: DualCoTTrainer, second: DualCoTTrainer) -> None:
    expected = dict(first.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert history(first) == history(second)


@pytest.mark.parametrize(
    ("lora", "step", "options"),
    [
        (True, 4, {"layout": "padded", "gradient_accumulation_steps": 2}),
        # A second epoch, its order of its own; sums that are logged two steps after a checkpoint.
        (False, 8, {"layout": "padded", "logging_steps": 3, "save_steps": 2}),
        (True, 5, {"layout": "tree", "max_tokens_per_batch": 450, "num_train_epochs": 4, "reference": "adapter_off"}),
        # The scores of the student before training: cached or not, they are the same, and so is what follows.
        (False, 7, {"layout": "tree", "reference": "precomputed", "preference_scope": "completion"}),
        # The last checkpoint is of an epoch's last step, and evaluation and logs are due after that step.
        (False, 6, {"layout": "tree", "logging_strategy": "epoch", "eval_strategy": "epoch", "save_steps": 6}),
        (True, 3, {"layout": "tree", "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}),
    ],
)
def test_ends_with_the_same_weights_and_log(tmp_path, lora, step, options):
    whole = make_trainer(tmp_path / "whole", lora, **options)
    whole.train()
    cut = make_trainer(tmp_path, lora, **options)
    cut.add_callback(Stop(step, cut_off))
    with pytest.raises(CutOff):
        cut.train()
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    resumed = make_trainer(tmp_path, lora, **options)
    output = resumed.train(resume_from_checkpoint=checkpoint)
    assert_same(whole, resumed)
    assert output.training_loss == history(whole)[-1]["train_loss"]


def test_a_run_that_has_made_its_last_step_makes_no_other(tmp_path):
    """In the middle of an epoch, where the Trainer would make one more."""
    whole = make_trainer(tmp_path, False, max_steps=4)
    whole.train()
    resumed = make_trainer(tmp_path, False, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert_same(whole, resumed)


def test_nothing_before_training_moves_the_random_state(tmp_path):
    first, second = (make_trainer(tmp_path / name, True, max_steps=2) for name in ("a", "b"))
    first.train()
    torch.rand(5)
    second.evaluate()
    second.state.log_history.clear()
    second.train()
    assert_same(first, second)


# Checkpoints that are not whole


def test_what_was_being_saved_is_removed_and_said(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    cut = make_trainer(tmp_path, True)
    flush = edit_trl.training.resuming.checkpoints._flush
    monkeypatch.setattr(  # the second checkpoint is written, and not named yet
        edit_trl.training.resuming.checkpoints,
        "_flush",
        lambda path: cut_off() if path.name.endswith("-2") else flush(path),
    )
    with pytest.raises(CutOff):
        cut.train()
    assert (folder / UNFINISHED / "checkpoint-2").is_dir()
    assert last_checkpoint(folder) == str(folder / "checkpoint-1")
    monkeypatch.undo()
    told = []
    monkeypatch.setattr(edit_trl.training.resuming.resumable.logger, "warning", told.append)
    resumed = make_trainer(tmp_path, True)
    resumed.train(resume_from_checkpoint=True)
    assert told == [f"removed from {folder} the unfinished files of a run that was cut off"]
    assert not (folder / UNFINISHED).exists()


def test_a_folder_that_is_no_whole_checkpoint_is_not_resumed_from(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, True, max_steps=2)
    trainer.train()
    folder = tmp_path / "run"
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-9")
    (folder / "checkpoint-9" / MANIFEST).unlink()
    told = []
    monkeypatch.setattr(edit_trl.training.resuming.checkpoints.logger, "warning", told.append)
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    assert told == [f"{folder / 'checkpoint-9'} is not complete: no {MANIFEST} in it; not resumed from"]


def test_the_limit_never_takes_the_only_good_one(tmp_path, monkeypatch):
    """While the next is being written, the one before is there; after that it is not."""
    seen = []
    finish = edit_trl.training.resuming.resumable.finish_checkpoint

    def look(draft, final, *args):
        seen.append(sorted(path.name for path in final.parent.glob("checkpoint-*")))
        finish(draft, final, *args)

    monkeypatch.setattr(edit_trl.training.resuming.resumable, "finish_checkpoint", look)
    trainer = make_trainer(tmp_path, True, max_steps=3, save_total_limit=1)
    trainer.train()
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_the_best_checkpoint_is_known_by_its_name_and_kept(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1, "max_steps": 4}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 1e-3}
    trainer = make_trainer(tmp_path, True, **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best == tmp_path / "run" / f"checkpoint-{trainer.state.best_global_step}"
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


@pytest.mark.parametrize(
    ("lora", "longest"), [(True, 10_000), (False, 200_000)], ids=["weights, by safetensors", "optimizer, by torch"]
)
def test_a_full_disk_is_said_and_the_checkpoint_before_is_intact(tmp_path, lora, longest, capfd):
    """A process that may write no file as long as it needs, after its first checkpoint."""
    if not (child := os.fork()):
        code = 1
        try:
            trainer = make_trainer(tmp_path, lora, save_steps=2)
            limits = longest, resource.RLIM_INFINITY
            trainer.add_callback(Stop(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)))
            code = run_command(lambda _: trainer.train() and 0, [])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    [said] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    folder = tmp_path / "run"
    assert f"checkpoint-4 could not be written to {folder}: " in said
    assert f"the checkpoint before, {folder / 'checkpoint-2'}, is intact" in said
    assert not (folder / UNFINISHED).exists()
    resumed = make_trainer(tmp_path, lora, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(tmp_path / "whole", lora, save_steps=2)
    whole.train()
    assert_same(whole, resumed)


def test_a_full_disk_while_the_model_is_saved_leaves_what_is_there(tmp_path):
    trainer = make_trainer(tmp_path, False, max_steps=1)
    trainer.train()
    trainer.save_model()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"the trained model could not be written to .*checkpoint-1, is int"):
            trainer.save_model()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


# Checkpoints of another run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 2e-2}, "learning_rate: 0.01 there, 0.02 now"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 there, 2 now"),
        ({"per_device_train_batch_size": 3}, "per_device_train_batch_size: 2 there, 3 now"),
        ({"layout": "padded"}, "layout: 'auto' there, 'padded' now"),
        ({"rows": MANY_ROWS[1:]}, "pairs: 11 there, 10 now"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, said):
    make_trainer(tmp_path, True, max_steps=1).train()
    other = make_trainer(tmp_path, True, **{"max_steps": 1} | change)
    with pytest.raises(InputError, match="belongs to another run") as error:
        other.train(resume_from_checkpoint=True)
    assert said in str(error.value)


def test_another_number_of_processes_or_adapter_is_refused(tmp_path):
    make_trainer(tmp_path, True, max_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["run"] |= {"processes": 4, "adapter r": 8}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="processes: 4 there, 1 now; adapter r: 8 there, 4 now"):
        make_trainer(tmp_path, True, max_steps=1).train(resume_from_checkpoint=str(checkpoint))


def test_weights_alone_and_other_folders_are_no_checkpoint(tmp_path):
    make_trainer(tmp_path, True, max_steps=1, save_only_model=True).train()
    trainer = make_trainer(tmp_path, True, max_steps=1)
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="has weights alone"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    with pytest.raises(InputError, match="is no checkpoint: it does not exist"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nothing"))


# Being told to stop


def test_a_signal_saves_after_the_step_and_the_run_goes_on(tmp_path):
    options = {"save_strategy": "no", "save_only_model": True}
    whole = make_trainer(tmp_path / "whole", True, **options)
    whole.train()
    stopped = make_trainer(tmp_path, True, **options)
    stopped.stop_signals = StopSignals()
    stopped.add_callback(Stop(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with (
        handled(stopped.stop_signals.receive),
        pytest.raises(TrainingStopped, match=r"stopped by SIGTERM after step 4 of 12; checkpoint-4 is in"),
    ):
        stopped.train()
    resumed = make_trainer(tmp_path, True, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same(whole, resumed)


def test_ctrl_c_saves_after_the_step_and_a_second_one_stops_at_once(tmp_path, capfd):
    def press(*numbers):
        for number in numbers:
            os.kill(os.getpid(), number)

    # The launcher passes Ctrl-C on as SIGTERM, which is no second one.
    for numbers, error in (
        ((signal.SIGINT, signal.SIGTERM), TrainingStopped),
        ((signal.SIGINT, signal.SIGTERM, signal.SIGINT), KeyboardInterrupt),
    ):
        trainer = make_trainer(tmp_path / error.__name__, True, save_strategy="no")
        trainer.stop_signals = StopSignals()
        trainer.add_callback(Stop(3, partial(press, *numbers)))
        with handled(trainer.stop_signals.receive), pytest.raises(error) as stopped:
            trainer.train()
        assert "saving after this step; Ctrl-C again stops at once" in capfd.readouterr().err
        if error is TrainingStopped:
            assert (str(stopped.value)[:24], stopped.value.code) == ("stopped by SIGINT after ", 130)
            assert Path(last_checkpoint(tmp_path / "TrainingStopped" / "run")).name == "checkpoint-4"


def test_a_signal_before_training_ends_the_process(tmp_path):
    signals = StopSignals()
    before = signal.getsignal(signal.SIGTERM)
    with handled(signals.receive), pytest.raises(TrainingStopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) == before


# Through the command

RECIPE = """
model_name_or_path: {student}
dataset_name: {data}
output_dir: {output}
use_peft: true
lora_r: 4
lora_dropout: 0.1
lora_target_modules: all-linear
per_device_train_batch_size: 2
num_train_epochs: 40
learning_rate: 1.0e-2
gradient_checkpointing: false
use_cpu: true
bf16: false
report_to: none
logging_steps: 1
disable_tqdm: true
save_strategy: "no"
"""


@pytest.fixture
def recipe(tmp_path, saved_student):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in MANY_ROWS), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(student=saved_student, data=data, output=tmp_path / "out"))
    return path


def test_a_run_cut_off_before_it_began_can_be_begun(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json.draft").write_text('{"edit_tr')
    assert run_command(train_stage, ["--config", str(recipe), "--max_steps", "1"]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"]


def test_a_named_checkpoint_of_another_recipe_is_refused_before_anything_is_written(recipe, tmp_path, capfd):
    options = ["--config", str(recipe), "--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    assert run_command(train_stage, options) == 0
    named = ["--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1")]
    named += ["--output_dir", str(tmp_path / "other")]
    assert run_command(train_stage, [*options, *named, "--learning_rate", "0.5"]) == 2
    assert "belongs to another run (learning_rate: 0.01 there, 0.5 now)" in capfd.readouterr().err
    assert run_command(train_stage, [*options, *named, "--lora_r", "8"]) == 2
    assert "belongs to another run (lora_r: 4 there, 8 now)" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()
    assert run_command(train_stage, [*options, *named]) == 0


def test_the_help_says_how_a_run_is_stopped(capfd):
    assert main(["--help"]) == 0
    assert "exits with code 75" in " ".join(capfd.readouterr().out.split())


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start a command and wait until it trains."""
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    while "  loss " not in log.read_text() and process.poll() is None:
        time.sleep(0.05)
    return process


def test_ctrl_c_in_a_terminal(recipe, tmp_path):
    """The terminal interrupts the command and the process that trains."""
    command = [sys.executable, "-m", "edit_trl.cli.main", "train", "--config", str(recipe)]
    with (tmp_path / "log.txt").open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    log = tmp_path / "log.txt"
    while "  loss " not in log.read_text() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) == 130
    assert "stopped by SIGINT after step" in log.read_text()
    assert f"to resume: edit-trl train --config {recipe}" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert last_checkpoint(tmp_path / "out") is not None


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["edit-trl", "accelerate", "torchrun"])
def test_a_signal_reaches_the_process_that_trains(recipe, tmp_path, launcher):
    """To the one process that a person, systemd or Slurm knows of; the run ends as if never stopped."""
    run = ["edit_trl.cli.train", "--config", str(recipe)]
    command = {
        "edit-trl": [sys.executable, "-m", "edit_trl.cli.main", "train", *run[1:]],
        "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", *run],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", *run],
    }[launcher]
    log, folder = tmp_path / "log.txt", tmp_path / "out"
    process = start(command, log)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=120)
    deadline = time.monotonic() + 60
    while last_checkpoint(folder) is None and time.monotonic() < deadline:
        time.sleep(0.1)  # accelerate launch does not wait for what it started
    checkpoint = Path(last_checkpoint(folder))
    assert "stopped by SIGTERM after step" in log.read_text(), log.read_text()
    processes = 2 if launcher == "torchrun" else 1
    assert json.loads((checkpoint / MANIFEST).read_text())["run"]["processes"] == processes
    if launcher == "edit-trl":
        assert code == EXIT_CODE
        assert f"to resume: edit-trl train --config {recipe}" in log.read_text()
    if launcher == "torchrun":
        done = subprocess.run([sys.executable, "-m", *run], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert "(processes: 2 there, 1 now)" in done.stderr
