"""The Hub on loopback, as far as `huggingface_hub` needs it: repositories, LFS uploads, commits, downloads.

Nothing here is Xet: set HF_HUB_DISABLE_XET=1, and files go the LFS way, in one part or in several.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_TOKEN, READ_TOKEN = "test-write-token", "test-read-token"
USER = "ada"
# As in the Hub's .gitattributes; other files over this many bytes go to LFS too.
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".model")
LFS_SIZE = 10 << 20


@dataclass
class Repo:
    """A repository: each branch's files, name -> (content, is LFS), and its commits."""

    private: bool
    branches: dict = field(default_factory=lambda: {"main": {}})
    commits: list = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return {name: content for name, (content, _) in self.branches["main"].items()}

    def sha(self, branch: str) -> str:
        return hashlib.sha1(repr(sorted(self.branches[branch].items())).encode()).hexdigest()


@dataclass
class Fault:
    """What the next `times` requests that fit are answered with, `after` of them being let through."""

    method: str
    path: str
    status: int | str
    times: int = 1
    after: int = 0
    headers: dict = field(default_factory=dict)
    message: str = "no"


class HubServer:
    """Serves what it is sent.

    Args:
        part_size: LFS files larger than this are uploaded in parts; None for never.

    Attributes:
        repos: (type, id) -> repository.
        objects: sha256 -> content, as LFS has it.
        requests: (method, path) of all requests.
        received: Bytes of LFS content, over all uploads.
        faults: See `fail`.
        url: As HF_ENDPOINT wants it, while it runs.
    """

    def __init__(self, part_size: int | None = None):
        self.part_size = part_size
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.received = 0
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.url = ""

    def environment(self, home) -> dict[str, str]:
        """What a process needs to talk to this server alone."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": WRITE_TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
        }

    def fail(self, method: str, path: str, status: int | str, **options) -> None:
        """Answer requests whose path holds the pattern with a status, or "reset" the connection half-way."""
        self.faults.append(Fault(method, path, status, **options))

    def fault_of(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and re.search(fault.path, path) and fault.times:
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def count(self, method: str, path: str) -> int:
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def add(self, repo_id: str, files: dict[str, bytes], repo_type: str = "model", private=False) -> Repo:
        """Put a repository there as it is."""
        repo = Repo(private)
        repo.branches["main"] = {name: (content, name.endswith(LFS_SUFFIXES)) for name, content in files.items()}
        self.repos[repo_type, repo_id] = repo
        return repo


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    # A request

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.sent = None
        with self.hub.lock:
            self.hub.requests.append((self.command, self.route))
            fault = self.hub.fault_of(self.command, self.route)
        if fault is not None and fault.status == "reset":
            self.reset()
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0) or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = self.read_chunks()
        if fault is not None:
            self.reply(fault.status, {"error": fault.message}, fault.headers)
            return
        try:
            with self.hub.lock:
                self.dispatch(body)
        except Refused as error:
            headers = {"X-Error-Message": error.message}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            self.reply(error.status, {"error": error.message}, headers)

    def reset(self) -> None:
        """Half of what is sent is read, then the connection is reset."""
        self.rfile.read(int(self.headers.get("content-length", 0) or 0) // 2)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def read_chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def reply(self, status: int, body=None, headers=None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Rights

    def token(self) -> str | None:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None

    def must_read(self, repo_type: str, repo_id: str) -> Repo:
        if self.token() not in (None, WRITE_TOKEN, READ_TOKEN):
            raise Refused(401, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and self.token() is None):
            status = 401 if self.token() is None else 404
            raise Refused(status, "Repository not found", "RepoNotFound")
        return repo

    def must_write(self, repo_id: str) -> None:
        if self.token() not in (WRITE_TOKEN, READ_TOKEN):
            raise Refused(401, "Invalid username or password.")
        if self.token() == READ_TOKEN:
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        if repo_id.split("/")[0] != USER:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{repo_id}"')

    # Routes

    def dispatch(self, body: bytes) -> None:
        if self.route == "/api/whoami-v2":
            return self.whoami()
        if self.route == "/api/repos/create":
            return self.create(json.loads(body))
        if self.route == "/api/validate-yaml":
            content = json.loads(body)["content"]
            ok = content.startswith("---\n")
            return self.reply(200 if ok else 400, {"errors": [] if ok else [{"message": "no metadata"}]})
        if match := re.fullmatch(r"/lfs/(\w+)(?:/(\d+|complete|verify))?", self.route):
            return self.lfs_object(*match.groups(), body)
        if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self.route):
            self.must_write(match[2])
            return self.lfs_batch(json.loads(body))
        if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.route):
            return self.resolve("dataset" if match[1] else "model", *match.groups()[1:])
        if match := re.fullmatch(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)(?:/([\w-]+)(?:/(.+))?)?", self.route):
            return self.repository(*match.groups(), body)
        raise Refused(404, f"no route {self.command} {self.route}", "EntryNotFound")

    def whoami(self) -> None:
        roles = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
        if self.token() not in roles:
            raise Refused(401, "Invalid username or password.")
        access = {"displayName": f"my-{roles[self.token()]}", "role": roles[self.token()]}
        self.reply(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": access}})

    def create(self, asked: dict) -> None:
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        self.must_write(repo_id)
        key = (asked.get("type") or "model", repo_id)
        prefix = "datasets/" if key[0] == "dataset" else ""
        url = f"http://{self.headers['host']}/{prefix}{repo_id}"
        if key in self.hub.repos:
            return self.reply(409, {"error": "You already created this repo", "url": url})
        self.hub.repos[key] = Repo(private=asked.get("visibility") == "private")
        return self.reply(200, {"url": url, "name": repo_id})

    def repository(self, repo_type, repo_id, action, rest, body) -> None:
        if action in ("preupload", "commit", "branch"):
            self.must_write(repo_id)
        repo = self.must_read(repo_type, repo_id)
        if action == "branch":
            if rest in repo.branches:
                return self.reply(409, {"error": "Reference already exists"})
            repo.branches[rest] = dict(repo.branches["main"])
            return self.reply(200, {})
        branch, _, path = (rest or "main").partition("/")
        branch = self.branch_of(repo, branch)
        if action == "preupload":
            return self.preupload(repo, branch, json.loads(body))
        if action == "commit":
            return self.commit(repo, repo_id, branch, [json.loads(line) for line in body.splitlines()])
        if action == "tree":
            return self.tree(repo, branch, path.rstrip("/"))
        if action == "paths-info":
            wanted = set(json.loads(body)["paths"])
            found = [(name, of) for name, of in repo.branches[branch].items() if name in wanted]
            return self.reply(200, [self.entry(*item) for item in found])
        if action in (None, "revision"):
            files = repo.branches[branch]
            info = {"id": repo_id, "sha": repo.sha(branch), "private": repo.private, "tags": []}
            info |= {"siblings": [{"rfilename": name} for name in files], "cardData": self.card_data(files)}
            return self.reply(200, info)
        raise Refused(404, f"no {action}", "EntryNotFound")

    def branch_of(self, repo: Repo, revision: str) -> str:
        for branch in repo.branches:
            if revision in (branch, repo.sha(branch)):
                return branch
        raise Refused(404, "Invalid rev id", "RevisionNotFound")

    def tree(self, repo: Repo, branch: str, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        found = {name: of for name, of in repo.branches[branch].items() if name.startswith(prefix)}
        if folder and not found:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        entries = []
        for name, of in found.items():
            first, _, rest = name[len(prefix) :].partition("/")
            if not rest or self.query.get("recursive", ["false"])[0].lower() == "true":
                entries.append(self.entry(name, of))
            elif {"type": "directory", "path": prefix + first, "oid": "0" * 40} not in entries:
                entries.append({"type": "directory", "path": prefix + first, "oid": "0" * 40})
        self.reply(200, entries)

    @staticmethod
    def card_data(files) -> dict:
        import yaml

        text = files.get("README.md", (b"", False))[0].decode()
        return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}

    @staticmethod
    def entry(name: str, of) -> dict:
        content, is_lfs = of
        oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        found = {"type": "file", "path": name, "size": len(content), "oid": oid}
        if is_lfs:
            sha = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return found

    # Uploads

    def preupload(self, repo: Repo, branch: str, asked: dict) -> None:
        answer = []
        for file in asked["files"]:
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE
            known = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if file["path"] in repo.branches[branch]:
                entry = self.entry(file["path"], repo.branches[branch][file["path"]])
                known["oid"] = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            answer.append(known)
        self.reply(200, {"files": answer})

    def lfs_batch(self, asked: dict) -> None:
        base, answer = f"http://{self.headers['host']}/lfs", []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = {"href": f"{base}/{oid}"}
                step = self.hub.part_size
                if step and size > step:
                    parts = {str(n + 1): f"{base}/{oid}/{n + 1}" for n in range(-(-size // step))}
                    upload = {"href": f"{base}/{oid}/complete", "header": {"chunk_size": str(step)} | parts}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{base}/{oid}/verify"}}
            answer.append(entry)
        self.reply(200, {"transfer": "basic", "objects": answer})

    def lfs_object(self, oid: str, what: str | None, body: bytes) -> None:
        if what == "verify":
            return self.reply(200 if oid in self.hub.objects else 404, {})
        if what == "complete":
            numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
            body = b"".join(self.hub.parts[oid, number] for number in numbers)
        else:
            self.hub.received += len(body)
        if what and what.isdigit():
            self.hub.parts[oid, int(what)] = body
            return self.reply(200, {}, {"ETag": hashlib.md5(body).hexdigest()})
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "content does not match its oid")
        self.hub.objects[oid] = body
        return self.reply(200, {})

    def commit(self, repo: Repo, repo_id: str, branch: str, lines: list[dict]) -> None:
        files = dict(repo.branches[branch])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, f"{value['path']} was never uploaded")
                files[value["path"]] = (self.hub.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.branches[branch] = files
        repo.commits.append((branch, lines[0]["value"]["summary"], [x["value"]["path"] for x in lines[1:]]))
        sha = repo.sha(branch)
        url = f"http://{self.headers['host']}/{repo_id}/commit/{sha}"
        self.reply(200, {"commitUrl": url, "commitOid": sha, "success": True})

    # Downloads

    def resolve(self, repo_type: str, repo_id: str, revision: str, name: str) -> None:
        repo = self.must_read(repo_type, repo_id)
        branch = self.branch_of(repo, revision)
        headers = {"X-Repo-Commit": repo.sha(branch), "Content-Type": "application/octet-stream"}
        if name not in repo.branches[branch]:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.reply(404, {"error": "Entry not found"}, headers)
        content, is_lfs = repo.branches[branch][name]
        entry = self.entry(name, (content, is_lfs))
        headers["ETag"] = f'"{entry["lfs"]["oid"] if is_lfs else entry["oid"]}"'
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.reply(206, content[start : end + 1], headers)
        return self.reply(200, content, headers)


@contextmanager
def running(hub: HubServer):
    """Serves in threads; gives the URL, as HF_ENDPOINT wants it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
