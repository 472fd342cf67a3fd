"""`edit-trl generate` with `teacher: batch`: its stages, its cost, and what comes of a run that is killed."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest
import yaml
from batch_server import BatchServer, answered, not_executed
from chat_server import running
from generate_runs import recipe, solve

from edit_trl.cli.main import main

PRICES = {"prompt_price": 2.0, "completion_price": 10.0}


def batch_recipe(folder, url, **values):
    return recipe(folder, url, teacher="batch", poll_interval=0.01, **PRICES, **values)


def run(command: str, path, *words: str) -> int:
    return main([command, "--config", str(path), *words])


def test_every_stage_is_a_batch_and_the_rows_are_those_of_single_requests(tmp_path, capsys):
    server = BatchServer(solve)
    with running(server) as url:
        path = batch_recipe(tmp_path, url, questions=10, label="paper")
        assert run("generate", path) == 0
        told = capsys.readouterr().err
        # A recipe without batches has nothing to ask: the answers are in the journal.
        values = yaml.safe_load(path.read_text())
        del values["poll_interval"]
        path.write_text(yaml.safe_dump(values | {"teacher": "openai_compatible"}))
        rows = (tmp_path / "out" / "dual.parquet").read_bytes()
        assert run("generate", path) == 0
        assert (tmp_path / "out" / "dual.parquet").read_bytes() == rows
    assert [len(entries) for entries in server.uploads] == [10, 5, 5, 10]  # annotate, rectify, corrupt, label
    assert server.seen == 0
    assert "rectify: batch batch_2: in_progress, 1 of 5 answered" in told
    assert "rectify 5/5" in told


def test_the_price_is_in_the_estimate_the_report_and_the_card(tmp_path, capsys):
    server = BatchServer(solve)
    with running(server) as url:
        path = batch_recipe(tmp_path, url, questions=10, system_prompt="s" * 4000)
        assert run("validate", path, "--max_cost", "0.01") == 0
        estimate = capsys.readouterr().out
        assert server.uploads == []
        assert run("generate", path) == 0
    # 10 questions are annotated, 5 chains rectified and 5 corrupted; a prompt has 1,000 tokens and the template.
    assert (
        "estimate: about 20 requests, cost 0.05, 50% off in batches (half of the chains wrong, answers of 256"
        in estimate
    )
    assert "`max_cost: 0.01` will stop the run before its end" in estimate
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    # 20 answers, each with 10 tokens of prompt and 5 of completion.
    assert report["batch"] == {"discount": 0.5, "cost": pytest.approx(20 * (10 * 1.0 + 5 * 5.0) / 1e6)}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "its cost is at 50% off the price of single requests" in card
    assert "| teacher | 200 | 100 | 0.0007 |" in card
    assert "poll_interval" not in card


def test_without_prices_the_estimate_asks_for_them(tmp_path, capsys):
    path = recipe(tmp_path, "http://127.0.0.1:1/v1", questions=10, teacher="batch", samples=3, pairs_per_question=2)
    assert run("validate", path, "--rectify_check", "judge", "--label", "fine") == 0
    # 30 annotated; of each question 1.5 chains are rectified, 1.5 corrupted; 15 checks, 30 labels.
    expected = "estimate: about 105 requests, 50% off in batches; `prompt_price` and `completion_price` (per million"
    assert expected in capsys.readouterr().out


def test_a_recipe_without_batches_is_estimated_at_full_price(tmp_path, capsys):
    with running(BatchServer(solve)) as url:
        path = recipe(tmp_path, url, questions=10, system_prompt="s" * 4000, **PRICES)
        assert run("validate", path) == 0
        assert "about 20 requests, cost 0.10 (half" in capsys.readouterr().out
        assert run("generate", path) == 0
    assert "batch" not in json.loads((tmp_path / "out" / "report.json").read_text())
    assert "batches" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_half_of_each_stage_comes_and_the_rest_is_asked_again(tmp_path, capsys, status):
    def end(number, entries):
        if number % 2 == 0:
            return {}
        half = len(entries) // 2
        output = [answered(entry, solve(entry["body"])) for entry in entries[:half]]
        return {
            "status": status,
            "output": output,
            "errors_file": [not_executed(entry, f"batch_{status}") for entry in entries[half:]],
        }

    server = BatchServer(solve, end)
    with running(server) as url:
        assert run("generate", batch_recipe(tmp_path, url, questions=8)) == 0
    told = capsys.readouterr().err
    assert [len(entries) for entries in server.uploads] == [8, 4, 4, 2, 4, 2]
    assert set(server.paid.values()) == {1}
    assert f"annotate: batch batch_1 {status}: 4 of 8 requests answered, 4 to be asked again" in told
    assert json.loads((tmp_path / "out" / "report.json").read_text())["failures"] == []


def test_a_run_that_is_killed_while_it_waits_takes_up_the_same_batch(tmp_path, capsys):
    """Killed in the second stage, on a terminal; nothing is sent or paid for twice."""
    server, waits = BatchServer(solve), threading.Event()

    def refuse(path, _):
        server.is_held = len(server.batches) == 2
        if server.calls.count("GET /batches/batch_2") > 3:
            waits.set()

    server.refuse = refuse
    environment = os.environ | {"OPENAI_API_KEY": "sk-very-secret-key"}
    with running(server) as url:
        path = batch_recipe(tmp_path, url, questions=8)
        parent, child = pty.openpty()
        command = [sys.executable, "-m", "edit_trl.cli.main", "generate", "--config", str(path)]
        process = subprocess.Popen(command, stdout=child, stderr=child, env=environment)
        os.close(child)
        shown = b""
        while not waits.is_set():
            shown += os.read(parent, 4096)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        os.close(parent)
        assert [len(entries) for entries in server.uploads] == [8, 4]
        server.refuse, server.is_held = lambda path, _: None, False
        assert run("generate", path) == 0
    assert b"batch_2: in_progress" in shown
    assert "rectify: batch batch_2: 4 requests of an earlier run" in capsys.readouterr().err
    assert [len(entries) for entries in server.uploads] == [8, 4, 4]
    assert len(server.batches) == 3
    assert set(server.paid.values()) == {1}
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"very-secret" not in file.read_bytes(), file


def test_a_file_beyond_the_limits_of_the_endpoint_is_split(tmp_path, capsys):
    def refuse(path, data):
        is_large = path == "/files" and data.count(b"custom_id") > 5
        return (400, {"error": {"message": "File exceeds the maximum number of requests"}}) if is_large else None

    server = BatchServer(solve, refuse=refuse)
    with running(server) as url:
        assert run("generate", batch_recipe(tmp_path, url, questions=10)) == 0
    told = capsys.readouterr().err
    assert [len(entries) for entries in server.uploads] == [5, 5, 5, 5]
    assert told.count("too many for a batch") == 1
    assert "10 requests are too many for a batch (status 400: File exceeds the maximum number of requests)" in told
