"""A chat endpoint on loopback that answers as a case wants it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[int, dict], "bytes | str | tuple[int, str]"]


def completion(text: Any, **values: Any) -> str:
    """The body of an answer; `values` replace its fields."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return json.dumps({"id": "c", "model": "m", "choices": [choice], "usage": usage} | values)


def solve(_number: int, body: dict, **values: Any) -> str:
    """Solves "What is n + 1?"; wrongly where it is asked to, or where n is odd and there is no hint. Judges, too."""
    asked = body["messages"][-1]["content"]
    if "What is " not in asked or "score" in asked.lower():
        return completion("Score 1: 7\nScore 2: 5", **values)
    n = int(asked.rpartition("What is ")[2].partition(" ")[0])
    wrong = "Wrong reasoning:" in asked or ("Hint:" not in asked and n % 2)
    return completion(f"{n} and one more. Therefore, the answer is {n + (5 if wrong else 1)}.", **values)


class Endpoint:
    """Serves `POST` by a function and `GET /v1/models`; a context manager.

    Args:
        answer: Number of the request and its body -> the body of an answer, or its status and body, or the bytes that
            are sent instead of any HTTP.

    Attributes:
        paid: How many requests were answered with status 200.
        url: The base URL.
    """

    def __init__(self, answer: Answer):
        self.paid = self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply(200, json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked += 1
                found = answer(outer.asked, body)
                if isinstance(found, bytes):
                    self.wfile.write(found)
                    self.close_connection = True
                    return
                status, text = (200, found) if isinstance(found, str) else found
                outer.paid += status == 200
                self.reply(status, text)

            def reply(self, status: int, text: str) -> None:
                data = text.encode("utf-8", "surrogatepass")
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Endpoint:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
