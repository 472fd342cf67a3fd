"""The lines about a training run, in a pipe and at a terminal."""

import json
import re
import subprocess
import sys
import time

import pytest
from conftest import ROWS
from terminals import CURSOR_OFF, CURSOR_ON, WIDTH, at_a_terminal, shown_lines
from trainers import make_trainer
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

TIME = r"\d+:\d\d"


def command(recipe, *options: str) -> list[str]:
    return [sys.executable, "-m", "edit_trl.cli.main", "train", "--config", str(recipe), *options]


def matching(pattern: str, lines: list[str]) -> list[str]:
    return [line for line in lines if re.fullmatch(pattern, line)]


def test_lines_of_two_stages_in_a_pipe(recipe, tmp_path):
    """A warm-up with a suite and evaluations, then DPO by TRL's own trainer, of which other things are known."""
    data = tmp_path / "rows.jsonl"
    text = recipe.read_text().replace("  - name: key_steps\n", "  - name: key_steps\n    trainer: dpo\n")
    suite = f"    normalization: step\n    suite_eval_steps: 2\n    suite_dataset_name: {data}\n"
    recipe.write_text(text.replace("    normalization: step\n", suite))
    options = ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_dataset_name", str(data)]
    done = subprocess.run(command(recipe, *options), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "{'" not in done.stdout + done.stderr  # no dictionary
    lines = done.stderr.splitlines()
    first, second = lines.index("stage warm_up (1 of 2)"), lines.index("stage key_steps (2 of 2)")
    known = r"loss \d\.\d{3}  key accuracy \d+%  fork \d\.\d\d"
    speed = r"[\d,]+ tokens/s"
    assert len(matching(rf"step 1/2  {known}  {speed}  {TIME} left", lines[first:second])) == 1
    assert len(matching(rf"step 2/2  {known}  {speed}  in {TIME}", lines[first:second])) == 1
    # One in the run, and one at its end.
    assert len(matching(rf"evaluation  step 2/2  {known}", lines[first:second])) == 2
    suite = r"suite  step 2/2  preference \d+%  margin -?\d\.\d{3}  key preference \d+%  key margin .*"
    assert matching(suite, lines[first:second])
    preferred = r"loss \d\.\d{3}  reward accuracy \d+%  reward margin -?\d\.\d{3}"
    assert len(matching(rf"step 1/2  {preferred}  {speed}  {TIME} left", lines[second:])) == 1
    assert len(matching(rf"evaluation  step 2/2  {preferred}", lines[second:])) == 2
    # Once, for both stages.
    [legend] = [number for number, line in enumerate(lines) if line == "What the lines show:"]
    assert legend > second
    explained = matching(r"  \w.*", lines[legend:])
    labels = [line[2:].partition("  ")[0] for line in explained]
    assert labels[:5] == ["loss", "key accuracy", "fork", "reward accuracy", "reward margin"]
    assert {"preference", "margin", "key preference", "key margin"} <= set(labels)
    assert max(map(len, lines[legend:-1])) <= 80
    files = [tmp_path / "out" / name / "trainer_state.json" for name in ("warm_up", "key_steps")]
    assert lines[-1] == f"All metrics: `log_history` in {files[0]} and {files[1]}"
    log = json.loads(files[0].read_text())["log_history"]
    assert len(log[0]) > 15
    # What has been done is not explained again.
    again = subprocess.run(command(recipe, *options), capture_output=True, text=True, timeout=600)
    assert again.returncode == 0
    assert "What the lines show" not in again.stderr


def test_lines_at_a_terminal(recipe, tmp_path):
    recipe.write_text(recipe.read_text().split("stages:")[0])
    options = ["--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps"]
    options += ["--save_steps", "3", "--use_peft", "false", "--eval_dataset_name", str(tmp_path / "rows.jsonl")]
    code, written = at_a_terminal(command(recipe, *options))
    lines = shown_lines(written)
    assert code == 0, lines
    assert "{'" not in written
    at = max(number for number, line in enumerate(lines) if line.startswith("Loading weights"))
    own = [line for line in lines[at:] if line.startswith(("step", "loss", "evaluat", "  "))]
    assert len(own) > 8
    assert max(map(len, own)) <= WIDTH
    assert any(line.startswith("step  ━") for line in lines)
    # The last line stays, and the raw ones of libraries do not cut through it.
    assert len([line for line in lines if re.fullmatch(rf"step 6/6  loss .*  in {TIME}", line.strip())]) == 1
    assert len([line for line in lines if line.startswith("evaluation  step 3/6  loss ")]) == 1
    assert not [line for line in lines[at:] if "Writing model shards" in line and "step" in line]
    assert CURSOR_OFF in written
    assert written.rindex(CURSOR_ON) > written.rindex(CURSOR_OFF)


def test_a_trainer_in_python_shows_its_metrics_too(tmp_path, tokenizer, capsys):
    trainer = make_trainer(
        tmp_path, tokenizer, rows=ROWS, eval_rows=ROWS[:2], max_steps=2, per_device_eval_batch_size=1
    )
    trainer.compute_metrics = lambda prediction: {"rows_of_this_set": len(prediction.predictions)}
    bars = logging.is_progress_bar_enabled()
    trainer.train()
    trained = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in trained if line.startswith("step")] == ["step 1/2", "step 2/2"]
    trainer.evaluate()
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluation")]
    assert line.startswith("evaluation  step 2/2  loss ")
    assert line.endswith("  rows of this set 2")
    trainer.evaluate({"others": trainer.eval_dataset, "more": trainer.eval_dataset})
    names = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("evaluation")]
    assert names == ["evaluation others", "evaluation more"]
    assert logging.is_progress_bar_enabled() == bars


@pytest.mark.parametrize(("plain", "name"), [(False, ProgressCallback), (True, PrinterCallback)])
def test_it_is_removed_by_the_name_of_what_it_replaces(tmp_path, tokenizer, capsys, plain, name):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=1, disable_tqdm=plain)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert not {PrinterCallback, ProgressCallback} & set(kinds)
    trainer.remove_callback(name)
    capsys.readouterr()
    trainer.train()
    output = capsys.readouterr()
    assert "loss" not in output.out + output.err


class _Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("here")


def test_an_error_ends_the_display(tmp_path, tokenizer, capsys):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=3)
    trainer.add_callback(_Fails())
    with pytest.raises(RuntimeError, match="here"):
        trainer.train()
    assert matching(rf"step 1/3  .*in {TIME}", capsys.readouterr().err.splitlines())
    assert trainer._display._progress is None


class _StartedBefore(TrainerCallback):
    """Makes it look as if the training had begun ten thousand seconds earlier."""

    def __init__(self, trainer):
        self._trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self._trainer._display._progress._started = time.monotonic() - 10_000


def test_a_resumed_run_shows_its_step_and_the_time_that_is_left(tmp_path, tokenizer, capsys):
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 6}
    make_trainer(tmp_path, tokenizer, **options).train()
    capsys.readouterr()
    trainer = make_trainer(tmp_path, tokenizer, **options)
    trainer.add_callback(_StartedBefore(trainer))
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines] == [f"step {step}/10" for step in (7, 8, 9, 10)]
    # One new step in 10,000 seconds; three are left. How many tokens it has run is not known yet.
    assert re.search(r"  100\d\d\.\d s each  8:2\d:\d\d left$", lines[0])
    assert re.search(r"tokens/s  2:4\d:\d\d left$", lines[1])  # two in 10,000 seconds, two are left
