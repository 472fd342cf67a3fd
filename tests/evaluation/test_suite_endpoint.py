"""A suite at an endpoint that serves a real tiny model's log-probabilities, and at some that do not."""

import json
import subprocess
import sys
import time

import pytest
from chat_server import MODEL, ChatServer, completion, running
from completion_engine import Engine
from conftest import ROWS, byte_level_tokenizer, tiny_llama
from suite_rows import SEVERAL

from edit_trl import evaluate_suite
from edit_trl.cli.main import main
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.models.chat import dispatch

ALL = [*ROWS, SEVERAL]


@pytest.fixture
def ask(tmp_path, saved_student, capsys, monkeypatch):
    """The command with an endpoint; returns its exit code and what it printed to stderr."""
    monkeypatch.setattr(dispatch, "_FIRST_WAIT", 0.01)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({**row, "rejected": _several(row)}) + "\n" for row in ALL))

    def run(url: str, *options: str, tokenizer=saved_student) -> tuple[int, str]:
        command = ["suite", "--model", MODEL, "--base_urls", url, "--dataset_name", str(data)]
        command += ["--tokenizer", str(tokenizer)] if tokenizer else []
        command += ["--output_dir", str(tmp_path / "run"), "--history", "null", "--max_new_tokens", "4"]
        code = main([*command, *options])
        return code, capsys.readouterr().err

    return run


def _several(row: dict) -> list:
    return row["rejected"] if isinstance(row["rejected"], list) else [row["rejected"]]


def test_the_numbers_are_those_of_the_model_itself(ask, tmp_path):
    with running(ChatServer(answer=Engine())) as url:
        code, err = ask(url, "--batch_size", "3")
    assert code == 0, err
    items = read_run(tmp_path / "run").items
    expected = evaluate_suite(tiny_llama(), byte_level_tokenizer(), ALL, max_new_tokens=4, progress=False).items
    assert len(items) == len(expected) == len(ROWS) + 2
    for ours, theirs in zip(items, expected, strict=True):
        for name in ("id", "preferred", "key_preferred", "chosen_key_spans", "answer"):
            assert ours[name] == theirs[name]
        assert ours["logps"] == pytest.approx(theirs["logps"], abs=1e-4)
        assert ours["greedy"] == theirs["greedy"]
        assert {**ours["first_wrong"], "logp": 0} == {**theirs["first_wrong"], "logp": 0}
        assert ours["first_wrong"]["logp"] == pytest.approx(theirs["first_wrong"]["logp"], abs=1e-4)


def test_a_fault_that_passes_is_outlived(ask):
    faults = {2: "429", 4: "reset", 6: "truncated JSON", 7: "500"}
    server = ChatServer(answer=Engine(), fault=lambda number, body: faults.get(number))
    with running(server) as url:
        code, err = ask(url, "--limit", "2", "--greedy", "false")
    assert code == 0, err
    assert server.seen == 4 + len(faults)


def test_what_was_answered_is_not_paid_for_again(ask, tmp_path):
    """The endpoint breaks off, and the items that were made of its answers are lost too."""
    whole, part = ChatServer(answer=Engine()), ChatServer(answer=Engine())
    part.fault = lambda number, body: "401" if number > 7 else None
    with running(whole) as url:
        assert ask(url, "--output_dir", str(tmp_path / "whole"))[0] == 0
    with running(part) as url:
        code, err = ask(url, "--batch_size", "2")
        assert code == 2
        assert "run the same command again" in err
        assert sum(part.paid.values()) == 7
        (tmp_path / "run" / "items.jsonl").unlink(missing_ok=True)
        part.fault = lambda number, body: None
        assert ask(url, "--batch_size", "2")[0] == 0
    assert part.paid == whole.paid
    assert set(part.paid.values()) == {1}
    items = [(tmp_path / folder / "items.jsonl").read_bytes() for folder in ("whole", "run")]
    assert items[0] == items[1]


