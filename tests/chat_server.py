"""A chat-completions server on loopback: answers by a function, fails on demand, counts what it sent.

python tests/chat_server.py [--delay 0.05]      prints its port, serves until it is stopped
"""

import argparse
import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

MODEL = "test-model"
ERROR = json.dumps({"error": {"message": "no", "code": None}})


def completion(text: str, model: str = MODEL, finish_reason: str = "stop") -> str:
    return json.dumps(
        {
            "id": "c",
            "object": "chat.completion",
            "model": model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    )


class ChatServer:
    """Serves `POST /v1/chat/completions` (and any other path alike) and `GET /v1/models`.

    Args:
        answer: Request body -> text, or a whole response body where it begins with "{".
        fault: Number of the request, its body -> None, the name of a fault, a body of status 200 that begins with
            "{", "[" or "<", bytes to send as they are, or a status and its `retry-after` or body.
        delay: Seconds before an answer.

    Attributes:
        paid: How often each prompt was answered with 200 and a whole body, by its last message.
        seen: Requests in all.
        most_in_flight: At once.
        keys: Authorization headers.
        models: Status and body of the list of models.
    """

    def __init__(self, answer: Callable = lambda body: "fine", fault: Callable = lambda n, body: None, delay=0.0):
        self.answer, self.fault, self.delay = answer, fault, delay
        self.paid: Counter[str] = Counter()
        self.seen = self.in_flight = self.most_in_flight = 0
        self.keys: set[str] = set()
        self.bodies: list[dict] = []
        self.keep_bodies = False
        self.models = f"200 {json.dumps({'object': 'list', 'data': [{'id': MODEL, 'object': 'model'}]})}"

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=1024)
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                self.keys.add(headers.get("authorization", ""))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    await self._reply(head[0], content, writer)
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, line: str, content: bytes, writer: asyncio.StreamWriter) -> None:
        if line.startswith("GET"):
            status, _, text = self.models.partition(" ")
            await _send(writer, int(status), text)
            return
        self.seen += 1
        body = json.loads(content)
        if self.keep_bodies:
            self.bodies.append(body)
        fault = self.fault(self.seen, body)
        if self.delay:
            await asyncio.sleep(self.delay)
        if fault is None:
            text = self.answer(body)
            await self._paid(writer, body, text if text.startswith("{") else completion(text))
        elif isinstance(fault, bytes):
            writer.write(fault)
            await writer.drain()
            raise ConnectionError
        elif fault[0] in "{[<\ufeff":
            await self._paid(writer, body, fault)
        elif fault == "reset":
            writer.transport.abort()
            raise ConnectionError
        elif fault == "timeout":
            await asyncio.sleep(60)
        elif fault == "truncated JSON":
            await self._paid(writer, body, completion("half")[:40])
        elif fault == "empty choices":
            await self._paid(writer, body, json.dumps({"choices": []}))
        elif fault == "html":
            await self._paid(writer, body, "<html>hello</html>", kind="text/html")
        elif fault == "empty":
            await self._paid(writer, body, "")
        elif fault == "slow body":
            await self._paid(writer, body, completion(self.answer(body)), slow=True)
        elif fault == "half a body":
            data = completion("lost").encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data) + data[:20])
            writer.transport.abort()
            raise ConnectionError
        else:
            status, _, after = fault.partition(" ")
            is_body = after.startswith("{")
            extra = f"retry-after: {after}\r\n" if after and not is_body else ""
            text = after if is_body else ERROR
            if status == "400" and not is_body:
                text = json.dumps({"error": {"message": "maximum context length is 10", "code": "x"}})
            await _send(writer, int(status), text, extra=extra)

    async def _paid(self, writer, body: dict, text: str, **options) -> None:
        await _send(writer, 200, text, **options)
        asked = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
        self.paid[asked] += 1


async def _send(writer, status: int, text: str, *, kind="application/json", extra="", slow=False) -> None:
    data = text.encode("utf-8", "surrogatepass")
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
    if slow:
        writer.write(head.encode() + data[:10])
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.write(data[10:])
    else:
        writer.write(head.encode() + data)
    await writer.drain()


@contextmanager
def running(server: ChatServer):
    """Serves in a thread; gives the base URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _main(delay: float) -> None:
    print(await ChatServer(delay=delay).start(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.05)
    asyncio.run(_main(parser.parse_args().delay))
