"""A suite at an endpoint that serves a real tiny model's log-probabilities, and at some that do not."""

import json

import pytest
from chat_server import MODEL, ChatServer, completion, running
from completion_engine import Engine
from conftest import ROWS, byte_level_tokenizer, tiny_llama
from suite_rows import SEVERAL

from edit_trl import evaluate_suite
from edit_trl.cli.main import main
from edit_trl.evaluation.runs.folder import read_run
from edit_trl.evaluation.suite import endpoint_scorer as suite_endpoint

ALL = [*ROWS, SEVERAL]


@pytest.fixture
def ask(tmp_path, saved_student, capsys, monkeypatch):
    """The command with an endpoint; returns its exit code and what it printed to stderr."""
    monkeypatch.setattr(suite_endpoint, "_WAIT", 0.01)
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
    expected = evaluate_suite(
        tiny_llama(), byte_level_tokenizer(), ALL, max_new_tokens=4, progress=False
    ).items
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


def without_logprobs(choice: dict) -> dict:
    return {**choice, "logprobs": None}


def of_the_generated_token_alone(choice: dict) -> dict:
    return {**choice, "logprobs": {name: values[-1:] for name, values in choice["logprobs"].items()}}


def other_tokens(choice: dict) -> dict:
    texts = [f"{text}x" for text in choice["logprobs"]["tokens"]]
    return {**choice, "logprobs": {**choice["logprobs"], "tokens": texts}}


def no_number(choice: dict) -> dict:
    logps = [None] * len(choice["logprobs"]["token_logprobs"])
    return {**choice, "logprobs": {**choice["logprobs"], "token_logprobs": logps}}


BAD = {
    "none": (Engine(without_logprobs), "gave 0 for"),
    "generated": (Engine(of_the_generated_token_alone), "a suite needs the log-probabilities of the prompt"),
    "chat": (lambda body: completion("hello"), "a suite needs the log-probabilities of the prompt"),
    "tokenizer": (Engine(other_tokens), "Name the tokenizer of its model"),
    "not finite": (Engine(no_number), "the log-probability of token 1 of the correct chain is nan"),
    "empty": (lambda body: json.dumps({"choices": []}), "answered without `choices`"),
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
