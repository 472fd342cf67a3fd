"""A chat server that also has OpenAI's batch API: files of requests, batches, and files of answers."""

import json
from collections.abc import Callable
from urllib.parse import unquote

from chat_server import ChatServer, _send, completion


def answered(entry: dict, text: str) -> str:
    """A line of the file of answers."""
    body = json.loads(text if text.startswith("{") else completion(text))
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": entry["custom_id"], "response": response, "error": None})


def refused(entry: dict, status: int, message: str) -> str:
    """A line of the file of errors: what the endpoint says to this request."""
    response = {"status_code": status, "request_id": "r", "body": {"error": {"message": message}}}
    return json.dumps({"id": "b", "custom_id": entry["custom_id"], "response": response, "error": None})


def not_executed(entry: dict, code: str) -> str:
    """A line of the file of errors: why this request was never executed."""
    error = {"code": code, "message": "This request could not be executed."}
    return json.dumps({"id": "b", "custom_id": entry["custom_id"], "response": None, "error": error})


class BatchServer(ChatServer):
    """Serves `/v1/files` and `/v1/batches` beside what `ChatServer` does.

    Args:
        answer: See `ChatServer`; what a line is answered with.
        end: Number of the batch from 1, its entries -> its fields at the end (`{}`: all answered): `status`, `output`
            and `errors_file` (lists of lines), `errors`.
        refuse: Path, data -> a status and a body in place of the reply, or None.

    Attributes:
        uploads: The entries of each uploaded file.
        batches: All batches by id.
        calls: The first lines of all requests.
        is_held: Whether batches stay in progress.
    """

    def __init__(self, answer: Callable, end: Callable = lambda number, entries: {}, refuse=lambda path, data: None):
        super().__init__(answer)
        self.end, self.refuse = end, refuse
        self.uploads: list[list[dict]] = []
        self.batches: dict[str, dict] = {}
        self.calls: list[str] = []
        self.is_held = False
        self._files: dict[str, str] = {}

    async def _reply(self, line: str, content: bytes, writer) -> None:
        method, target, _ = line.split(" ")
        path = unquote(target.partition("?")[0]).removeprefix("/v1")
        if not path.startswith(("/files", "/batches")):
            await super()._reply(line, content, writer)
            return
        self.calls.append(f"{method} {path}")
        refusal = self.refuse(path if method == "POST" else f"GET {path}", content)
        status, body = refusal or (200, self._handle(method, path, content))
        await _send(writer, status, body if isinstance(body, str) else json.dumps(body))

    def _handle(self, method: str, path: str, content: bytes) -> dict | str:
        parts = path.strip("/").split("/")
        if path == "/files":
            lines = [line for line in content.decode().split("\n") if line.startswith('{"custom_id"')]
            assert b'name="purpose"\r\n\r\nbatch' in content
            self.uploads.append([json.loads(line) for line in lines])
            return {"id": self._keep("\n".join(lines)), "object": "file", "purpose": "batch"}
        if parts[0] == "files":
            return self._files[parts[1]]
        if path == "/batches" and method == "POST":
            body = json.loads(content)
            assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
            name = f"batch_{len(self.batches) + 1}"
            self.batches[name] = {"id": name, "input_file_id": body["input_file_id"], "status": "validating"}
        elif path == "/batches":
            return {"object": "list", "data": list(self.batches.values())[::-1]}
        else:
            self._advance(self.batches[parts[1]])
            name = parts[1]
        return self.batches[name]

    def _advance(self, batch: dict) -> None:
        """Validating, in progress, ended: a step for each look at it."""
        entries = [json.loads(line) for line in self._files[batch["input_file_id"]].split("\n")]
        ended = self.end(int(batch["id"].rpartition("_")[2]), entries)
        if batch["status"] == "validating" and ended.get("status") != "failed":
            batch |= {"status": "in_progress", "request_counts": {"total": len(entries), "completed": 1, "failed": 0}}
        elif batch["status"] in ("validating", "in_progress") and not self.is_held:
            if "output" not in ended and ended.get("status") != "failed":
                ended = {"output": [answered(entry, self.answer(entry["body"])) for entry in entries], **ended}
            for entry in entries:
                is_paid = any(entry["custom_id"] in line for line in ended.get("output", []))
                self.paid[entry["body"]["messages"][-1]["content"]] += is_paid
            batch |= {"status": ended.get("status", "completed"), "errors": ended.get("errors")}
            for field, lines in {"output_file_id": "output", "error_file_id": "errors_file"}.items():
                if ended.get(lines):
                    batch[field] = self._keep("\n".join(ended[lines]) + "\n")

    def _keep(self, text: str) -> str:
        name = f"file-{len(self._files) + 1}"
        self._files[name] = text
        return name
