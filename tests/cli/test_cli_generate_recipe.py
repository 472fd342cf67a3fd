"""`edit-trl generate --config`, as a person runs it."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from chat_server import MODEL, ChatServer, running
from generate_runs import recipe, solve

from edit_trl import load_dual_cots
from edit_trl.models.chat.journal import Journal

ROOT = Path(__file__).parents[2]

COMMAND = [sys.executable, "-m", "edit_trl.cli.main"]


def edit_trl(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=300, check=False, **options
    )


def test_a_whole_run(tmp_path):
    with running(ChatServer(solve)) as url:
        path = recipe(tmp_path, url)
        checked = edit_trl("validate", "--config", path)
        done = edit_trl("generate", "--config", path, "--limit", "30", "--conversational=false")
    assert checked.returncode == 0, checked.stderr
    assert f"40 questions, 0 exemplars; teacher '{MODEL}'" in checked.stdout
    assert done.returncode == 0, done.stderr
    assert "annotate 30/30" in done.stderr
    assert "15 correct, 15 wrong" in done.stderr
    dual = load_dual_cots(tmp_path / "out" / "dual.parquet")
    assert len(dual) == 30
    assert dual[0]["prompt"] == "What is 0 + 1?\n"
    assert f"{tmp_path / 'out' / 'dual.parquet'}: 30 rows" in done.stdout


def test_the_embedded_recipe_and_a_training_recipe_validate():
    done = edit_trl("validate", "--config", ROOT / "recipes/generate/procedural.yaml")
    assert (done.returncode, done.stdout) == (
        0,
        f"{ROOT / 'recipes/generate/procedural.yaml'}: a recipe of `edit-trl generate`\n"
        "120 questions of 3 tasks, 0 exemplars; teacher 'procedural' (procedural)\nvalid\n",
    )


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    server = ChatServer(solve, delay=0.05)
    with running(server) as url:
        path = recipe(tmp_path, url, questions=400, max_concurrency=8)
        child = subprocess.Popen(
            [*COMMAND, "generate", "--config", str(path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while server.seen < 20:
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=120)
        assert child.returncode == 130
        assert "interrupted. Everything answered so far is in the journal" in told
        assert f"edit-trl generate --config {path}" in told
        assert server.seen < 200
        paid = server.seen
        done = edit_trl("generate", "--config", path)
        assert done.returncode == 0, done.stderr
    assert "from the journal" in done.stderr
    assert server.seen == sum(server.paid.values()) == 400 + 200 + 200
    assert paid < server.seen


def test_a_terminal_has_a_live_display(tmp_path):
    with running(ChatServer(solve)) as url:
        path = recipe(tmp_path, url)
        parent, child = pty.openpty()
        process = subprocess.Popen([*COMMAND, "generate", "--config", str(path)], stderr=child, stdout=child)
        os.close(child)
        shown = b""
        while True:
            try:
                piece = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.wait(120) == 0
    text = shown.decode()
    assert "annotate" in text
    assert "40/40" in text
    assert "20 correct, 20 wrong" in text
    assert "\x1b[" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sample", "3"], "unknown option --sample; did you mean `--samples`?"),
        (["--samples"], "--samples needs a value"),
        (["--samples", "three"], "`samples: 'three'`: expected a whole number"),
        (["--exemplars", "none.yaml"], "no file of exemplars at none.yaml"),
        (["--base_urls", "http://127.0.0.1:9/v1"], "cannot reach http://127.0.0.1:9/v1"),
        (["--model", "other"], f"has no model 'other'; it has {MODEL}"),
        (["--dataset_name", "none.jsonl"], "no such file or folder: 'none.jsonl'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, words, message):
    server = ChatServer(solve)
    with running(server) as url:
        done = edit_trl("generate", "--config", recipe(tmp_path, url), *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert server.seen == 0


def test_keys_reach_no_file(tmp_path):
    server = ChatServer(solve)
    with running(server) as url:
        environment = os.environ | {"OPENAI_API_KEY": "sk-very-secret-key"}
        done = edit_trl("generate", "--config", recipe(tmp_path, url), env=environment)
    assert done.returncode == 0, done.stderr
    assert server.keys == {"Bearer sk-very-secret-key"}
    assert "very-secret" not in done.stderr + done.stdout
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes(), path


def test_help_is_quick_and_whole():
    done = edit_trl("generate", "--config", "--help")
    assert done.returncode == 0
    assert "--max_cost" in done.stdout
    assert "--samples (default: 1)" in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "generate", "--config", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.rpartition("|")[2].strip() for line in loaded.stderr.splitlines()}
    assert not modules & {"torch", "transformers", "datasets", "openai"}


def files_of(folder: Path) -> dict[str, bytes]:
    names = ("dual.parquet", "warm_up.parquet", "report.json", "README.md")
    return {name: (folder / name).read_bytes() for name in names}


def killed_runs(tmp_path: Path, kills: int, rng: random.Random) -> None:
    """Killed at random and started again, a run ends in the bytes of one that was left alone."""
    server = ChatServer(solve, delay=0.1)
    with running(server) as url:
        options = {"questions": 150, "max_concurrency": 8, "label": "none"}
        whole = edit_trl("generate", "--config", recipe(tmp_path, url, **options))
        assert whole.returncode == 0, whole.stderr
        expected, paid = files_of(tmp_path / "out"), sum(server.paid.values())
        server.paid.clear()
        command = [*COMMAND, "generate", "--config", str(tmp_path / "recipe.yaml")]
        command += ["--output_dir", str(tmp_path / "killed")]
        for _ in range(kills):
            child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.6, 1.4))
            child.send_signal(signal.SIGKILL)
            child.wait()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert files_of(tmp_path / "killed") == expected
        # Asked for twice is at most what was in flight at a kill and so is not in the journal.
        assert paid <= sum(server.paid.values()) <= paid + 8 * kills
        with Journal(tmp_path / "killed") as journal:
            assert len(journal) == paid


def test_a_killed_run_ends_in_the_same_bytes(tmp_path):
    killed_runs(tmp_path, 2, random.Random(0))


@pytest.mark.slow
def test_twenty_kills_end_in_the_same_bytes(tmp_path):
    killed_runs(tmp_path, 20, random.Random(1))


TRAINING = """
model_name_or_path: replaced
dataset_name: replaced
output_dir: replaced
use_peft: true
lora_r: 4
lora_target_modules: all-linear
per_device_train_batch_size: 4
max_steps: 1
gradient_checkpointing: false
use_cpu: true
bf16: false
report_to: none
save_strategy: "no"
stages:
  - name: warm_up
    preference_weight: 0.0
  - name: key_steps
