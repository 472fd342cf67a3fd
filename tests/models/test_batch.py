"""Batches of requests at a server on this machine: what comes back is kept, what does not is asked again."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from batch_server import BatchServer, answered, not_executed, refused
from chat_server import MODEL, running

from edit_trl.common.errors import InputError
from edit_trl.models.chat.batch import BatchDispatcher, BatchOptions
from edit_trl.models.chat.batch_endpoint import BatchEndpoint
from edit_trl.models.chat.dispatch import (
    Answer,
    BudgetSpent,
    Dispatcher,
    Failure,
    Interrupted,
    Limits,
    TeacherUnavailable,
    stopped_by_signals,
)
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import ChatRequest, Sampling


def requests(count: int) -> list[ChatRequest]:
    sampling = Sampling(max_tokens=100)
    return [ChatRequest("annotate", f"row {n}", "v1", (("user", f"question {n}"),), sampling) for n in range(count)]


def echo(body: dict) -> str:
    return f"answer to {body['messages'][-1]['content']}"


def ask(url: str, folder: Path, asked, *, most_requests: int = 50_000, most_bytes: int = 10**6, **limits):
    """All outcomes by row, the dispatcher and what it told."""

    async def main():
        endpoint = BatchEndpoint(MODEL, [url], timeout=5.0)
        told, outcomes = [], {}
        with Journal(folder) as journal:
            sizes = {"most_requests": most_requests, "most_bytes": most_bytes}
            dispatcher = BatchDispatcher(endpoint, journal, Limits(**limits), poll_interval=0.01, **sizes)
            dispatcher.tell = lambda text, is_state: told.append(text)
            try:
                with stopped_by_signals([dispatcher]):
                    async for outcome in dispatcher.run(asked):
                        outcomes[outcome.request.row_id] = outcome
            finally:
                await endpoint.close()
            assert not [one for one in journal.batch_requests() if one.batch is None]
        return outcomes, dispatcher, told

    return asyncio.run(main())


def texts(outcomes) -> dict[str, str]:
    return {row: one.response.text for row, one in outcomes.items() if isinstance(one, Answer)}


def echoes(count: int) -> dict[str, str]:
    return {f"row {n}": f"answer to question {n}" for n in range(count)}


def test_a_batch_is_sent_waited_for_and_kept(tmp_path):
    server = BatchServer(echo)
    with running(server) as url:
        twice = [
            *requests(5),
            ChatRequest("annotate", "again", "v1", (("user", "question 0"),), Sampling(max_tokens=100)),
        ]
        first, dispatcher, told = ask(url, tmp_path, twice, prompt_price=1.0, completion_price=2.0)
        again, second, _ = ask(url, tmp_path, requests(5))
    assert texts(first) == echoes(5) | {"again": "answer to question 0"}
    assert texts(again) == echoes(5)
    assert [len(entries) for entries in server.uploads] == [5]
    assert server.uploads[0][0]["body"] == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "question 0"}],
        "temperature": 0.2,
        "top_p": 1.0,
        "max_tokens": 100,
    }
    assert told == [
        "batch batch_1: 5 requests sent",
        "batch batch_1: in_progress, 1 of 5 answered",
        "batch batch_1: completed, 1 of 5 answered",
    ]
    assert (dispatcher.stats.asked, dispatcher.stats.sent, second.stats.from_journal) == (6, 5, 5)
    assert dispatcher.stats.cost == pytest.approx(5 * (10 * 1.0 + 5 * 2.0) / 1e6)


def test_answers_are_those_of_the_same_endpoint_without_batches(tmp_path):
    """What a batch left open can be asked live, and the other way round."""
    server = BatchServer(echo)
    with running(server) as url:
        ask(url, tmp_path, requests(5))

        async def live():
            teacher = OpenAICompatibleTeacher(MODEL, [url])
            with Journal(tmp_path) as journal:
                found = [one async for one in Dispatcher(teacher, journal).run(requests(6))]
            await teacher.close()
            return found

        assert len(asyncio.run(live())) == 6
        ask(url, tmp_path, requests(6))
    assert (server.seen, len(server.uploads)) == (1, 1)


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_of_half_a_batch_what_came_is_kept_and_the_rest_asked_again(tmp_path, status):
    def end(number, entries):
        if number > 1:
            return {}
        output = [answered(entry, echo(entry["body"])) for entry in entries[:3]]
        codes = {"expired": "batch_expired", "cancelled": "batch_cancelled"}
        errors = [not_executed(entry, codes[status]) for entry in entries[3:]] if status in codes else []
        return {"status": status, "output": output, "errors_file": errors}

    server = BatchServer(echo, end)
    with running(server) as url:
        outcomes, dispatcher, told = ask(url, tmp_path, requests(8))
    assert texts(outcomes) == echoes(8)
    assert [len(entries) for entries in server.uploads] == [3 + 5, 5]
    assert set(server.paid.values()) == {1}
    assert f"batch batch_1 {status}: 3 of 8 requests answered, 5 to be asked again" in told
    assert sum(dispatcher.stats.retries.values()) == 5


def test_a_cancelled_batch_without_files_is_asked_again(tmp_path):
    server = BatchServer(echo, lambda number, _: {"status": "cancelled", "output": []} if number == 1 else {})
    with running(server) as url:
        outcomes, _, told = ask(url, tmp_path, requests(3))
    assert texts(outcomes) == echoes(3)
    assert "batch batch_1 cancelled: 0 of 3 requests answered, 3 to be asked again" in told


def test_each_line_has_the_fate_that_the_same_reply_has_without_a_batch(tmp_path):
    """Of eight lines in the first batch three are answers; then only what may be answered later is repeated."""

    def end(number, entries):
        if number > 1:
            return {}
        good = [answered(entry, echo(entry["body"])) for entry in entries]
        stranger = json.dumps(json.loads(good[0]) | {"custom_id": "of somebody else"})
        output = [good[0], good[1][:50], "[" * 100_000, stranger, json.dumps([good[4]]), good[5], good[5]]
        output += [answered(entries[2], '{"choices": []}')]
        errors = [refused(entries[3], 500, "internal"), refused(entries[4], 400, "maximum context length is 10")]
        errors += [refused(entries[6], 429, "slow down"), json.dumps({"custom_id": entries[7]["custom_id"]})]
        return {"output": output, "errors_file": errors}

    server = BatchServer(echo, end)
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(8))
    failure = outcomes.pop("row 4")
    assert isinstance(failure, Failure)
    assert failure.reason == "longer than the model's context (status 400: maximum context length is 10)"
    assert texts(outcomes) == {row: text for row, text in echoes(8).items() if row != "row 4"}
    assert [len(entries) for entries in server.uploads] == [8, 5]
    assert dispatcher.stats.retries == {
        "no readable line in the answers of a batch (completed)": 1,
        "no choices": 1,
        "status 500": 1,
        "status 429": 1,
        "a line without a response": 1,
    }


def test_what_fails_in_every_batch_is_given_up(tmp_path):
    server = BatchServer(echo, lambda n, entries: {"output": [], "errors_file": [refused(entries[0], 500, "broken")]})
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(1), max_attempts=3)
    assert outcomes["row 0"].reason == "status 500: broken (3 attempts)"
    assert (len(server.uploads), dispatcher.stats.failed) == (3, 1)


def test_a_line_that_no_request_could_better_stops_the_run(tmp_path):
    def end(number, entries):
        output = [answered(entry, echo(entry["body"])) for entry in entries[1:]]
        return {"output": output, "errors_file": [refused(entries[0], 402, "no money")]}

    server = BatchServer(echo, end)
    with running(server) as url:
        with pytest.raises(TeacherUnavailable, match=r"status 402: no money; the balance is exhausted"):
            ask(url, tmp_path, requests(4))
        server.end = lambda number, entries: {}
        outcomes, _, _ = ask(url, tmp_path, requests(4))
    assert texts(outcomes) == echoes(4)
    assert [len(entries) for entries in server.uploads] == [4, 1]


def test_requests_are_split_by_the_limits_of_a_file(tmp_path):
    server = BatchServer(echo)
    with running(server) as url:
        outcomes, _, told = ask(url, tmp_path / "requests", requests(7), most_requests=3)
        assert [len(entries) for entries in server.uploads] == [3, 3, 1]
        assert texts(outcomes) == echoes(7)
        line = len(BatchEndpoint(MODEL, [url]).line("k" * 64, requests(1)[0]))
        ask(url, tmp_path / "bytes", requests(4), most_bytes=2 * line)
    assert [len(entries) for entries in server.uploads[3:]] == [2, 2]
    expected = "more than one file takes (3 requests, 1 MB): the requests go into several batches"
    assert told.count(expected) == 1
    # All are sent before the first is waited for.
    assert server.calls[:6] == ["POST /files", "POST /batches"] * 3


def too_many(path: str, data: bytes):
    if path == "/files" and data.count(b"custom_id") > 2:
        return 413, {"error": {"message": "the file is too large"}}
    return None


def test_a_file_that_the_endpoint_refuses_as_too_large_is_split(tmp_path):
    server = BatchServer(echo, refuse=too_many)
    with running(server) as url:
        outcomes, _, told = ask(url, tmp_path, requests(7))
    assert texts(outcomes) == echoes(7)
    assert [len(entries) for entries in server.uploads] == [1] * 7  # 7, 3, 1: halves of what was refused
    refusals = [text for text in told if "are too many for a batch" in text]
    assert refusals == [
        "7 requests are too many for a batch (status 413: the file is too large): they go into smaller ones"
    ]


def test_a_batch_that_fails_for_its_size_waits_for_others_or_is_split(tmp_path):
    """OpenAI limits the tokens of all batches in progress; a batch beyond that fails when it is validated."""

    def end(number, entries):
        if number in (1, 3):
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            return {"status": "failed", "errors": {"object": "list", "data": [error]}}
        return {}

    server = BatchServer(echo, end)
    with running(server) as url:
        outcomes, _, _ = ask(url, tmp_path, requests(6))
    assert texts(outcomes) == echoes(6)
    assert [len(entries) for entries in server.uploads] == [6, 3, 3, 3]
    assert set(server.paid.values()) == {1}


def test_a_batch_that_fails_for_another_reason_stops_the_run_with_a_hint(tmp_path):
    error = {"code": "invalid_request", "message": "Unsupported parameter: 'top_p'", "param": "top_p", "line": 1}
    server = BatchServer(echo, lambda number, entries: {"status": "failed", "errors": {"data": [error]}})
    with running(server) as url:
        with pytest.raises(TeacherUnavailable, match=r"`extra_body: \{top_p: null\}` leaves `top_p` out"):
            ask(url, tmp_path, requests(3))
        server.end = lambda number, entries: {}
        outcomes, _, _ = ask(url, tmp_path, requests(3))  # the failed batch is forgotten
    assert texts(outcomes) == echoes(3)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, {"error": {"message": "Not Found"}}), "no batch can be made: status 404: Not Found"),
        ((400, {"error": {"message": "purpose?"}}), "no batch can be made: status 400: purpose?"),
        ((401, {"error": {"message": "wrong key"}}), "look at the key in the environment variable OPENAI_API_KEY"),
    ],
)
def test_an_endpoint_without_batches_is_told(tmp_path, refusal, message):
    server = BatchServer(echo, refuse=lambda path, _: refusal if path == "/files" else None)
    with running(server) as url, pytest.raises(TeacherUnavailable) as caught:
        ask(url, tmp_path, requests(3))
    assert message in str(caught.value)
    assert "`teacher: openai_compatible`" in str(caught.value)


def test_an_unknown_status_is_told(tmp_path):
    server = BatchServer(echo, lambda number, _: {"status": "on\x1b[31m holiday"})
    with (
        running(server) as url,
        pytest.raises(TeacherUnavailable, match=r"batch_1 has the unknown status 'on.*holiday'"),
    ):
        ask(url, tmp_path, requests(1))


def test_faults_on_the_way_are_repeated_and_no_batch_is_made_twice(tmp_path):
    """The answer to the making of the batch is lost, and every other call fails once."""
    seen = []

    def refuse(path, _):
        path = path.rstrip("123456789")
        if path in seen:
            return None
        seen.append(path)
        if path == "/batches":
            file = f"file-{len(server._files)}"
            server.batches["batch_1"] = {"id": "batch_1", "input_file_id": file, "status": "validating"}
            return 502, "<html>"
        return (503, "") if path.endswith("content") else (200, "[]")

    server = BatchServer(echo, refuse=refuse)
    with running(server) as url:
        outcomes, _, _ = ask(url, tmp_path, requests(2))
    assert texts(outcomes) == echoes(2)
    assert list(server.batches) == ["batch_1"]
    assert {"/files", "/batches", "GET /batches", "GET /batches/batch_"} <= set(seen)


def test_an_endpoint_that_is_gone_while_a_batch_waits_stops_the_run_and_the_batch_is_taken_up(tmp_path):
    server = BatchServer(echo, refuse=lambda path, _: (503, "") if path == "GET /batches/batch_1" else None)
    with running(server) as url:
        with pytest.raises(TeacherUnavailable, match="nothing but failures for"):
            ask(url, tmp_path, requests(3), give_up_after=0.01)
        server.refuse = lambda path, _: None
        outcomes, _, told = ask(url, tmp_path, requests(5))
    assert texts(outcomes) == echoes(5)
    assert [len(entries) for entries in server.uploads] == [3, 2]
    assert told[0] == "batch batch_1: 3 requests of an earlier run"


def test_ctrl_c_leaves_the_batch_in_progress(tmp_path):
    server = BatchServer(echo)
    server.is_held = True

    def interrupt(path, _):
        if server.calls.count("GET /batches/batch_1") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    server.refuse = interrupt
    with running(server) as url:
        with pytest.raises(Interrupted, match=r"interrupted\. Everything answered so far is in the journal"):
            ask(url, tmp_path, requests(3))
        server.is_held = False
        assert texts(ask(url, tmp_path, requests(3))[0]) == echoes(3)
    assert len(server.uploads) == len(server.batches) == 1


def test_other_requests_of_a_batch_that_is_taken_up_are_kept_for_later(tmp_path):
    server = BatchServer(echo)
    server.is_held = True
    with running(server) as url:
        server.refuse = lambda path, _: (503, "") if path == "GET /batches/batch_1" else None
        with pytest.raises(TeacherUnavailable):
            ask(url, tmp_path, requests(6), give_up_after=0.01)
        server.refuse, server.is_held = lambda path, _: None, False
        assert texts(ask(url, tmp_path, requests(2))[0]) == echoes(2)
        assert texts(ask(url, tmp_path, requests(6))[0]) == echoes(6)
    assert len(server.uploads) == 1


def test_a_batch_that_is_gone_is_told_with_the_way_out(tmp_path):
    server = BatchServer(echo, refuse=lambda path, _: (404, "") if path == "GET /batches/batch_1" else None)
    with (
        running(server) as url,
        pytest.raises(TeacherUnavailable, match="`teacher: openai_compatible` asks what it left"),
    ):
        ask(url, tmp_path, requests(3))


def test_no_more_is_sent_than_max_cost_allows(tmp_path):
    """An answer has at most 100 tokens and so costs 100 at most, and 5 really: 250 allows 2, and 10 later 2 more."""
    server = BatchServer(echo)
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(4), completion_price=1e6, max_cost=250)
        assert texts(outcomes) == echoes(4)
        assert [len(entries) for entries in server.uploads] == [2, 2]
        assert dispatcher.stats.cost == pytest.approx(20.0)
        with pytest.raises(BudgetSpent, match=r"`max_cost: 110` is spent \(20\.0000; another request may cost 100"):
            ask(url, tmp_path, requests(5), completion_price=1e6, max_cost=110)
        assert len(server.uploads) == 2


def test_the_discount_is_taken_off_the_prices():
    limits = BatchOptions(batch_discount=0.25).discounted(Limits(prompt_price=4.0, max_cost=2.0))
    assert (limits.prompt_price, limits.completion_price, limits.max_cost) == (3.0, None, 2.0)
    with pytest.raises(InputError, match=r"`batch_discount` must be at least 0 and below 1, got 1\.0"):
        BatchOptions(batch_discount=1.0)