def test_limits_hold_as_for_every_endpoint(ask):
    server = ChatServer(answer=Engine(), delay=0.02)
    with running(server) as url:
        assert ask(url, "--max_concurrency", "3")[0] == 0
        assert server.most_in_flight <= 3
        code, err = ask(url, "--limit", "3", "--completion_price", "1e6", "--max_cost", "-1", "--max_attempts", "0")
    assert code == 2
    assert "`max_cost` must be positive" in err
    assert "`max_attempts` must be at least 1" in err


@pytest.mark.slow
def test_a_killed_run_pays_for_nothing_twice(tmp_path, saved_student):
    """A real process, ended by SIGKILL three times."""
    server = ChatServer(answer=Engine(), delay=0.1)
    with running(server) as url:
        command = [sys.executable, "-m", "edit_trl.cli.main", "suite", "--model", MODEL, "--base_urls", url]
        command += ["--tokenizer", str(saved_student), "--rows", "12", "--conversational", "false"]
        command += ["--max_new_tokens", "4", "--batch_size", "1", "--history", "null"]

        def start(folder: str) -> subprocess.Popen:
            return subprocess.Popen([*command, "--output_dir", str(tmp_path / folder)])

        for _ in range(3):
            paid, process = sum(server.paid.values()), start("part")
            while process.poll() is None and sum(server.paid.values()) < paid + 6:
                time.sleep(0.01)
            process.kill()
            process.wait()
        assert start("part").wait() == 0
        # An answer that was under way when the process died is asked for again: at most two a kill.
        assert sum(server.paid.values()) - len(server.paid) <= 3 * 2
        assert start("whole").wait() == 0
    items = [(tmp_path / folder / "items.jsonl").read_bytes() for folder in ("whole", "part")]
    assert items[0] == items[1]


def without_logprobs(choice: dict) -> dict:
    return {**choice, "logprobs": None}


def changed(choice: dict, change) -> dict:
    """With other log-probabilities, where some were asked for."""
    return {**choice, "logprobs": change(choice["logprobs"])} if "logprobs" in choice else choice


def of_the_generated_token_alone(choice: dict) -> dict:
    return changed(choice, lambda logprobs: {name: values[-1:] for name, values in logprobs.items()})


def other_tokens(choice: dict) -> dict:
    return changed(choice, lambda logprobs: {**logprobs, "tokens": [f"{t}x" for t in logprobs["tokens"]]})


def no_number(choice: dict) -> dict:
    return changed(choice, lambda logprobs: {**logprobs, "token_logprobs": [None] * len(logprobs["tokens"])})


BAD = {
    "none": (Engine(without_logprobs), "returned 0 log-probabilities for"),
    "generated": (Engine(of_the_generated_token_alone), "a suite needs the log-probabilities of the prompt"),
    "chat": (lambda body: completion("hello"), "a suite needs the log-probabilities of the prompt"),
    "tokenizer": (Engine(other_tokens), "Name the tokenizer of that model"),
    "not finite": (Engine(no_number), "the log-probability of token 1 of the correct chain is nan"),
    "empty": (lambda body: json.dumps({"choices": []}), 'no choices: {"choices": []} (6 attempts)'),
}


@pytest.mark.parametrize("name", BAD)
def test_an_endpoint_that_lacks_log_probabilities_is_said(ask, tmp_path, name):
    answer, says = BAD[name]
    with running(ChatServer(answer=answer)) as url:
        code, err = ask(url)
    assert code == 2
    assert says in err
    assert not (tmp_path / "run" / "items.jsonl").exists()


def test_refusals_and_a_missing_tokenizer_are_said(ask):
    with running(ChatServer(answer=Engine(), fault=lambda number, body: "404")) as url:
        code, err = ask(url)
        assert code == 2
        assert "404" in err
        assert "with `echo` and `logprobs`" in err
        code, err = ask(url, tokenizer=None)
        assert code == 2
        assert "`tokenizer` is missing" in err
    code, err = ask("http://127.0.0.1:9/v1")
    assert code == 2
    assert "cannot reach" in err
