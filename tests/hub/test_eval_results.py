"""The file of accuracies in `.eval_results/`, with the ids that benchmarks on a Hub on loopback give their tasks."""

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from edit_trl.hub.card_facts import Evaluation
from edit_trl.hub.eval_results import RESULTS_FILE, eval_results
from edit_trl.hub.repository import open_repository, upload

GSM8K = {"dataset": "openai/gsm8k", "config": "main", "split": "test"}
BENCHMARK = b"""name: GSM8K
evaluation_framework: inspect-ai
tasks:
  - id: gsm8k
    config: main
    split: test
  - id: gsm8k_train
    config: main
    split: train
"""


def evaluation(accuracy=0.41666, **changes) -> Evaluation:
    values = {
        "name": "mine",
        "kind": "evaluate",
        "of_this_model": True,
        "items": 1319,
        "scores": {"accuracy": accuracy},
        "intervals": {},
        "main": "accuracy",
        "tasks": {"gsm8k": {"items": 1319, "accuracy": accuracy}},
        "finished": "2026-11-27T20:15:00Z",
        "setup": "greedy; edit_trl 0.1.0",
        "hub_datasets": {"gsm8k": GSM8K},
    }
    return Evaluation(**values | changes)


@pytest.fixture
def hub(serve_hub):
    server = serve_hub()
    server.add("openai/gsm8k", {"eval.yaml": BENCHMARK}, "dataset")
    return server


def entries(*evaluations: Evaluation, **options) -> list[dict]:
    files, notes = eval_results(evaluations, "ada/student", **options)
    assert notes == []
    assert list(files) == [RESULTS_FILE]
    return yaml.safe_load(files[RESULTS_FILE])


def test_an_accuracy_in_percent_with_its_task_date_and_source(hub):
    assert entries(evaluation()) == [
        {
            "dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"},
            "value": 41.67,
            "date": "2026-11-27T20:15:00Z",
            "source": {"url": f"{hub.url}/ada/student/blob/main/results.json", "name": "Results of edit_trl"},
            "notes": "greedy; edit_trl 0.1.0",
        }
    ]
    [entry] = parse_eval_result_entries(entries(evaluation(), revision="v2"))  # as the Hub's client reads it
    assert entry.source_url.endswith("/ada/student/blob/v2/results.json")


def test_runs_with_another_setup_stand_beside_and_later_ones_replace(hub):
    first, later = evaluation(0.1), evaluation(0.2, finished="2026-11-28T08:00:00Z")
    voted = evaluation(0.3, setup="8 samples, vote: majority")
    values = {(entry["notes"], entry["value"]) for entry in entries(later, first, voted)}
    assert values == {("greedy; edit_trl 0.1.0", 20.0), ("8 samples, vote: majority", 30.0)}


@pytest.mark.parametrize(
    "changes",
    [
        {"of_this_model": False},
        {"kind": "suite"},
        {"hub_datasets": {}},  # procedural problems, a local file or a part of a split
        {"tasks": {"gsm8k": {"accuracy": None}}},
    ],
)
def test_what_is_no_result_of_this_model_on_a_benchmark(hub, changes):
    assert eval_results([evaluation(**changes)], "ada/student") == ({}, [])
    assert hub.requests == []


@pytest.mark.parametrize(
    ("dataset", "eval_yaml"),
    [
        (GSM8K | {"split": "validation"}, BENCHMARK),
        (GSM8K | {"config": "socratic"}, BENCHMARK),
        (GSM8K | {"split": None}, BENCHMARK),
        (GSM8K | {"dataset": "ada/none"}, BENCHMARK),
        (GSM8K, b"tasks: [{id: a, config: main}, {id: b, config: main}]"),  # which of them?
        (GSM8K, b"tasks: [{id: '<b>x</b>', config: main, split: test}]"),
        (GSM8K, b"tasks: 7"),
        (GSM8K, b"- no mapping"),
        (GSM8K, b"\xff{{"),
    ],
)
def test_no_benchmark_is_noted(hub, dataset, eval_yaml):
    hub.add("openai/gsm8k", {"eval.yaml": eval_yaml}, "dataset")
    files, [note] = eval_results([evaluation(hub_datasets={"gsm8k": dataset})] * 2, "ada/student")
    assert files == {}
    where = f"{dataset['dataset']} (config {dataset['config']}, split {dataset['split']})"
    assert note == f"found no eval.yaml with a task for {where}: its accuracy is on the card only"


def test_a_benchmark_of_one_configuration(hub):
    hub.add("cais/hle", {"eval.yaml": b"tasks:\n- {id: hle, config: default, split: test}\n"}, "dataset")
    dataset = {"dataset": "cais/hle", "config": None, "split": "test"}
    [entry] = entries(evaluation(hub_datasets={"gsm8k": dataset}))
    assert entry["dataset"] == {"id": "cais/hle", "task_id": "hle"}


def test_an_obsolete_file_is_removed_and_others_are_not(serve_hub):
    hub = serve_hub()
    open_repository("ada/student")
    others = {"README.md": b"---\n---\n", ".eval_results/gsm8k.yaml": b"[]\n"}
    upload(others | {RESULTS_FILE: b"[]\n"}, "ada/student", message="first")
    for _ in range(2):  # the second time there is nothing to remove
        upload({"README.md": b"---\nx: 1\n---\n"}, "ada/student", message="again", obsolete=[RESULTS_FILE])
        assert set(hub.repos["model", "ada/student"].files) == set(others)
