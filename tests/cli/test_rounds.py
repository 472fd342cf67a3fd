"""Rounds: sample the student, pair its mistakes, train, measure, and again; the student is real and slips."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import tiny_llama
from safetensors.torch import load_file
from toy_students import make_toy_student, toy_question_file

from edit_trl.cli.main import main
from edit_trl.cli.rounds import _has_fallen, check_rounds
from edit_trl.common.errors import InputError
from edit_trl.teachers.generate_config import read_generate_config

RECIPES = Path(__file__).parents[2] / "recipes" / "rounds"
TRAIN = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
}


@pytest.fixture(scope="session")
def toy_student(tmp_path_factory) -> Path:
    return make_toy_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def recipe(tmp_path, toy_student):
    """Writes the files of a recipe; returns its path."""
    questions = toy_question_file(tmp_path / "questions.jsonl", 0, 20)
    dev = toy_question_file(tmp_path / "dev.jsonl", 20, 30)

    def write(train=None, **changes) -> Path:
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(TRAIN | (train or {})))
        rft = {"view": "chosen", "preference_weight": 0.0, "chosen_key_weight": 1.0}
        (tmp_path / "rft.yaml").write_text(yaml.safe_dump(TRAIN | rft))
        (tmp_path / "dev.yaml").write_text(yaml.safe_dump({"version": 1, "dataset_name": str(dev)}))
        values = {"teacher": "none", "pairs": "closest", "student": str(toy_student), "rounds": 2}
        values |= {"dataset_name": str(questions), "max_tokens": 64, "samples": 3, "student_temperature": 0.6}
        values |= {"train_recipe": "train.yaml", "control_recipe": "rft.yaml", "dev_task": "dev.yaml"}
        values |= {"send_seed": True, "output_dir": str(tmp_path / "out")} | changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        return path

    return write


def generate(path: Path) -> int:
    return main(["generate", "--config", str(path)])


def run(path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edit_trl.cli.main", "generate", "--config", path, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)


def kill_when_there(file: Path, path: Path, *words: object) -> None:
    """Run the command, and kill it as soon as a file is there."""
    command = [sys.executable, "-m", "edit_trl.cli.main", "generate", "--config", path, *words]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not file.exists():
        assert process.poll() is None, f"it ended without {file}"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def state_of(folder: Path) -> dict:
    return json.loads((folder / "rounds.json").read_text(encoding="utf-8"))


def without_times(state: dict) -> dict:
    for one in state["rounds"]:
        one["making_seconds"] = one["training_seconds"] = None
    return state


# The rate is so high that the first trained student is worse: the rounds stop.
TOO_FAST = {"learning_rate": 0.3}


def test_rounds_are_trained_and_measured_until_the_accuracy_falls(recipe, tmp_path, capsys):
    path = recipe(TOO_FAST, rounds=4)
    assert generate(path) == 0
    told = capsys.readouterr()
    state = state_of(tmp_path / "out")
    assert state["start"]["accuracy"] > 0.5
    (first,) = state["rounds"]
    assert first["dev"]["accuracy"] < state["start"]["accuracy"]
    assert "stopped after round 1" in told.err
    assert "no round is better than the student that they started from" in told.out
    assert (first["right"] + first["wrong"] <= 60, first["steps"], first["questions"]) == (True, 2, 20)
    dropped = json.loads((tmp_path / "out/round_1/report.json").read_text())["dropped"]
    assert first["mixed"] == 20 - len({*dropped["every sample is right"], *dropped.get("no sample is right", [])})
    assert first["pairs"] >= 1
    assert first["making_tokens"] >= 60 * 20  # each chain has four steps of six tokens at least, beside spaces
    assert first["training_tokens"] > 0
    assert first["control"]["accuracy"] >= 0
    weights = {
        name: load_file(tmp_path / "out/round_1" / name / "model.safetensors") for name in ("student", "control")
    }
    assert any(not weights["student"][key].equal(weights["control"][key]) for key in weights["student"])
    assert "dev accuracy (95%)" in told.out
    tables = told.out[told.out.index("round  ") : told.out.index("\n\nno round")]
    assert max(map(len, tables.splitlines())) <= 80
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    assert generate(path) == 0
    assert "answering" not in capsys.readouterr().err  # nothing is sampled, trained or measured again
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.slow
def test_a_killed_command_resumes_with_the_same_state(recipe, tmp_path):
    """Killed while it measures, samples, exports and trains."""
    path, other = recipe(TOO_FAST), tmp_path / "killed"
    assert generate(path) == 0
    for place in (
        *("dev/evaluation.json", "journal-0.sqlite", "round_1/dual.parquet", "round_1/student/run.json"),
        *("round_1/dev/evaluation.json", "round_1/control/run.json", "round_1/control_dev/evaluation.json"),
    ):
        kill_when_there(other / place, path, "--output_dir", other)
        file = other / "rounds.json"
        assert not file.exists() or not state_of(other)["rounds"]
    assert run(path, "--output_dir", other).returncode == 0
    state = state_of(tmp_path / "out")
    expected = json.loads(json.dumps(without_times(state)).replace(f"{tmp_path}/out", str(other)))
    assert without_times(state_of(other)) == expected


def test_the_adapter_of_a_round_is_trained_further_in_the_next(recipe, tmp_path, toy_student, capsys):
    """With the recipes for training as they are shipped."""
    files = {"train_recipe": str(RECIPES / "train.yaml"), "control_recipe": str(RECIPES / "rft.yaml")}
    assert generate(recipe(**files, dev_task=None)) == 0
    first, second = (tmp_path / f"out/round_{number}/student" for number in (1, 2))
    for folder in (first, second, first.parent / "control", second.parent / "control"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(toy_student)
    before, after = (load_file(one / "adapter_model.safetensors") for one in (first, second))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    # LoRA's A is drawn from (-1/8, 1/8) for 64 inputs: a new adapter would be nowhere near that of the round before.
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.01
    assert f"the last student: {second}" in capsys.readouterr().out


def test_a_later_student_without_pairs_ends_with_the_rounds_before_it(recipe, tmp_path, capsys):
    # At this rate the student of the first round writes nothing that ends in an answer.
    told = refused(recipe({"learning_rate": 10.0}, control_recipe=None, dev_task=None), capsys)
    assert "round 2: no pair is left" in told
    assert f"the last student: {tmp_path / 'out/round_1/student'}" in told
    assert len(state_of(tmp_path / "out")["rounds"]) == 1


def test_a_control_of_several_stages_is_refused(recipe, tmp_path, capsys):
    stages = tmp_path / "stages.yaml"
    stages.write_text(yaml.safe_dump(TRAIN | {"stages": [{"name": "one"}, {"name": "two"}]}))
    assert "the control trains in one stage" in refused(recipe(control_recipe=str(stages)), capsys)
    assert not (tmp_path / "out").exists()


def test_a_round_of_rpo_trains_with_trls_trainer(recipe, tmp_path):
    """The shipped recipe, but for what a tiny student on a CPU needs."""
    values = yaml.safe_load((RECIPES / "rpo.yaml").read_text(encoding="utf-8"))
    small = {"max_steps": 1, "lora_r": 2, "lora_alpha": 4, "per_device_train_batch_size": 2}
    path = recipe(values | small, rounds=1, control_recipe=None, dev_task=None)
    done = run(path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out/round_1/student/adapter_model.safetensors").is_file()
    (first,) = state_of(tmp_path / "out")["rounds"]
    assert first["steps"] == 1


def test_the_rounds_stop_when_the_accuracy_falls():
    def after(*accuracies: float) -> bool:
        start, *rounds = ({"accuracy": accuracy} for accuracy in accuracies)
        return _has_fallen({"start": start, "rounds": [{"dev": dev} for dev in rounds]}, len(rounds))

    assert not after(0.5, 0.5)
    assert not after(0.5, 0.6)
    assert after(0.5, 0.49)
    assert after(0.4, 0.6, 0.5)


def refused(path: Path, capsys) -> str:
    assert generate(path) != 0
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_recipe": None, "control_recipe": None, "dev_task": None}, "`rounds` trains a student between"),
        ({"train_recipe": None, "rounds": 1}, "`control_recipe` is for rounds: it needs `train_recipe`"),
        ({"train_recipe": "nowhere.yaml"}, "nowhere.yaml"),
        ({"dev_task": "nowhere.yaml"}, "no task 'nowhere.yaml'"),
        ({"student_base_urls": ["http://127.0.0.1:9/v1"]}, "one behind `student_base_urls` cannot be trained here"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_asked(recipe, tmp_path, changes, message, capsys):
    assert message in refused(recipe(**changes), capsys)
    assert not (tmp_path / "out").exists()


def test_a_bad_training_recipe_costs_nothing(recipe, tmp_path, capsys):
    path = recipe({"max_step": 3})
    assert "did you mean `max_steps`?" in refused(path, capsys)
    assert not (tmp_path / "out").exists()
    assert main(["validate", "--config", str(path)]) != 0
    assert "did you mean `max_steps`?" in capsys.readouterr().err
    assert main(["validate", "--config", str(recipe())]) == 0


def test_dev_questions_among_the_questions_are_named(recipe, tmp_path, capsys):
    path = recipe()
    toy_question_file(tmp_path / "dev.jsonl", 18, 30)
    told = refused(path, capsys)
    assert "question 1 is also question" in told
    assert "question 2 is also question" in told
    assert "question 3" not in told
    (tmp_path / "dev.jsonl").write_text('{"question": "What?"}\n')
    assert "answer" in refused(path, capsys)


def test_other_options_in_the_same_folder_are_named(recipe, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    state = {"options": {"samples": 4}, "start": None, "rounds": []}
    (tmp_path / "out" / "rounds.json").write_text(json.dumps(state))
    told = refused(recipe(), capsys)
    assert "has rounds of other options" in told
    assert "`samples` was '4', is '3'" in told
    assert "`hash of questions` was 'None'" in told
    (tmp_path / "out" / "rounds.json").write_text("[]")
    assert "is not the state of rounds" in refused(recipe(), capsys)


def test_a_student_that_is_never_right_is_noticed_after_the_first_questions(recipe, tmp_path, toy_student, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_student)
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    toy_question_file(tmp_path / "questions.jsonl", 0, 30)
    path = recipe(student=str(tmp_path / "random"), dev_task=None, max_tokens=8)
    told = refused(path, capsys)
    assert "samples for the first 20 of 30 questions" in told
    assert "easier questions, or a warm-up of the student" in told


def test_the_shipped_recipe_holds():
    config = read_generate_config(RECIPES / "own_mistakes.yaml", {})
    check_rounds(config)
    assert (config.arguments.pairs, config.arguments.rounds) == ("closest", 2)
    check_rounds(read_generate_config(RECIPES / "own_mistakes.yaml", {"train_recipe": str(RECIPES / "rpo.yaml")}))
    assert {path.stem for path in RECIPES.iterdir()} == {"own_mistakes", "train", "rft", "rpo", "dev"}
    same = read_generate_config(RECIPES / "own_mistakes.yaml", {"seed": "1000003"})
    with pytest.raises(InputError, match="What is measured must not be trained on"):
        check_rounds(same)


def test_rounds_with_a_teacher_count_the_students_samples(recipe, tmp_path, toy_student):
    """A teacher rectifies what the student gets wrong; here the embedded one, so the questions are its own."""
    changes = {"teacher": "procedural", "pairs": None, "dataset_name": None, "families": ["arithmetic"], "rows": 6}
    changes |= {"control_recipe": None, "dev_task": None, "rounds": 1, "corrupt": True, "samples": 1}
    done = run(recipe(**changes))
    assert done.returncode == 0, done.stderr[-2000:]
    (first,) = state_of(tmp_path / "out")["rounds"]
    assert first["pairs"] >= 1
    assert first["dev"] is None
    assert f"the last student: {tmp_path / 'out' / 'round_1' / 'student'}" in done.stdout
