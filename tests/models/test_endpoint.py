"""The client of chat endpoints, against a server on loopback."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import MODEL, ChatServer, completion, running

from edit_trl.common.errors import InputError
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.protocol import (
    ChatRequest,
    ChatResponse,
    MalformedResponse,
    NoAnswer,
    RawResponse,
    Sampling,
    TeacherUnusable,
    TryAgain,
)
from edit_trl.models.chat.refusals import wait_asked_for

LOCAL = "http://127.0.0.1:1/v1"


def attempt(server: ChatServer, request: ChatRequest, **options) -> RawResponse:
    async def main(url):
        teacher = OpenAICompatibleTeacher(MODEL, [url], **options)
        try:
            return await teacher.attempt(request)
        finally:
            await teacher.close()

    with running(server) as url:
        return asyncio.run(main(url))


def request(**changes) -> ChatRequest:
    values = {
        "stage": "annotate",
        "row_id": "row 1",
        "template": "v1",
        "messages": (("system", "Be brief."), ("user", "Why {x}?")),
        "sampling": Sampling(temperature=0.3, top_p=0.9, max_tokens=17, stop=("\n\n",)),
        "seed": 5,
    }
    return ChatRequest(**(values | changes))


def test_what_is_sent():
    server = ChatServer()
    server.keep_bodies = True
    raw = attempt(server, request(), extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert server.bodies == [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why {x}?"}],
            "temperature": 0.3,
            "top_p": 0.9,
            "max_tokens": 17,
            "stop": ["\n\n"],
            "seed": 5,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]
    assert raw.body == completion("fine")
    assert raw.latency > 0
    server = ChatServer()
    server.keep_bodies = True
    attempt(server, request(seed=None, sampling=Sampling()), token_limit="max_completion_tokens")
    assert server.bodies[0].keys() == {"model", "messages", "temperature", "top_p", "max_completion_tokens"}


def read(body: str) -> ChatResponse:
    return OpenAICompatibleTeacher(MODEL, [LOCAL]).read(RawResponse(body, 0.0))


def test_a_body_that_trickles_in_is_given_up():
    async def trickle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        data = completion("slow").encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(data))
        try:
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass

    async def main():
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        teacher = OpenAICompatibleTeacher(MODEL, [url], timeout=0.5)
        with pytest.raises(TryAgain, match="timeout"):
            await asyncio.wait_for(teacher.attempt(request()), 60)
        await teacher.close()
        server.close()

    asyncio.run(main())


def test_what_is_read():
    assert read(completion("It is 4.", "gpt-x")) == ChatResponse("It is 4.", "stop", "gpt-x", 10, 5)
    assert read(completion("It", finish_reason="length")).finish_reason == "length"
    assert read(completion("", finish_reason="content_filter")).finish_reason == "refused"
    thoughts = {"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}
    assert read(json.dumps({"choices": [thoughts]})) == ChatResponse("", "length", "", 0, 0)
    refusal = {"choices": [{"message": {"content": None, "refusal": "I will not."}}]}
    assert read(json.dumps(refusal)) == ChatResponse("I will not.", "refused", "", 0, 0)
    assert read(completion("ab").replace('"ab"', '"a\\ud83d"')).text == "a?"
    odd_usage = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}, "model": None}
    assert read(json.dumps(odd_usage)) == ChatResponse("x", "stop", "", 0, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not JSON"),
        ("<html>", "not JSON"),
        (completion("x")[:50], "not JSON"),
        ("[]", "no choices"),
        ("{}", "no choices"),
        ('{"choices": []}', "no choices"),
        ('{"choices": [3]}', "no choices"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_read(body, reason):
    with pytest.raises(MalformedResponse, match=reason):
        read(body)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("429", TryAgain, "status 429"),
        ("500", TryAgain, "status 500"),
        ("408", TryAgain, "status 408"),
        ("reset", TryAgain, "at http://127.0.0.1"),
        ("half a body", TryAgain, "at http://127.0.0.1"),
        ("401", TeacherUnusable, "OPENAI_API_KEY"),
        ("403", TeacherUnusable, "OPENAI_API_KEY"),
        ("404", TeacherUnusable, "is the base URL right"),
        ("400", NoAnswer, "longer than the model's context"),
        ("422", NoAnswer, "status 422"),
    ],
)
def test_what_a_failure_means(fault, kind, words):
    with pytest.raises(kind, match=words) as caught:
        attempt(ChatServer(fault=lambda n, body: fault), request())
    if kind is TryAgain:
        assert caught.value.congestion == (fault == "429")


def test_the_wait_that_is_asked_for():
    with pytest.raises(TryAgain) as caught:
        attempt(ChatServer(fault=lambda n, body: "429 7"), request())
    assert caught.value.retry_after == 7
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 27 < wait_asked_for({"retry-after": later}) <= 30
    assert wait_asked_for({"retry-after": "soon"}) is None
    assert wait_asked_for({}) is None


def test_a_key_is_needed_for_others_machines_and_never_shown(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="no API key: set the environment variable OPENAI_API_KEY"):
        OpenAICompatibleTeacher(MODEL, ["https://example.org/v1"])
    OpenAICompatibleTeacher(MODEL, ["https://example.org/v1"], api_key_env=None)
    OpenAICompatibleTeacher(MODEL, ["http://localhost:1/v1"])
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    teacher = OpenAICompatibleTeacher(MODEL, ["https://example.org/v1"], api_key_env="MY_KEY")
    assert "secret" not in f"{teacher!r} {teacher.address} {vars(teacher)['_endpoints'][0].url}"


@pytest.mark.parametrize(
    ("model", "urls", "message"),
    [
        ("", [LOCAL], "`model` is empty"),
        (MODEL, [], "no base URL"),
        (MODEL, ["127.0.0.1:8000"], "base URL '127.0.0.1:8000' is not a URL; write it as http://127.0.0.1:8000/v1"),
        (MODEL, ["https://me:secret@example.org/v1"], "a base URL holds a password"),
    ],
)
def test_bad_endpoints(model, urls, message):
    with pytest.raises(InputError) as caught:
        OpenAICompatibleTeacher(model, urls)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def check(model: str, url: str) -> None:
    async def main():
        teacher = OpenAICompatibleTeacher(model, [url])
        try:
            await teacher.check()
        finally:
            await teacher.close()

    asyncio.run(main())


def test_the_model_is_looked_for():
    with running(ChatServer()) as url:
        check(MODEL, url)
        with pytest.raises(InputError, match=f"has no model 'other'; it has {MODEL}"):
            check("other", url)


def test_an_endpoint_that_is_not_there():
    with pytest.raises(InputError, match=r"cannot reach http://127.0.0.1:1/v1 .*is the server running"):
        check(MODEL, LOCAL)
