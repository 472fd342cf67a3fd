"""`edit-trl push`: what arrives at a Hub on loopback, and loads from there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import torch
import yaml
from conftest import ROWS
from datasets import Dataset, load_dataset
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from huggingface_hub import hf_hub_download
from peft import PeftModel
from pushed_runs import metadata, push
from train_recipe_runs import stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from edit_trl.cli.push import find_evaluations
from edit_trl.data.dual_cots import load_dual_cots
from edit_trl.evaluation.runs.folder import RECORD_FILE, RunFolder
from edit_trl.evaluation.runs.schema import RunRecord
from edit_trl.training.recipe.outline import read_recipe
from edit_trl.training.recipe.resolving import resolve_runs

CARD = {"README.md", "training_curves.svg", "results.json", "recipe.yaml"}

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


def evaluation(folder, model, **scores) -> None:
    record = RunRecord("evaluate", folder.name, str(model), "hash", {}, {"sorting": "1"}, "data")
    run = RunFolder(folder, record)
    run.finish([], scores, {"accuracy": (0.25, 0.75)}, {"task": {"sorting": {"items": 4.0, **scores}}})


def test_a_run_of_two_stages(trained, serve_hub, capsys, tmp_path):
    hub = serve_hub()
    assert push(trained / "out", "--repo_id", "ada/student-edit") == 0
    repo = hub.repos["model", "ada/student-edit"]
    assert repo.private
    assert set(repo.files) == ADAPTER | TOKENIZER | CARD
    out = trained / "out" / "key_steps"
    assert repo.files["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    card = repo.files["README.md"].decode()
    assert "| option | `warm_up` | `key_steps` |" in card
    assert re.search(r"\| `learning_rate` \| `0.01` \| `0.002` \|", card)
    assert 'from_pretrained("ada/student-edit")' in card
    assert "states no licence" in card
    assert metadata(repo.files["README.md"])["license"] == "other"
    printed = capsys.readouterr().out
    assert "(private)" in printed
    assert "note: The licence is given as" in printed


def test_nothing_of_this_machine_is_told(trained, serve_hub):
    hub = serve_hub()
    push(trained / "out", "--repo_id", "ada/student")
    for name, content in hub.repos["model", "ada/student"].files.items():
        for secret in (str(trained), str(trained.parent), WRITE_TOKEN, os.environ.get("USER", "root") + "@"):
            assert secret.encode() not in content, (name, secret)
    config = json.loads(hub.repos["model", "ada/student"].files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "student"


def test_the_recipe_can_be_run_again(trained, serve_hub, tmp_path):
    hub = serve_hub()
    push(trained / "out", "--repo_id", "ada/student", "--base_model", "ada/base")
    path = tmp_path / "recipe.yaml"
    path.write_bytes(hub.repos["model", "ada/student"].files["recipe.yaml"])
    runs = resolve_runs(read_recipe(path), {})
    assert [run.stage for run in runs] == ["warm_up", "key_steps"]
    assert [run.training.learning_rate for run in runs] == [0.01, 0.002]
    assert {run.model.model_name_or_path for run in runs} == {"ada/base"}
    assert "hub_token" not in path.read_text()


@pytest.mark.slow
def test_loads_from_the_hub_as_the_card_says(trained, serve_hub, tmp_path):
    """Base model and adapter are pushed; the card's code, run as it stands, gets both from there."""
    hub = serve_hub(part_size=20_000)
    assert push(trained / "student", "--repo_id", "ada/base") == 0
    out = trained / "out" / "key_steps"
    assert push(out, "--repo_id", "ada/student", "--base_model", "ada/base") == 0
    readme = Path(hf_hub_download("ada/student", "README.md")).read_text(encoding="utf-8")
    script = tmp_path / "as_the_card_says.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[:2]))
    options = {"env": os.environ | hub.environment(tmp_path), "cwd": tmp_path, "timeout": 300}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    base = AutoModelForCausalLM.from_pretrained(trained / "student")
    here = PeftModel.from_pretrained(base, out)
    ids = torch.arange(10).unsqueeze(0)
    there = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(here(ids).logits, there(ids).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_evaluations_are_shown_with_their_intervals(trained, serve_hub, tmp_path):
    hub = serve_hub()
    out = trained / "out" / "key_steps"
    evaluation(tmp_path / "mine", out, accuracy=0.5, unparsed=0.0)
    evaluation(tmp_path / "base", trained / "student", accuracy=0.25, unparsed=0.5)
    runs = (tmp_path / "mine", tmp_path / "base")
    assert push(out, "--repo_id", "ada/student", "--evaluation", *runs) == 0
    files = hub.repos["model", "ada/student"].files
    card = files["README.md"].decode()
    assert "| **mine** | 0 | 0.500 (0.250 to 0.750) | 0.000 |" in card
    assert "| base | 0 | 0.250 (0.250 to 0.750) | 0.500 |" in card
    [index] = metadata(files["README.md"])["model-index"]
    [result] = index["results"]
    accuracy = next(metric for metric in result["metrics"] if metric["type"] == "accuracy")
    assert accuracy["value"] == 0.5
    assert accuracy["args"]["confidence_interval_95"] == [0.25, 0.75]
    results = json.loads(files["results.json"])
    assert [e["name"] for e in results["evaluations"]] == ["mine", "base"]
    assert results["training"]["key_steps"]["train_loss"] > 0


def test_accuracies_on_a_benchmark_are_results_on_the_hub(trained, serve_hub, tmp_path, capsys):
    hub = serve_hub()
    tasks = b"tasks:\n- {id: gsm8k, config: main, split: test}\n"
    hub.add("openai/gsm8k", {"eval.yaml": tasks}, "dataset")
    out = trained / "out" / "key_steps"
    names = {"gsm8k": "openai/gsm8k", "arc": "allenai/ai2_arc"}
    datasets = {task: {"dataset": name, "config": "main", "split": "test"} for task, name in names.items()}
    settings = {"samples": 8, "temperature": 0.7, "max_new_tokens": 512}
    record = RunRecord(
        "evaluate", "mine", str(out), "h", settings, dict.fromkeys(names, "1"), "d", hub_datasets=datasets
    )
    groups = {"task": {task: {"items": 4.0, "accuracy": 0.25} for task in names}}
    RunFolder(tmp_path / "mine", record).finish([], {"accuracy": 0.25}, {}, groups)
    assert push(out, "--repo_id", "ada/student", "--evaluation", tmp_path / "mine") == 0
    repo = hub.repos["model", "ada/student"]
    [entry] = yaml.safe_load(repo.files[".eval_results/edit_trl.yaml"])
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "gsm8k"}
    assert entry["value"] == 25.0
    setup = "8 samples, vote: majority; temperature 0.7; at most 512 new tokens; edit_trl "
    assert entry["notes"].startswith(setup)
    assert "note: found no eval.yaml with a task for allenai/ai2_arc (config main" in capsys.readouterr().out
    assert metadata(repo.files["README.md"])["model-index"]  # beside it
    assert push(out, "--repo_id", "ada/student") == 0  # without the run: its results are gone
    assert ".eval_results/edit_trl.yaml" not in repo.files


