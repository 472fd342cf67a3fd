"""The client of chat endpoints, against a server on loopback."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import ERROR, MODEL, ChatServer, completion, running

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import FIELDS
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.options import EndpointArguments
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


def test_what_is_null_is_not_sent():
    server = ChatServer()
    server.keep_bodies = True
    attempt(server, request(seed=None, sampling=Sampling(temperature=None, top_p=None, max_tokens=17)))
    attempt(server, request(), extra_body={"seed": None, "temperature": None, "max_tokens": None, "stop": None})
    assert [body.keys() - {"model", "messages"} for body in server.bodies] == [{"max_tokens"}, {"top_p"}]


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
    assert read(json.dumps({"choices": [thoughts]})) == ChatResponse("<think>\nhm", "length", "", 0, 0)
    refusal = {"choices": [{"message": {"content": None, "refusal": "I will not."}}]}
    assert read(json.dumps(refusal)) == ChatResponse("I will not.", "refused", "", 0, 0)
    assert read(completion("ab").replace('"ab"', '"a\\ud83d"')).text == "a?"
    nothing = {"choices": [{"message": {"content": None, "reasoning_content": "It is 4."}, "finish_reason": "stop"}]}
    assert read(json.dumps(nothing)) == ChatResponse("<think>\nIt is 4.", "stop", "", 0, 0)
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "It "}, "is 4.", None, {"type": "image"}]
    assert read(json.dumps({"choices": [{"message": {"content": parts}}]})).text == "<think>\nhm\n</think>\n\nIt is 4."
    assert read(completion("x").replace("\\n", "\n").replace('"x"', '"a\n\x01b"')).text == "a\n\x01b"
    assert read(completion("It", "a\x1b[31m\ud800")).model == "a\N{SYMBOL FOR ESCAPE}[31m\N{REPLACEMENT CHARACTER}"
    odd_usage = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}, "model": None}
    assert read(json.dumps(odd_usage)) == ChatResponse("x", "stop", "", 0, 0)


def thought(*content) -> list[dict]:
    return [{"type": "thinking", "thinking": part} for part in content]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        *(({"content": "4", name: "Hm."}, "<think>\nHm.\n</think>\n\n4") for name in FIELDS),
        ({"content": "4", "reasoning_content": None, "reasoning": "Hm."}, "<think>\nHm.\n</think>\n\n4"),
        ({"content": "4", "reasoning_content": "<think>\nHm.</think>"}, "<think>\nHm.\n</think>\n\n4"),
        # Mistral's and Anthropic's parts, and OpenRouter's details.
        ({"content": [*thought("Hm."), {"type": "text", "text": "4"}]}, "<think>\nHm.\n</think>\n\n4"),
        ({"content": [*thought([{"type": "text", "text": "Hm."}]), "4"]}, "<think>\nHm.\n</think>\n\n4"),
        ({"content": [{"type": "reasoning", "summary": [{"text": "Hm."}]}, "4"]}, "<think>\nHm.\n</think>\n\n4"),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "4"}]}, "4"),
        (
            {
                "content": "4",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "Hm, "},
                    {"type": "reasoning.summary", "summary": "so 4."},
                    {"type": "reasoning.encrypted", "data": "x"},
                    7,
                ],
            },
            "<think>\nHm, so 4.\n</think>\n\n4",
        ),
        ({"content": "4", "reasoning": {"text": "Hm."}}, "<think>\nHm.\n</think>\n\n4"),
        ({"content": "4", "reasoning_content": ["Hm, ", "so 4."]}, "<think>\nHm, so 4.\n</think>\n\n4"),
        # Tags in the content stay, also where the field repeats what is between them.
        ({"content": "<think>Hm.</think>4"}, "<think>Hm.</think>4"),
        ({"content": "<think>Hm.</think>4", "reasoning": "Hm."}, "<think>Hm.</think>4"),
        ({"content": "<think>a</think>4", "reasoning": "b"}, "<think>\nb\n</think>\n\n<think>a</think>4"),
        # Thoughts without an answer never end.
        *(({"content": nothing, "reasoning": "Hm."}, "<think>\nHm.") for nothing in (None, "", "\n", [], thought("x"))),
        # Odd shapes.
        ({"content": "4", "reasoning_content": 7, "reasoning_details": "x"}, "4"),
        ({"content": "4", "reasoning_content": [None, [], {"text": {}}, {"thinking": [{"text": 7}]}]}, "4"),
        ({"content": {"text": "4"}, "reasoning_content": " "}, ""),
        ({"content": "4", "reasoning_content": "half \ud83d"}, "<think>\nhalf ?\n</think>\n\n4"),
    ],
)
def test_thoughts_are_read_wherever_they_stand(message, text):
    assert read(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})).text == text


@pytest.mark.parametrize(
    ("usage", "count"),
    [
        ({"completion_tokens_details": {"reasoning_tokens": 5}}, 5),
        ({"reasoning_tokens": 5}, 5),
        ({"completion_tokens_details": {"reasoning_tokens": 0}}, 0),
        *(({"completion_tokens_details": odd}, None) for odd in (None, [], {}, "many", {"reasoning_tokens": -1})),
        ({"completion_tokens_details": {"reasoning_tokens": True}}, None),
        (None, None),
    ],
)
def test_the_length_of_thoughts_is_known_where_it_is_reported(usage, count):
    assert read(json.dumps({"choices": [{"message": {"content": "4"}}], "usage": usage})).thinking_tokens == count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("7", 7),
        ("7.0", 7),
        ("0", 0),
        *((odd, 0) for odd in ("-7", "null", "true", '"7"', "NaN", "Infinity", "1e300", "9" * 30, "9" * 5000, "[7]")),
    ],
)
def test_only_possible_counts_are_believed(value, count):
    body = completion("x").replace('"prompt_tokens": 10', f'"prompt_tokens": {value}')
    assert read(body) == ChatResponse("x", "stop", MODEL, count, 5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("content_filter", "refused"),
        ("SAFETY", "refused"),
        ("stop", "stop"),
        ("eos", "stop"),
        (None, "stop"),
        ({"a": 1}, "stop"),
    ],
)
def test_why_an_answer_ended(name, reason):
    assert read(completion("x", finish_reason=name)).finish_reason == reason


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


def said(message: str, **values) -> str:
    return json.dumps({"error": {"message": message, **values}})


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("402", TeacherUnusable, "status 402: no; the balance is exhausted: top it up"),
        (f"400 {said('Your credit balance is too low')}", TeacherUnusable, "the balance is exhausted"),
        (f"429 {said('You exceeded it', code='insufficient_quota')}", TeacherUnusable, "the balance is exhausted"),
        (said("Insufficient credits", code=402), TeacherUnusable, "the balance is exhausted"),
        (f"429 {said('You exceeded your current quota, check your plan and billing')}", TryAgain, "status 429: You"),
        (f"403 {said('your input was flagged')}", NoAnswer, "status 403: your input was flagged"),
        (
            f"400 {said('top_p is deprecated')}",
            NoAnswer,
            "status 400: top_p is deprecated; `extra_body: {top_p: null}`",
        ),
        (f"400 {said('bad', param='seed')}", NoAnswer, "status 400: bad; `extra_body: {seed: null}` leaves `seed` out"),
        ('422 {"detail": [{"loc": ["body", "seed"]}]}', NoAnswer, "`extra_body: {seed: null}` leaves `seed` out"),
        (f"400 {said('No field `best_of` here')}", NoAnswer, "`extra_body: {best_of: null}` leaves `best_of` out"),
        (
            f"400 {said('Unsupported parameter: max_tokens. Use max_completion_tokens instead')}",
            TeacherUnusable,
            "set `token_limit: max_completion_tokens`",
        ),
        (f"400 {said('max_completion_tokens is too large: context length')}", NoAnswer, "longer than the model's"),
        (said("Rate limit exceeded", code="429"), TryAgain, "status 429: Rate limit exceeded"),
        (said("maximum context length is 5"), NoAnswer, "longer than the model's context"),
        ("<p>502</p>", TryAgain, "not JSON: <p>502</p>"),
        (b"no http\r\n\r\n", TryAgain, "malformed HTTP: Bad status line"),
        (b"HTTP/1.1 304 X\r\ncontent-length: 0\r\n\r\n", TryAgain, "status 304"),
        (b"HTTP/1.1 400 X\r\ncontent-type: a/b; charset=base64\r\n\r\nabc", NoAnswer, "status 400: abc"),
        ('422 {"error": {"message": "\\ud800 \\u001b[31m sk-very-secret"}}', NoAnswer, "\ufffd \u241b[31m ***"),
    ],
)
def test_what_the_words_of_an_endpoint_mean(fault, kind, words, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with pytest.raises(kind) as caught:
        attempt(ChatServer(fault=lambda n, body: fault), request(), extra_body={"best_of": 1})
    assert words in str(caught.value)
    assert "very-secret" not in str(caught.value)


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
        (MODEL, ["http://[::1"], "base URL 'http://[::1' is not a URL"),
        (MODEL, ["http://host:port/v1"], "base URL 'http://host:port/v1' is not a URL"),
        (MODEL, ["http://127.0.0.1/\n"], "is not a URL"),
        (MODEL, ["https://me:secret@example.org/v1"], "a base URL holds a password or key"),
        (MODEL, ["https://secret@example.org/v1"], "a base URL holds a password or key"),
        (MODEL, ["https://example.org/v1?api-key=secret"], "a base URL has a query (`?...`), which may hold a key"),
        (MODEL, ["https://example.org/v1#secret"], "a base URL has a query"),
        (MODEL, ["secret@[host"], "a base URL is not a URL"),
        (MODEL, [8000], "base URL 8000 (int) is not a URL"),
        (MODEL, ["https://example.org/sk-secret-key/v1"], "a base URL holds the key of OPENAI_API_KEY"),
    ],
)
def test_bad_endpoints(model, urls, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    with pytest.raises(InputError) as caught:
        OpenAICompatibleTeacher(model, urls)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": float("inf")}, "`timeout` must be a finite number, got inf"),
        ({"timeout": float("nan")}, "`timeout` must be a finite number, got nan"),
        ({"timeout": 0}, "`timeout` must be positive, got 0"),
        ({"extra_body": {"a": float("nan")}}, "`extra_body` cannot be sent as JSON"),
        ({"extra_body": {"a": {datetime(2026, 1, 1, tzinfo=UTC)}}}, "`extra_body` cannot be sent as JSON"),
        ({"extra_body": {"a": "\ud83d"}}, "`extra_body` cannot be sent as JSON"),
        ({"extra_body": {"stream": True}}, "leave `stream` out"),
        ({"extra_body": {"auth": {"api_key": "x"}}}, "`extra_body` holds a key"),
        ({"extra_body": {"x": "sk-very-secret"}}, "`extra_body` holds a key"),
    ],
)
def test_options_that_cannot_be_sent(options, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret\n")
    with pytest.raises(InputError) as caught:
        OpenAICompatibleTeacher(MODEL, [LOCAL], **options)
    assert message in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_a_key_that_no_header_can_hold(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\N{EURO SIGN}")
    with pytest.raises(InputError, match="OPENAI_API_KEY has characters that no HTTP header can hold"):
        OpenAICompatibleTeacher(MODEL, [LOCAL])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": float("inf")}, "`temperature` must be a finite number"),
        ({"temperature": float("nan")}, "`temperature` must be a finite number"),
        ({"top_p": 0.0}, "`top_p` must be above 0"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
    ],
)
def test_sampling_that_no_request_can_hold(values, message):
    with pytest.raises(InputError, match=message):
        Sampling(**values)


def check(model: str, url: str, **options) -> None:
    async def main():
        teacher = OpenAICompatibleTeacher(model, [url], **options)
        try:
            await teacher.check()
        finally:
            await teacher.close()

    asyncio.run(main())


def test_the_model_is_looked_for():
    with running(ChatServer()) as url:
        check(MODEL, url)
        with pytest.raises(InputError, match=f"has no model 'other'; it has {MODEL}. .*`check_model: false`"):
            check("other", url)
        check("other", url, check_model=False)


def listing(text: str, status: int = 200) -> ChatServer:
    server = ChatServer()
    server.models = f"{status} {text}"
    return server


@pytest.mark.parametrize(
    ("models", "model"),
    [
        ([{"id": "llama:latest"}], "llama"),
        ([{"id": "llama"}], "llama:latest"),
        ([{"id": "models/gemini"}], "gemini"),
        ([{"id": "large-2411", "aliases": ["large", None]}], "large"),
        ([{"id": None}, 3, None], "anything"),  # a list of no names says nothing
    ],
)
def test_a_model_is_also_known_by_other_names(models, model):
    with running(listing(json.dumps({"data": models}))) as url:
        check(model, url)


@pytest.mark.parametrize("text", ["{}", "[]", '{"data": null}', '{"models": []}'])
def test_an_endpoint_that_lists_no_models_is_asked(text):
    with running(listing(text)) as url:
        check(MODEL, url)


def test_what_is_no_chat_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with running(listing("<html>\x1b[31mhi</html>")) as url:
        with pytest.raises(InputError, match=r"does not answer as a chat endpoint does \('<html>\u241b\[31mhi</html>'"):
            check(MODEL, url)
        check(MODEL, url, check_model=False)
    with running(listing(ERROR, 403)) as url:
        with pytest.raises(InputError, match=r"refuses the key \(status 403: no; .*OPENAI_API_KEY\); if it only"):
            check(MODEL, url)
        check(MODEL, url, check_model=False)
    with running(listing(ERROR, 500)) as url:
        check(MODEL, url)


def test_an_endpoint_that_is_not_there():
    for options in ({}, {"check_model": False}):
        with pytest.raises(InputError, match=r"cannot reach http://127.0.0.1:1/v1 .*is the server running"):
            check(MODEL, LOCAL, **options)


def test_a_boolean_as_text_is_refused():
    with pytest.raises(InputError, match="'enable_thinking' is the text 'false'"):
        EndpointArguments().with_chat_template({"enable_thinking": "false"})
