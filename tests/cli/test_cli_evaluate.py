"""`edit-trl evaluate`, as a user runs it: on a tiny student, and on an endpoint."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from chat_server import ChatServer, completion, running
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edit_trl.cli.main import main
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.models.chat.journal import Journal

TASK = {"version": 1, "families": ["object_counting", "arithmetic"], "rows": 40}


@pytest.fixture
def recipe(tmp_path, saved_student):
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(TASK))
    file = tmp_path / "recipe.yaml"
    options = {"model": str(saved_student), "tasks": ["sums.yaml"], "history": None, "max_new_tokens": 24}
    file.write_text(yaml.safe_dump(options | {"batch_size": 8, "output_dir": str(tmp_path / "run")}))
    return file


def evaluate(recipe, *options):
    return main(["evaluate", "--config", str(recipe), *map(str, options)])


def test_a_run_and_again(recipe, tmp_path, capsys):
    history = tmp_path / "history.sqlite"
    assert evaluate(recipe, "--limit", 6, "--history", history) == 0
    output = capsys.readouterr()
    assert "12 questions of 2 tasks" in output.err
    assert "tokens/s" in output.err
    lines = output.out.splitlines()
    assert lines[0] == "student: 12 questions"
    assert [line.split()[0] for line in lines[4:8]] == ["accuracy", "lenient_accuracy", "unparsed", "cut_off"]
    assert lines[-1] == str(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert [item["task"] for item in run.items] == ["object_counting", "arithmetic"] * 6
    assert run.record.scores["accuracy"] == 0.0
    assert run.record.scores["cut_off"] == sum(item["cut_off"] for item in run.items) / 12
    assert run.record.groups["task"]["arithmetic"]["items"] == 6
    assert history.is_file()
    before = (tmp_path / "run" / "evaluation.json").read_text()
    assert evaluate(recipe, "--limit", 6, "--history", history) == 0
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "evaluation.json").read_text() == before


def test_another_run_in_the_folder_is_refused(recipe, tmp_path, capsys):
    assert evaluate(recipe, "--limit", 2) == 0
    assert evaluate(recipe, "--limit", 2, "--max_new_tokens", 25, "--seed", 1) == 2
    error = capsys.readouterr().err
    assert "holds another run" in error
    assert "max_new_tokens: 24 there, 25 now" in error
    assert "seed: 0 there, 1 now" in error


def test_another_task_has_another_folder_by_default(recipe, saved_student, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counts.yaml").write_text(yaml.safe_dump(TASK | {"families": ["object_counting"]}))
    student = f"outputs/mine/{saved_student.name}"
    shutil.copytree(saved_student, student)
    for task in ("sums.yaml", "counts.yaml"):
        assert evaluate(recipe, "--limit", 1, "--model", student, "--tasks", task, "--output_dir", "null") == 0
    runs = sorted(str(file.parent) for file in Path("outputs").rglob("evaluation.json"))
    assert runs == [f"outputs/evaluate/mine-{saved_student.name}-{task}" for task in ("counts", "sums")]


def test_sampling(recipe, tmp_path):
    assert evaluate(recipe, "--limit", 2, "--samples", 3, "--temperature", 0.7, "--top_p", 0.95) == 0
    assert [len(item["samples"]) for item in read_run(tmp_path / "run").items] == [3] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere/at-all"], "`model: nowhere/at-all` cannot be loaded"),
        (["--tasks", "nothing"], "no task 'nothing'"),
        (["--samples", "4"], "`samples: 4` at temperature 0 are all the same"),
        (["--top_p", "2"], "`top_p` must be above 0 and at most 1, got 2"),
        (["--batching", "contiuous"], "did you mean 'continuous'"),
        (["--dtype", "float64"], "`dtype: 'float64'`: expected one of float32"),
        (["--model_name_or_path", "a"], "unknown option --model_name_or_path; did you mean `--model`?"),
        (["--max_new_token", "9"], "unknown option --max_new_token; did you mean `--max_new_tokens`?"),
        (["--max_new_tokens", "600"], "and max_new_tokens=600 exceed the model's 512 positions"),
        (["--batching", "vllm"], "pip install vllm"),
        (["--history", __file__], "cannot be used as a history"),
        (["--limit", "0"], "`limit` must be at least 1, got 0"),
        (["--tasks", "null", "--harness", "null"], "`tasks` is missing"),
        (["--base_urls", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
        (["--base_urls", "http://127.0.0.1:9/v1", "--harness", "x"], "`harness` needs the model on this machine"),
    ],
)
def test_bad_input_leaves_nothing_behind(recipe, tmp_path, capsys, options, message):
    assert evaluate(recipe, "--limit", 2, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_another_command(tmp_path, capsys):
    file = tmp_path / "train.yaml"
    file.write_text("model_name_or_path: x\nstages: []\n")
    assert evaluate(file) == 2
    assert "unknown key `model_name_or_path`" in capsys.readouterr().err


def test_without_a_chat_template(recipe, saved_student, capsys):
    for file in saved_student.glob("chat_template*"):
        file.unlink()
    assert evaluate(recipe, "--limit", 2) == 2
    assert "no chat template; ask by plain prompts (`conversational: false`)" in capsys.readouterr().err
    assert evaluate(recipe, "--limit", 2, "--conversational", "false") == 0


def killed_and_resumed(recipe, tmp_path, kills, seed):
    """Kill the command once some more items are written, a few times; then let it finish."""
    rng, items = random.Random(seed), tmp_path / "killed" / "items.jsonl"
    command = [sys.executable, "-m", "edit_trl.cli.main", "evaluate", "--config", str(recipe)]
    command += ["--output_dir", str(items.parent), "--batch_size", "2", "--max_new_tokens", "40"]
    for _ in range(kills):
        written = items.stat().st_size if items.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (items.exists() and items.stat().st_size > written):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait(120)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return items.read_bytes()


def uninterrupted(recipe, tmp_path):
    options = ("--batch_size", 2, "--max_new_tokens", 40, "--output_dir", tmp_path / "whole")
    assert evaluate(recipe, *options) == 0
    return (tmp_path / "whole" / "items.jsonl").read_bytes()


def test_killed_and_resumed_ends_in_the_same_bytes(recipe, tmp_path):
    assert killed_and_resumed(recipe, tmp_path, 1, seed=0) == uninterrupted(recipe, tmp_path)


@pytest.mark.slow
def test_killed_five_times_and_resumed_ends_in_the_same_bytes(recipe, tmp_path):
    assert killed_and_resumed(recipe, tmp_path, 5, seed=1) == uninterrupted(recipe, tmp_path)


def answer(body):
    """An answer to arithmetic, and half a one to how many there are."""
    if "How many" in body["messages"][-1]["content"]:
        return completion("So the answer is", finish_reason="length")
    return "Therefore, the answer is 4."


def test_an_endpoint(recipe, tmp_path, capsys):
    server = ChatServer(answer)
    with running(server) as url:
        options = ("--base_urls", url, "--model", "test-model", "--limit", 5)
        assert evaluate(recipe, *options, "--samples", 2, "--temperature", 0.5) == 0
        asked = server.seen
        run = read_run(tmp_path / "run")
        assert asked == 20
        assert {sample["tokens"] for item in run.items for sample in item["samples"]} == {5}
        tasks = run.record.groups["task"]
        assert (tasks["object_counting"]["unparsed"], tasks["object_counting"]["cut_off"]) == (1.0, 1.0)
        assert (tasks["arithmetic"]["unparsed"], tasks["arithmetic"]["cut_off"]) == (0.0, 0.0)
        assert evaluate(recipe, *options, "--samples", 2, "--temperature", 0.5) == 0
        assert server.seen == asked  # it is finished
        (tmp_path / "run" / "items.jsonl").unlink()
        record = tmp_path / "run" / "evaluation.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": None}))
        assert evaluate(recipe, *options, "--samples", 2, "--temperature", 0.5) == 0
        assert server.seen == asked  # every answer was in the journal
    assert read_run(tmp_path / "run").items == run.items


def test_an_endpoint_that_breaks_off(recipe, tmp_path, capsys):
    server = ChatServer(answer, fault=lambda number, body: "400" if number == 3 else None)
    with running(server) as url:
        options = ("--base_urls", url, "--model", "test-model", "--limit", 5)
        assert evaluate(recipe, *options) == 2
        shown, unanswered = capsys.readouterr().err, tmp_path / "run" / "unanswered.jsonl"
        assert "1 requests got no answer" in shown
        [line] = map(json.loads, unanswered.read_text().splitlines())
        assert f"{line['item']}: {line['reason']}" in shown
        assert line["reason"] == "longer than the model's context (status 400: maximum context length is 10)"
        assert evaluate(recipe, *options) == 0
        assert server.seen == 11
    assert not unanswered.exists()
    assert len(read_run(tmp_path / "run").items) == 10


def test_an_endpoint_that_refuses_parameters(recipe, tmp_path, capsys):
    """It is told which option leaves them out, and both ways do."""
    names = ("seed", "temperature", "top_p")

    def refuse(number: int, body: dict) -> str | None:
        name = next((name for name in names if name in body), None)
        return name and f'400 {{"error": {{"message": "Unknown name \\"{name}\\""}}}}'

    server = ChatServer(answer, fault=refuse)
    with running(server) as url:
        options = ("--base_urls", url, "--model", "test-model", "--limit", 1)
        assert evaluate(recipe, *options) == 2
        assert "`extra_body: {seed: null}` leaves `seed` out" in capsys.readouterr().err
        nulls = [word for name in names for word in (f"--{name}", "null")]
        assert evaluate(recipe, *options, *nulls, "--output_dir", tmp_path / "nulls") == 0
        body = "{seed: null, temperature: null, top_p: null}"
        assert evaluate(recipe, *options, "--extra_body", body, "--output_dir", tmp_path / "body") == 0
        assert evaluate(recipe, *options, *nulls, "--temperature", 0.5, "--output_dir", tmp_path / "nulls") == 2
    assert "holds another run" in capsys.readouterr().err
    settings = read_run(tmp_path / "nulls").record.settings
    assert [settings[name] for name in names] == [None, None, None]


def test_a_model_that_is_loaded_needs_numbers(recipe, capsys):
    assert evaluate(recipe, "--seed", "null", "--top_p", "null") == 2
    message = capsys.readouterr().err
    assert "`top_p: null` leaves it to an endpoint; a model that is loaded needs a number" in message
    assert "`seed: null`" in message


def test_stop_texts_are_sent_after_plain_worked_examples(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "What is 2 + 2?", "answer": "4"}\n')
    shot = {"question": "What is 1 + 1?", "chain": "1 + 1 = 2. The answer is 2.", "answer": "2"}
    (tmp_path / "shots.jsonl").write_text(json.dumps(shot) + "\n")
    task = {"dataset_name": "q.jsonl", "exemplars": "shots.jsonl"}
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    run_on = "2 + 2 = 4. The answer is 4.\n\nWhat is 5 + 5?\nThe answer is 10.\n\nWhat"
    server = ChatServer(lambda body: completion(run_on, finish_reason="length"))
    server.keep_bodies = True
    with running(server) as url:
        command = ["evaluate", "--model", "test-model", "--base_urls", url, "--tasks", str(tmp_path / "sums.yaml")]
        command += ["--output_dir", str(tmp_path / "run"), "--history", "null", "--conversational", "false"]
        assert main(command) == 0
    assert [body["stop"] for body in server.bodies] == [["\n\n"]]
    [item] = read_run(tmp_path / "run").items  # also of a server that does not heed it
    assert (item["verdict"], item["value"], item["cut_off"]) == ("correct", "4", 0)


def test_a_full_disk_loses_no_answer_that_was_kept(tmp_path):
    """No file may grow beyond 200 kB in the first run, as on a disk that is full."""
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(60)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text("dataset_name: q.jsonl\n")
    server = ChatServer(lambda body: "x" * 8000 + f". The answer is {body['messages'][-1]['content']}.")
    with running(server) as url:
        command = ["edit_trl.cli.main", "evaluate", "--model", "test-model", "--base_urls", url, "--tasks", "sums.yaml"]
        command = [sys.executable, "-m", *command, "--output_dir", "run", "--history", "null"]
        limited = f"ulimit -f 200; exec {' '.join(command)}"
        full = subprocess.run(["bash", "-c", f"trap '' XFSZ; {limited}"], cwd=tmp_path, capture_output=True, text=True)
        assert full.returncode == 2
        assert "Traceback" not in full.stderr
        assert full.stderr.count("error: ") == 1
        with Journal(tmp_path / "run") as journal:
            kept = len(journal)
        assert 3 < kept < server.seen
        seen = server.seen
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert server.seen - seen == 60 - kept
    assert "60 questions" in done.stdout


def test_an_endpoint_without_the_model(recipe, tmp_path, capsys):
    with running(ChatServer(answer)) as url:
        assert evaluate(recipe, "--base_urls", url, "--model", "test-modl") == 2
    assert "test-model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help(capsys):
    assert main(["evaluate", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--model", "--tasks", "--batching (default: auto)", "--base_urls", "--max_concurrency"):
        assert option in text
    assert "max_cost" not in text


def test_the_shipped_recipes(capsys):
    """Each reads, and names task files that read; datasets of the Hub are not looked for."""
    from edit_trl.common.options import build_options
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.evaluation.accuracy.task_file import read_task

    root = Path(__file__).parents[2] / "recipes" / "evaluate"
    names = set()
    recipes = [path for path in sorted(root.glob("*.yaml")) if "tasks" in yaml.safe_load(path.read_text())]
    assert len(recipes) == 8
    for path in recipes:
        options = {"model": "x", "base_urls": None}
        values = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key not in options}
        (arguments,) = build_options(None, values | {"model": "x"}, [EvaluateArguments])
        names |= set(arguments.tasks)
    files = {path.stem for path in (root / "tasks").glob("*.yaml")}
    assert files == names | {"gsm8k"} == names
    assert files == {
        *("bbh", "bigbench_sub", "agieval_english", "arc_easy", "arc_challenge", "gsm8k"),
        *("procedural", "procedural_hard", "own"),
    }
    tasks = {name: read_task(name, root)[1] for name in files}
    assert len(tasks["bbh"].dataset_config) == 27
    assert len(tasks["procedural"].families) == len(tasks["procedural_hard"].families) == 7


@pytest.fixture
def adapter(tmp_path, saved_student):
    """An adapter of the student that is far from it."""
    model = AutoModelForCausalLM.from_pretrained(saved_student)
    torch.manual_seed(3)
    lora = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(tmp_path / "wrong")
    return tmp_path / "wrong"


def test_a_student_is_decoded_against_an_adapter_of_itself(recipe, adapter, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("plain", "weightless", "against", "sampled")}
    assert evaluate(recipe, "--limit", 3, "--output_dir", folders["plain"]) == 0
    words = ["--limit", 3, "--against", adapter]
    assert evaluate(recipe, *words, "--against_weight", 0, "--output_dir", folders["weightless"]) == 0
    assert evaluate(recipe, *words, "--against_cutoff", 0.01, "--output_dir", folders["against"]) == 0
    sampled = ["--samples", 2, "--temperature", 0.7, "--output_dir", folders["sampled"]]
    assert evaluate(recipe, *words, *sampled) == 0
    responses = {
        name: [item["samples"][0]["response"] for item in read_run(folder).items] for name, folder in folders.items()
    }
    assert responses["weightless"] == responses["plain"]
    assert responses["against"] != responses["plain"]
    settings = read_run(folders["against"]).record.settings["against"]
    assert (settings["weight"], settings["cutoff"]) == (0.5, 0.01)
    # An adapter with other weights is another run.
    capsys.readouterr()
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    assert evaluate(recipe, *words, "--against_cutoff", 0.01, "--output_dir", folders["against"]) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against_weight", 1], "`against_weight` is for `against`"),
        (["--against", "a", "--against_weight", -1], "`against_weight` cannot be negative"),
        (["--against", "a", "--against_cutoff", 0], "`against_cutoff` must be above 0 and at most 1"),
        (["--against", "a", "--batching", "continuous"], "which `batching: continuous` cannot"),
        (["--against", "a", "--engine", "ray"], "`against` needs both models in one process"),
        (["--against", "a", "--base_urls", "http://127.0.0.1:9/v1"], "`against` is for models that are loaded"),
        (["--batching", "padded", "--base_urls", "http://127.0.0.1:9/v1"], "`batching` is for models that are loaded"),
        (["--against", "nowhere/at/all"], "`against: nowhere/at/all`"),
    ],
)
def test_what_decoding_against_a_model_cannot_do_is_told(recipe, tmp_path, words, message, capsys):
    assert evaluate(recipe, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_virtual_tokens_cannot_be_decoded_against(recipe, saved_student, tmp_path, capsys):
    prompt_tuning = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(saved_student), prompt_tuning).save_pretrained(tmp_path / "p")
    assert evaluate(recipe, "--limit", 1, "--against", tmp_path / "p") == 2
    assert "is a PROMPT_TUNING adapter, whose virtual tokens" in capsys.readouterr().err


def test_a_model_with_another_tokenizer_is_refused(recipe, saved_student, tmp_path, capsys):
    other = shutil.copytree(saved_student, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second, *_ = vocabulary
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert evaluate(recipe, "--limit", 1, "--against", other) == 2
    assert "has another tokenizer than" in capsys.readouterr().err