@pytest.mark.parametrize("name", ["accuracy", "measured/after", "key_steps/evaluations/test"])
def test_evaluations_in_the_run_folder_are_found(trained, serve_hub, capsys, name):
    hub = serve_hub()
    folder = trained / "out" / name
    evaluation(folder, trained / "out" / "key_steps", accuracy=0.5)
    assert push(trained / "out", "--repo_id", "ada/student") == 0
    assert f"**{folder.name}**" in hub.repos["model", "ada/student"].files["README.md"].decode()
    shutil.rmtree(folder)


def test_runs_of_other_models_and_unfinished_runs_are_not_found(trained):
    out = trained / "out" / "key_steps"
    evaluation(trained / "out" / "measured" / "before", trained / "student", accuracy=0.25)
    record = RunRecord("evaluate", "stopped", str(out), "hash", {}, {"sorting": "1"}, "data")
    RunFolder(trained / "out" / "measured" / "stopped", record)
    for name, content in (("broken", "{"), ("foreign", "[]")):
        (trained / "out" / name).mkdir()
        (trained / "out" / name / RECORD_FILE).write_text(content)
    assert find_evaluations(out) == []
    for name in ("measured", "broken", "foreign"):
        shutil.rmtree(trained / "out" / name)


def test_dry_run_sends_nothing(trained, serve_hub, capsys):
    hub = serve_hub()
    before = (trained / "out" / "key_steps" / "README.md").read_bytes()
    assert push(trained / "out", "--dry_run") == 0
    printed = capsys.readouterr().out
    assert "would push to the model ada/out (private, if it is new)" in printed
    for name in ADAPTER | CARD:
        assert f"  {name}\n" in printed
    stays = printed.split("stays here: ")[1]
    for name in ("checkpoint-1/", "training_args.bin", "run.json", "card.json"):
        assert name in stays
    assert hub.repos == {}
    assert hub.count("POST", "") == 0
    assert (trained / "out" / "key_steps" / "README.md").read_bytes() == before


def test_through_the_command_with_a_broken_upload(trained, tmp_path):
    """The real process: the commit is refused for good, then the same command goes on."""
    hub = HubServer()
    with hub_server.running(hub):
        command = [sys.executable, "-m", "edit_trl.cli.main", "push", str(trained / "out")]
        options = {"env": os.environ | hub.environment(tmp_path), "capture_output": True, "text": True, "timeout": 300}
        hub.fail("POST", "/commit/", 409, times=99)
        done = subprocess.run(command, **options)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "someone else changed ada/out meanwhile" in done.stderr
        received = hub.received
        hub.faults.clear()
        done = subprocess.run([*command, "--public"], **options)
        assert done.returncode == 0, done.stderr
        assert "the repository existed and stays private" in done.stdout
    assert hub.received == received
    assert set(hub.repos["model", "ada/out"].files) == ADAPTER | TOKENIZER | CARD


# From the training


