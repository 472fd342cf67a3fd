"""`edit-trl generate --config`, as a person runs it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from chat_server import MODEL, ChatServer, running

from edit_trl import load_dual_cots

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "edit_trl.cli.main"]


def edit_trl(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def recipe(folder: Path, url: str, questions: int = 40, **values) -> Path:
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(questions)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.yaml"
    base = {"model": MODEL, "base_urls": [url], "dataset_name": "q.jsonl", "output_dir": str(folder / "out")}
    path.write_text(yaml.safe_dump(base | values))
    return path


def solve(body: dict) -> str:
    """Right for even numbers when asked plainly, right with a hint, wrong when asked to corrupt."""
    prompt = body["messages"][-1]["content"]
    n = int(prompt.rpartition("What is ")[2].partition(" ")[0])
    wrong = "Wrong reasoning:" in prompt or ("Hint:" not in prompt and n % 2)
    return f"{n} and one more. Therefore, the answer is {n + (5 if wrong else 1)}."


def test_a_whole_run(tmp_path):
    with running(ChatServer(solve)) as url:
        path = recipe(tmp_path, url)
        checked = edit_trl("validate", "--config", path)
        done = edit_trl("generate", "--config", path, "--limit", "30", "--conversational=false")
    assert checked.returncode == 0, checked.stderr
    assert f"40 questions, 0 exemplars; teacher '{MODEL}'" in checked.stdout
    assert done.returncode == 0, done.stderr
    assert "annotate: 30 of 30" in done.stderr
    assert "15 correct, 15 wrong" in done.stderr
    dual = load_dual_cots(tmp_path / "out" / "dual.parquet")
    assert len(dual) == 30
    assert dual[0]["prompt"] == "What is 0 + 1?\n"
    assert f"{tmp_path / 'out' / 'dual.parquet'}: 30 rows" in done.stdout


def test_the_embedded_recipe_and_a_training_recipe_validate():
    done = edit_trl("validate", "--config", ROOT / "recipes/generate/procedural.yaml")
    assert (done.returncode, done.stdout) == (
        0,
        "120 questions of 3 tasks, 0 exemplars; teacher 'procedural' (procedural)\nvalid\n",
    )


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    server = ChatServer(solve, delay=0.05)
    with running(server) as url:
        path = recipe(tmp_path, url, questions=400, max_concurrency=8)
        child = subprocess.Popen(
            [*COMMAND, "generate", "--config", str(path)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while server.seen < 20:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
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
        assert process.wait(60) == 0
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
        (["--exemplars", "none.yaml"], "cannot read the exemplars none.yaml"),
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