"""


STAGES = ("warm_up", "key_steps")


def test_rounds_generate_and_train_in_turn(tmp_path, saved_student):
    (tmp_path / "train.yaml").write_text(TRAINING)
    path = tmp_path / "recipe.yaml"
    values = {"teacher": "procedural", "families": ["arithmetic"], "rows": 12, "max_tokens": 8, "rounds": 2}
    values |= {"student": str(saved_student), "train_recipe": str(tmp_path / "train.yaml")}
    path.write_text(yaml.safe_dump(values | {"output_dir": str(tmp_path / "out")}))
    done = edit_trl("generate", "--config", path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"round 1 of 2: student {saved_student}" in done.stderr
    trained = tmp_path / "out" / "round_1" / "student" / "key_steps"
    assert f"round 2 of 2: student {trained}" in done.stderr
    rounds = json.loads((tmp_path / "out" / "rounds.json").read_text())["rounds"]
    for number in (1, 2):
        folder = tmp_path / "out" / f"round_{number}"
        assert len(load_dual_cots(folder / "dual.parquet")) == 12
        stages = [json.loads((folder / "student" / name / "trainer_state.json").read_text()) for name in STAGES]
        one = rounds[number - 1]
        assert one["steps"] == sum(stage["global_step"] for stage in stages)
        assert (one["questions"], one["mixed"], one["right"]) == (12, None, 0)
        assert (folder / "student" / "key_steps" / "adapter_model.safetensors").is_file()
        # An untrained student of 30 thousand parameters writes nothing that could be mended.
        assert sum(json.loads((folder / "report.json").read_text())["counts"]["student"].values()) == 12