def test_training_pushes_its_last_stage(recipe, tmp_path, serve_hub, capfd):
    hub = serve_hub()
    options = ("--push_to_hub", "true", "--save_strategy", "steps", "--save_steps", "1")
    assert stage(recipe, "warm_up", *options) == 0
    assert hub.repos == {}
    assert stage(recipe, "key_steps", *options, "--hub_token", WRITE_TOKEN) == 0
    repo = hub.repos["model", "ada/out"]
    assert repo.private
    assert set(repo.files) == ADAPTER | TOKENIZER | CARD
    assert len(repo.commits) == 1
    assert "| option | `warm_up` | `key_steps` |" in repo.files["README.md"].decode()
    for name, content in repo.files.items():
        assert WRITE_TOKEN.encode() not in content, name
    capfd.readouterr()


def test_training_with_a_token_that_may_not_write(recipe, tmp_path, serve_hub, capfd, monkeypatch):
    serve_hub()
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    recipe.write_text(recipe.read_text().split("stages:")[0])
    assert stage(recipe, None, "--push_to_hub", "true", "--hub_model_id", "ada/student") == 2
    assert "the token 'my-read' of 'ada' (role: read) may not write" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()  # before anything was trained


def test_training_is_safe_when_the_push_fails(recipe, tmp_path, serve_hub, capfd):
    hub = serve_hub()
    hub.fail("POST", "/commit/", 503, times=99)
    recipe.write_text(recipe.read_text().split("stages:")[0])
    assert stage(recipe, None, "--push_to_hub", "true", "--hub_model_id", "ada/student") == 2
    assert f"The model is safe in {tmp_path / 'out'}: `edit-trl push" in capfd.readouterr().err
    hub.faults.clear()
    assert push(tmp_path / "out") == 0  # to where the recipe said
    assert "adapter_model.safetensors" in hub.repos["model", "ada/student"].files


# Datasets


@pytest.mark.parametrize("form", ["rows.jsonl", "saved"])
def test_dual_cots(tmp_path, serve_hub, form):
    hub = serve_hub()
    rows = Dataset.from_list([row | {"task": "<b>sorting</b>|x"} for row in ROWS])
    path = tmp_path / form
    rows.save_to_disk(path) if form == "saved" else path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert push(path, "--repo_id", "ada/rows") == 0
    repo = hub.repos["dataset", "ada/rows"]
    assert set(repo.files) == {"README.md", "data/train-00000-of-00001.parquet"}
    card = repo.files["README.md"].decode()
    assert "| `<b>sorting</b>¦x` | 4 |" in card
    assert load_dataset("ada/rows", split="train", cache_dir=tmp_path / "cache").to_list() == rows.to_list()
    assert len(load_dual_cots("ada/rows")) == 4


def test_a_generation(tmp_path, serve_hub):
    hub = serve_hub()
    for name in ("dual.parquet", "warm_up.parquet", "README.md", "journal.sqlite", "report.json"):
        (tmp_path / name).write_text("---\ntags: []\n---\n")
    assert push(tmp_path, "--repo_id", "ada/rows") == 0
    assert set(hub.repos["dataset", "ada/rows"].files) == {"dual.parquet", "warm_up.parquet", "README.md"}


# Bad input


def refused(capsys, code: int, *parts: str) -> None:
    errors = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors


def test_an_id_without_a_namespace(trained, serve_hub, capsys):
    hub = serve_hub()
    code = push(trained / "out", "--repo_id", "student")
    refused(capsys, code, "--repo_id 'student' has no namespace; you are logged in as 'ada': \"ada/student\"")
    assert hub.repos == {}


def test_no_login_and_no_id(trained, serve_hub, capsys, monkeypatch, tmp_path):
    serve_hub()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(capsys, push(trained / "out"), "--repo_id your-name/out", "hf auth login")


def test_what_cannot_be_pushed(trained, tmp_path, capsys):
    cases = {
        tmp_path / "nothing": "no such file or folder",
        trained / "out" / "key_steps" / "checkpoint-1": "is a checkpoint",
        trained.parent: "is no model, run or dataset of edit-trl",
    }
    for path, message in cases.items():
        refused(capsys, push(path, "--repo_id", "ada/x"), message)


def test_a_model_of_pickles(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("x")
    refused(capsys, push(tmp_path, "--repo_id", "ada/x"), "no weights in safetensors", "pytorch_model.bin")


def test_a_run_that_is_not_finished(tmp_path, capsys):
    (tmp_path / "key_steps").mkdir()
    (tmp_path / "key_steps" / "run.json").write_text(json.dumps({"finished": None, "options": {}}))
    refused(capsys, push(tmp_path, "--repo_id", "ada/x"), "no stage of this run is finished")
    (tmp_path / "key_steps" / "config.json").write_text("{}")
    refused(capsys, push(tmp_path / "key_steps", "--repo_id", "ada/x"), "this run is not finished")


def test_an_evaluation_that_is_none(trained, tmp_path, capsys, serve_hub):
    serve_hub()
    code = push(trained / "out", "--repo_id", "ada/x", "--evaluation", tmp_path)
    refused(capsys, code, "no run of `edit-trl evaluate` or `suite`")


def test_private_and_public_at_once(trained, capsys):
    refused(capsys, push(trained / "out", "--private", "--public"), "not allowed with")
