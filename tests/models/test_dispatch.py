"""Requests through the journal to a server that fails in every way."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import MODEL, ChatServer, completion, running

from edit_trl.common.errors import InputError
from edit_trl.models.chat.dispatch import (
    Answer,
    BudgetSpent,
    Dispatcher,
    Failure,
    Interrupted,
    Limits,
    TeacherUnavailable,
)
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.pacing import Pacer, RateLimit
from edit_trl.models.chat.protocol import ChatRequest, RawResponse, Sampling


def requests(count: int, sample: int = 0) -> list[ChatRequest]:
    return [
        ChatRequest("annotate", f"row {n}", "v1", (("user", f"question {n}"),), Sampling(), sample)
        for n in range(count)
    ]


def ask(url: str, folder: Path, asked, timeout: float = 5.0, watch=None, **limits):
    """All outcomes by row, and the dispatcher."""

    async def main():
        teacher = OpenAICompatibleTeacher(MODEL, [url] if isinstance(url, str) else url, timeout=timeout)
        with Journal(folder) as journal:
            dispatcher = Dispatcher(teacher, journal, Limits(**limits))
            outcomes = {}
            try:
                async for outcome in dispatcher.run(asked):
                    outcomes[outcome.request.row_id] = outcome
                    if watch:
                        watch(dispatcher, outcomes)
            finally:
                await teacher.close()
            return outcomes, dispatcher, len(journal)

    return asyncio.run(main())


def echo(body: dict) -> str:
    return f"answer to {body['messages'][-1]['content']}"


def test_answers_come_once_and_then_from_the_journal(tmp_path):
    server = ChatServer(echo)
    with running(server) as url:
        first, dispatcher, kept = ask(url, tmp_path, requests(50))
        again, second, _ = ask(url, tmp_path, requests(60))
    assert {row: answer.response.text for row, answer in first.items()} == {
        f"row {n}": f"answer to question {n}" for n in range(50)
    }
    assert all(answer.fresh for answer in first.values())
    assert kept == 50
    assert server.seen == 60
    assert sum(answer.fresh for answer in again.values()) == 10
    assert (second.stats.from_journal, second.stats.sent) == (50, 10)
    assert dispatcher.stats.models == {MODEL: 50}
    assert (dispatcher.stats.prompt_tokens, dispatcher.stats.completion_tokens) == (500, 250)


def test_the_same_request_of_two_rows_is_sent_once(tmp_path):
    one = requests(1)[0]
    other = ChatRequest("annotate", "another row", "v1", one.messages, one.sampling)
    server = ChatServer(echo, delay=0.05)
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, [one, other], prompt_price=1.0, completion_price=2.0)
    assert server.seen == 1
    assert outcomes["row 0"].response == outcomes["another row"].response
    assert dispatcher.stats.cost == pytest.approx((10 * 1.0 + 5 * 2.0) / 1e6)


@pytest.mark.parametrize(
    "change",
    [
        {"sample": 1},
        {"seed": 3},
        {"template": "v2"},
        {"stage": "corrupt"},
        {"sampling": Sampling(temperature=0.5)},
        {"messages": (("user", "other"),)},
    ],
)
def test_what_may_change_an_answer_is_part_of_the_key(change):
    teacher = OpenAICompatibleTeacher(MODEL, ["http://127.0.0.1:1/v1"])
    request = requests(1)[0]
    changed = ChatRequest(**({name: getattr(request, name) for name in request.__dataclass_fields__} | change))
    assert changed.key(teacher) != request.key(teacher)
    elsewhere = OpenAICompatibleTeacher(MODEL, ["http://127.0.0.1:2/v1"])
    assert request.key(elsewhere) != request.key(teacher)
    assert request.key(OpenAICompatibleTeacher("other", ["http://127.0.0.1:1/v1"])) != request.key(teacher)


FAULTS = ["429", "429 0.2", "500", "503", "reset", "truncated JSON", "empty choices", "html", "slow body", "empty"]
FAULTS += ["half a body", "408", "409"]


def test_every_fault_that_may_pass_is_tried_again(tmp_path):
    """Two requests in five fail in some way; the answers alone are journaled."""
    rng = random.Random(0)
    plan = [rng.choice(FAULTS) if rng.random() < 0.4 else None for _ in range(2000)]
    server = ChatServer(echo, lambda n, body: plan[n])
    with running(server) as url:
        outcomes, dispatcher, kept = ask(url, tmp_path, requests(120), max_concurrency=32, max_attempts=12)
    assert {row: outcome.response.text for row, outcome in outcomes.items()} == {
        f"row {n}": f"answer to question {n}" for n in range(120)
    }
    assert kept == 120 < sum(server.paid.values())
    assert {"status 429", "status 500", "not JSON", "no choices"} <= set(dispatcher.stats.retries)


def test_what_never_works_is_listed_and_not_tried_again(tmp_path):
    def fault(n, body):
        return {"question 3": "400", "question 5": "422"}.get(body["messages"][-1]["content"])

    server = ChatServer(echo, fault)
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(8))
    failures = {row: o.reason for row, o in outcomes.items() if isinstance(o, Failure)}
    assert failures["row 3"] == "longer than the model's context (status 400: maximum context length is 10)"
    assert failures["row 5"] == "status 422: no"
    assert len(failures) == 2
    assert server.seen == 8
    assert dispatcher.stats.failed == 2


def test_a_request_that_keeps_failing_is_given_up(tmp_path):
    server = ChatServer(echo, lambda n, body: "500" if "question 1" in str(body) else None)
    with running(server) as url:
        outcomes, _, _ = ask(url, tmp_path, requests(3), max_attempts=2)
    assert outcomes["row 1"] == Failure(requests(3)[1], "status 500: no (2 attempts)")
    assert server.seen == 4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>502 Bad Gateway</html>", "not JSON: <html>502 Bad Gateway</html>"),
        (completion("half")[:40], 'not JSON: {"id": "c", "object": "chat.completion",'),
        (json.dumps({"error": {"message": "Rate limit exceeded", "code": 429}}), "status 429: Rate limit exceeded"),
        (json.dumps({"error": {"message": "upstream", "code": "x"}}), "no choices: upstream"),
        (json.dumps({"object": "error", "message": "worker died", "code": 50001}), "no choices: worker died"),
    ],
)
def test_what_is_no_answer_is_not_kept_and_asked_for_by_the_next_run(tmp_path, body, reason):
    server = ChatServer(echo, lambda n, asked: body if n <= 2 else None)
    with running(server) as url:
        outcomes, _, kept = ask(url, tmp_path, requests(1), max_attempts=2)
        assert (outcomes["row 0"].reason, kept) == (f"{reason} (2 attempts)", 0)
        again, _, kept = ask(url, tmp_path, requests(1), max_attempts=2)
    assert again["row 0"].response.text == "answer to question 0"
    assert (server.seen, kept) == (3, 1)


def test_a_timeout_is_tried_again(tmp_path):
    server = ChatServer(echo, lambda n, body: "timeout" if n == 1 else None)
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(1), timeout=0.3)
    assert outcomes["row 0"].response.text == "answer to question 0"
    assert dispatcher.stats.retries == {"timeout": 1}


@pytest.mark.parametrize("give_up_after", [3.0, 0.5])
def test_one_request_that_always_times_out_is_listed(tmp_path, give_up_after):
    """However often: failures of one request are not an endpoint that is gone."""
    server = ChatServer(echo, lambda n, body: "timeout" if "question 3" in str(body) else None)
    limits = {"max_attempts": 6, "give_up_after": give_up_after}
    with running(server) as url:
        outcomes, _, _ = ask(url, tmp_path, requests(8), timeout=0.2, **limits)
    assert outcomes["row 3"] == Failure(requests(8)[3], "timeout (6 attempts)")
    assert sum(isinstance(outcome, Answer) for outcome in outcomes.values()) == 7


def test_one_failure_between_slow_answers_is_no_outage(tmp_path):
    server = ChatServer(echo, lambda n, body: "500" if n == 2 else None, delay=0.6)
    with running(server) as url:
        outcomes, _, _ = ask(url, tmp_path, requests(3), max_concurrency=1, give_up_after=0.5)
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())


def test_one_request_that_is_turned_away_forever_stops_the_run(tmp_path):
    with running(ChatServer(echo, lambda n, body: "429")) as url, pytest.raises(TeacherUnavailable):
        ask(url, tmp_path, requests(1), give_up_after=0.5)


def test_a_stop_is_heard_while_the_journal_is_read(tmp_path):
    async def main(url):
        teacher = OpenAICompatibleTeacher(MODEL, [url])
        with Journal(tmp_path) as journal:
            dispatcher = Dispatcher(teacher, journal)
            asyncio.get_running_loop().call_later(0, dispatcher.stop)
            seen = []
            try:
                async for outcome in dispatcher.run(requests(300)):
                    seen.append(outcome)
            except Interrupted:
                return len(seen)
            finally:
                await teacher.close()

    with running(ChatServer(echo)) as url:
        ask(url, tmp_path, requests(300))
        assert asyncio.run(main(url)) < 300


def test_a_wait_that_is_asked_for_is_kept(tmp_path):
    server = ChatServer(echo, lambda n, body: "429 0.6" if n == 1 else None)
    started = time.monotonic()
    with running(server) as url:
        ask(url, tmp_path, requests(1))
    assert time.monotonic() - started > 0.6


def test_too_many_requests_mean_fewer_at_once(tmp_path):
    """The server takes eight at once and refuses the rest."""
    server = ChatServer(echo, delay=0.02)
    server.fault = lambda n, body: "429" if server.in_flight > 8 else None
    with running(server) as url:
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(200), max_concurrency=64)
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
    assert server.most_in_flight < 40
    assert dispatcher.pacer.limit < 20


def fill(pacer: Pacer, latencies: list[float], **release) -> float:
    """The limit after answers of these latencies, while others wait for their turn."""

    async def main():
        waiters = [asyncio.ensure_future(pacer.acquire()) for _ in range(300)]
        for latency in latencies:
            await asyncio.sleep(0)
            pacer.release("annotate", latency, **release)
        pacer.close()
        await asyncio.gather(*waiters, return_exceptions=True)
        return pacer.limit

    return asyncio.run(main())


def test_all_goes_well_with_as_many_as_allowed():
    assert fill(Pacer(40), [0.1] * 32) == 40
    assert fill(Pacer(40), [0.1] * 100) == 40
    assert fill(Pacer(3), [0.1] * 10) == 3


def test_congestion_halves_once_a_round_trip():
    assert fill(Pacer(64), [60.0] * 5, congestion=True) == 4  # eight at the start; the others were sent before
    assert fill(Pacer(64), [0.0] * 5, congestion=True) == 1


def test_a_wrong_key_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server = ChatServer(echo, lambda n, body: "401")
    with running(server) as url, pytest.raises(TeacherUnavailable) as caught:
        ask(url, tmp_path, requests(100), max_concurrency=4)
    assert server.seen <= 4
    assert server.keys == {"Bearer sk-very-secret"}
    message = str(caught.value)
    assert "401" in message
    assert "OPENAI_API_KEY" in message
    assert "run the same command again" in message
    assert "very-secret" not in message


def test_requests_that_are_all_refused_stop_the_run(tmp_path):
    server = ChatServer(echo, lambda n, body: "400")
    with running(server) as url, pytest.raises(TeacherUnavailable, match="not one of the first 20"):
        ask(url, tmp_path, requests(500), max_concurrency=8)
    assert server.seen < 60


def test_a_teacher_that_is_gone_stops_the_run(tmp_path):
    server = ChatServer(echo, lambda n, body: "500" if n > 10 else None)
    with running(server) as url, pytest.raises(TeacherUnavailable, match="nothing but failures for"):
        ask(url, tmp_path, requests(500), give_up_after=1.0, max_attempts=50, max_concurrency=8)
    with Journal(tmp_path) as journal:
        assert len(journal) == 10


def test_a_wait_longer_than_anyone_has_stops_the_run(tmp_path):
    server = ChatServer(echo, lambda n, body: "429 3600")
    with running(server) as url, pytest.raises(TeacherUnavailable, match="it asks to wait for 3600 s"):
        ask(url, tmp_path, requests(5))


def test_the_budget_stops_the_run_and_a_higher_one_goes_on(tmp_path):
    server = ChatServer(echo, delay=0.01)
    prices = {"prompt_price": 1e6, "completion_price": 0.0}  # ten a request, and 26 at most: 10 bytes and a template
    spent = r"`max_cost: 65` is spent \(40\.0000; another request may cost 26\.0000\)"
    with running(server) as url:
        with pytest.raises(BudgetSpent, match=spent):
            ask(url, tmp_path, requests(10), max_cost=65, **prices)
        assert server.seen == 4  # a fifth could have cost 40 + 26
        with pytest.raises(BudgetSpent, match=spent):
            ask(url, tmp_path, requests(10), max_cost=65, **prices)
        assert server.seen == 4  # the journal's answers count
        outcomes, dispatcher, _ = ask(url, tmp_path, requests(10), max_cost=116, **prices)  # 90 + 26
    assert server.seen == len(outcomes) == 10
    assert dispatcher.stats.cost == pytest.approx(100)


def test_the_budget_holds_whatever_is_in_flight(tmp_path):
    """Twenty requests at once, whose answers are as long as they can be."""
    tokens = {"prompt_tokens": 0, "completion_tokens": 100}
    server = ChatServer(lambda _: json.dumps(json.loads(completion("It is 4.")) | {"usage": tokens}), delay=0.05)
    asked = [ChatRequest("annotate", str(n), "v1", (("user", f"{n}"),), Sampling(max_tokens=100)) for n in range(20)]
    seen = []
    with running(server) as url, pytest.raises(BudgetSpent, match=r"is spent \(700\.0000; another"):
        ask(
            *(url, tmp_path, asked),
            watch=lambda dispatcher, _: seen.append(dispatcher.stats.cost),
            completion_price=1e6,
            max_cost=799,
            max_concurrency=20,
        )
    assert server.seen == len(seen) == 7
    assert max(seen) == 700


def test_a_budget_for_no_request_sends_none(tmp_path):
    server = ChatServer(echo)
    with running(server) as url, pytest.raises(BudgetSpent, match=r"is spent \(0\.0000; another request may cost 26"):
        ask(url, tmp_path, requests(5), max_cost=25, prompt_price=1e6)
    assert server.seen == 0


def test_a_request_that_fails_gives_its_reservation_back(tmp_path):
    server = ChatServer(echo, lambda n, body: "400" if n <= 3 else None)
    with running(server) as url:
        outcomes, _, _ = ask(url, tmp_path, requests(5), max_cost=46, prompt_price=1e6)  # 2 answers and the most of one
    assert sum(isinstance(outcome, Failure) for outcome in outcomes.values()) == 3


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": -1e6, "completion_tokens": -3}],
)
def test_tokens_that_are_not_reported_are_counted_at_their_most(tmp_path, usage):
    body = json.dumps(json.loads(completion("It is 4.")) | {"usage": usage})
    prices = {"prompt_price": 1e6, "completion_price": 2e6, "max_concurrency": 1}
    asked = [
        ChatRequest("annotate", str(n), "v1", (("user", f"caf\u00e9 {n}"),), Sampling(max_tokens=100)) for n in range(9)
    ]
    most = len("caf\u00e9 0".encode()) + 16 + 2 * 100
    with running(ChatServer(lambda _: body)) as url:
        with pytest.raises(BudgetSpent) as caught:
            ask(url, tmp_path, asked, max_cost=2 * most + 1, **prices)
        outcomes, dispatcher, _ = ask(url, tmp_path, asked, **prices)
    assert str(caught.value).startswith(
        f"`max_cost: {2 * most + 1}` is spent ({2 * most}.0000; another request may cost {most}.0000); 2 answers came "
        "without token counts (`usage`) and are counted as long as they can be. Everything answered so far is in the "
        "journal"
    )
    assert len(outcomes) == 9
    assert (dispatcher.stats.cost, dispatcher.stats.unreported) == (9 * most, 9)


def test_an_empty_answer_has_no_tokens(tmp_path):
    body = json.dumps(json.loads(completion("")) | {"usage": {"prompt_tokens": 10, "completion_tokens": 0}})
    with running(ChatServer(lambda _: body)) as url:
        _, dispatcher, _ = ask(url, tmp_path, requests(3), prompt_price=1e6, completion_price=1e6)
    assert (dispatcher.stats.cost, dispatcher.stats.unreported) == (30, 0)


def test_a_text_that_cannot_be_encoded_is_said_before_anything_is_sent(tmp_path):
    server = ChatServer(echo)
    bad = ChatRequest("annotate", "0\trow 1", "v1", (("user", "half \ud83d"),), Sampling())
    with running(server) as url, pytest.raises(InputError, match=r"annotate request of 0 row 1 .*holds '\\ud83d'"):
        ask(url, tmp_path, [bad])
    assert server.seen == 0


def test_what_is_never_answered_does_not_stop_a_second_run(tmp_path):
    """In it only such requests are left, so that not one of the first is answered."""
    server = ChatServer(echo, lambda n, body: None if "question 0" in str(body) else "400")
    with running(server) as url:
        ask(url, tmp_path, requests(1))
        outcomes, _, _ = ask(url, tmp_path, requests(40)[1:])
    assert len(outcomes) == 39
    assert all(isinstance(outcome, Failure) and outcome.fresh for outcome in outcomes.values())


def test_what_earlier_versions_kept_and_is_no_answer_is_asked_for_again(tmp_path):
    async def keep(url):
        teacher = OpenAICompatibleTeacher(MODEL, [url])
        with Journal(tmp_path) as journal:
            for _ in range(6):
                await journal.add(one.key(teacher), one, teacher, RawResponse('{"error": {"message": "busy"}}', 0.1))
        await teacher.close()

    one = requests(1)[0]
    with running(ChatServer(echo)) as url:
        asyncio.run(keep(url))
        outcomes, _, kept = ask(url, tmp_path, [one])
    assert outcomes["row 0"].response.text == "answer to question 0"
    assert kept == 7


def test_a_stop_waits_for_what_is_in_flight(tmp_path):
    server = ChatServer(echo, delay=0.1)

    def watch(dispatcher, outcomes):
        if len(outcomes) == 5:
            dispatcher.stop()

    with running(server) as url, pytest.raises(Interrupted, match="run the same command again"):
        ask(url, tmp_path, requests(100), watch=watch, max_concurrency=16)
    with Journal(tmp_path) as journal:
        assert len(journal) == sum(server.paid.values()) == server.seen < 100


def test_endpoints_take_turns_and_a_dead_one_is_passed_over(tmp_path):
    servers = [ChatServer(echo), ChatServer(echo)]
    with running(servers[0]) as one, running(servers[1]) as two:
        ask([one, two], tmp_path / "both", requests(40))
        assert servers[0].seen == servers[1].seen == 20
        dead = "http://127.0.0.1:9/v1"
        outcomes, _, _ = ask([one, dead], tmp_path / "dead", requests(40))
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())


def test_rates_are_kept(tmp_path):
    server = ChatServer(echo)
    started = time.monotonic()
    with running(server) as url:
        ask(url, tmp_path / "requests", requests(30), requests_per_minute=1200)
        assert time.monotonic() - started > 0.4  # 20 a second, 20 saved up
        started = time.monotonic()
        ask(url, tmp_path / "tokens", requests(30), tokens_per_minute=12000, max_concurrency=2)
        assert time.monotonic() - started > 1.0  # 200 tokens a second, 15 each, 200 saved up


def test_a_rate_limit_fills_with_time():
    limit = RateLimit(per_minute=6000)
    assert limit.delay() == 0
    limit.take(150)  # 100 were saved up
    assert 0.3 < limit.delay() <= 0.5


def test_slow_answers_stop_the_growth():
    assert fill(Pacer(64), [0.1] * 20 + [1.0] * 200) < 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrency": 0}, "`max_concurrency` must be at least 1, got 0"),
        ({"max_attempts": 0}, "`max_attempts` must be at least 1, got 0"),
        ({"requests_per_minute": 0}, "`requests_per_minute` must be positive, got 0"),
        ({"prompt_price": -1.0}, "`prompt_price` cannot be negative, got -1.0"),
        ({"max_cost": 3.0}, "`max_cost` needs a price"),
    ],
)
def test_limits_are_checked(options, message):
    with pytest.raises(InputError) as caught:
        Limits(**options)
    assert message in str(caught.value)


def killed_runs(tmp_path: Path, kills: int, rng: random.Random) -> None:
    """Kill a run again and again; what was journaled is never asked for again."""
    server = ChatServer(echo, delay=0.02)
    with running(server) as url:
        command = [sys.executable, __file__, url, str(tmp_path)]
        for _ in range(kills):
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout.readline() == "started\n"
            time.sleep(rng.uniform(0.05, 0.6))
            child.send_signal(signal.SIGKILL)
            child.wait()
            with Journal(tmp_path, wait=5) as journal:
                kept = len(journal)
            # At most what was in flight when it was killed is missing.
            assert sum(server.paid.values()) - kept <= 8 * kills
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["answers"] == {f"row {n}": f"answer to question {n}" for n in range(400)}
    assert json.loads(again.stdout.splitlines()[-1]) == {"answers": result["answers"], "sent": 0}
    # What was sent more than once is what was in flight at a kill.
    assert sum(server.paid.values()) - 400 <= 8 * kills
    with Journal(tmp_path) as journal:
        assert len(journal) == 400


def test_a_killed_run_goes_on(tmp_path):
    killed_runs(tmp_path, 3, random.Random(0))


@pytest.mark.slow
def test_twenty_killed_runs_go_on(tmp_path):
    killed_runs(tmp_path, 20, random.Random(1))


def test_ctrl_c_in_a_process_leaves_a_journal(tmp_path):
    server = ChatServer(echo, delay=0.05)
    with running(server) as url:
        child = subprocess.Popen(
            [sys.executable, __file__, url, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "started\n"
        while server.seen < 16:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=120)
    assert "run the same command again" in errors
    with Journal(tmp_path) as journal:
        assert 0 < len(journal) == sum(server.paid.values()) < 400


def test_completions_are_read():
    teacher = OpenAICompatibleTeacher(MODEL, ["http://127.0.0.1:1/v1"])
    assert teacher.read(RawResponse(completion("x", finish_reason="length"), 0)).finish_reason == "length"
    assert teacher.read(RawResponse(completion("", finish_reason="content_filter"), 0)).finish_reason == "refused"


async def child(url: str, folder: str) -> None:
    teacher = OpenAICompatibleTeacher(MODEL, [url])
    with Journal(folder, wait=5) as journal:
        dispatcher = Dispatcher(teacher, journal, Limits(max_concurrency=8))
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, dispatcher.stop)
        print("started", flush=True)
        answers = {o.request.row_id: o.response.text async for o in dispatcher.run(requests(400))}
        await teacher.close()
    print(
        json.dumps(
            {"answers": dict(sorted(answers.items(), key=lambda i: int(i[0][4:]))), "sent": dispatcher.stats.sent}
        )
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asyncio.run(child(*sys.argv[1:]))


class Named:
    """A teacher's name and address, of which a request's key is made."""

    model, address = "m", "http://127.0.0.1:1/v1"

    def __init__(self, ends_thoughts: bool):
        self.ends_thoughts = ends_thoughts


def test_answers_of_earlier_versions_are_found_by_their_keys():
    sampling = Sampling(0.7, 0.9, 64, ("x",))
    asked = ChatRequest("annotate", "r", "v1", (("user", "a?"),), sampling, 1, 5)
    key = "e7d185fb32bf481b2e17e17ddd107e0f05b4ce5d3c993c452fd6737e8d4ded67"
    assert {asked.key(Named(ends)) for ends in (False, True)} == {key}
    limited = replace(asked, sampling=replace(sampling, max_thinking_tokens=9))
    # Where the limit is not sent, the answer is the same.
    assert limited.key(Named(ends_thoughts=False)) == key
    assert limited.key(Named(ends_thoughts=True)) != key


def thinking(body: dict, **details) -> str:
    answer = json.loads(completion("The answer is 4."))
    answer["choices"][0]["message"]["reasoning_content"] = "Hm."
    answer["usage"] = {"prompt_tokens": 9, "completion_tokens": 30, "completion_tokens_details": details}
    return json.dumps(answer)


@pytest.mark.parametrize(("limit", "reason"), [(None, "stop"), (20, "stop"), (19, "length")])
def test_thoughts_over_the_limit_count_as_cut_off(tmp_path, limit, reason):
    server = ChatServer(lambda body: thinking(body, reasoning_tokens=20))
    with running(server) as url:
        (asked,) = requests(1)
        for count in (1, 1):  # sent once, and the second time read from the journal
            limited = replace(asked, sampling=Sampling(max_thinking_tokens=limit))
            outcomes, _, _ = ask(url, tmp_path, [limited])
            assert outcomes["row 0"].response.finish_reason == reason
            assert server.seen == count


@pytest.mark.parametrize("details", [{}, {"reasoning_tokens": 0}])  # some servers report 0 for any thoughts
def test_a_limit_for_thoughts_that_cannot_be_kept_stops_the_run(tmp_path, details):
    server = ChatServer(lambda body: thinking(body, **details))
    limited = [replace(asked, sampling=Sampling(max_thinking_tokens=20)) for asked in requests(3)]
    short = [replace(asked, sampling=Sampling(max_thinking_tokens=30)) for asked in requests(3)]
    message = "`max_thinking_tokens: 20` cannot be kept, since how long the model thinks is not reported"
    with running(server) as url:
        for _ in range(2):  # asked, and from the journal
            with pytest.raises(TeacherUnavailable, match=message):
                ask(url, tmp_path, limited, max_concurrency=1)
            assert server.seen == 1
        outcomes, _, _ = ask(url, tmp_path, short)  # a whole answer is no longer than its thoughts may be
        assert {outcome.response.finish_reason for outcome in outcomes.values()} == {"stop"}
        server.answer = lambda body: "The answer is 5."  # no thoughts
        outcomes, _, _ = ask(url, tmp_path / "other", limited)
        assert {outcome.response.finish_reason for outcome in outcomes.values()} == {"stop"}


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_for_thoughts_is_positive(limit):
    with pytest.raises(InputError, match="`max_thinking_tokens` must be"):
        Sampling(max_thinking_tokens=limit)
