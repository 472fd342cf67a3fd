"""The folder of a run, where no option names it."""

import pytest

from edit_trl.evaluation.accuracy.config import EvaluateArguments
from edit_trl.evaluation.runs.measured_model import label_of_path
from edit_trl.evaluation.suite.config import SuiteArguments


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("gpt2", "gpt2"),
        ("outputs/my-student/key_steps", "my-student-key_steps"),
        ("./outputs/my-student", "my-student"),
        ("/data/models/Qwen3-0.6B/", "models-Qwen3-0.6B"),
        ("outputs/my-student/key_steps/checkpoint-20", "my-student-key_steps-checkpoint-20"),
        ("outputs/dual_cots/dual.parquet", "dual_cots-dual"),
    ],
)
def test_labels(name, label, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "my-student" / "key_steps").mkdir(parents=True)
    assert label_of_path(name) == label


def test_the_folder_names_model_and_tasks():
    def folder(**options):
        return str(EvaluateArguments(model="org/m", **options).folder)

    assert folder(tasks=["gsm8k", "mine/sums.yaml"]) == "outputs/evaluate/m-gsm8k+sums"
    assert folder(tasks=["gsm8k"], harness=["arc_easy"]) == "outputs/evaluate/m-gsm8k+arc_easy"
    assert folder(tasks=["gsm8k"], name="base") == "outputs/evaluate/base-gsm8k"
    assert folder(tasks=["gsm8k"], output_dir="here") == "here"
    many, others = (folder(tasks=[f"a_long_name_of_task_{n}" for n in range(count)]) for count in (5, 6))
    assert many.startswith("outputs/evaluate/m-a_long_name_of_task_0+4-")
    assert others.startswith("outputs/evaluate/m-a_long_name_of_task_0+5-")


def test_the_folder_names_the_pairs_of_a_suite():
    def folder(**options):
        return str(SuiteArguments(model="org/m", **options).folder)

    assert folder(dataset_name="data/held_out.jsonl") == "outputs/suite/m-data-held_out"
    assert folder(dataset_name="org/pairs") == "outputs/suite/m-pairs"
    assert folder(from_run="outputs/evaluate/m-gsm8k") == "outputs/suite/m-evaluate-m-gsm8k"
    assert folder(rows=3, difficulty=3) == "outputs/suite/m-procedural_3"
