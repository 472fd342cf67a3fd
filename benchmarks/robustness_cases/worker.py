"""A case from its folder to its verdict, in a process that has imported the libraries."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from robustness_cases import child
from robustness_cases.all_cases import all_cases
from robustness_cases.case import Case, Outcome, Verdict, judge
from robustness_cases.endpoint import Endpoint, solve


@dataclass(frozen=True)
class Report:
    """The verdict on a case, what was wrong, its command line and how long it took."""

    verdict: Verdict
    wrong: str
    line: str
    seconds: float


def run_case(title: str, material: Path, folder: Path, keep: bool) -> Report:
    """Run a case in `folder/work`, made from the material, and judge it; `folder` is removed unless it is kept."""
    case, started = all_cases()[title], time.monotonic()
    work, place = folder / "work", folder / "place"
    shutil.copytree(material, work)
    place.mkdir()
    for one in (folder, work, place):
        one.chmod(0o777)
    with ExitStack() as stack:
        endpoint = stack.enter_context(Endpoint(case.answer or solve))
        if case.room is not None:
            _mount(case.room, work / "m")
            stack.callback(subprocess.run, ["umount", "--lazy", str(work / "m")], check=True)
        _write_files(case, work, endpoint.url)
        words = [word.replace("@URL@", endpoint.url) for word in case.words]
        (place / "typed").write_text(case.typed, encoding="utf-8")
        here = os.getcwd()
        os.chdir(work)
        stack.callback(os.chdir, here)
        if case.prepare is not None:
            case.prepare(work)
        before = snapshot(work)
        code = child.wait(child.start(words, work, place, nobody=case.nobody, real=case.real), case.seconds)
        after = snapshot(work)
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        changed = [name for name in changed if after.get(name) != "folder"]
        texts = ((place / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        outcome = Outcome(code, *texts, changed, endpoint.paid, (place / "loaded").exists())
        verdict, wrong = judge(case, outcome, work)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return Report(verdict, wrong, shlex.join(["edit-trl", *words]), round(time.monotonic() - started, 2))


def can_mount() -> bool:
    """Whether this process may mount a tmpfs, make device nodes and give up its rights."""
    return os.geteuid() == 0 and not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode


def _mount(options: str, folder: Path) -> None:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=777", "tmpfs", str(folder)], check=True)


def _write_files(case: Case, work: Path, url: str) -> None:
    for name, content in case.files.items():
        file = work / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    for recipe in work.glob("*.yaml"):
        if recipe.is_file() and re.search(b"@(URL|HOST)@", content := recipe.read_bytes()):
            host = url.removeprefix("http://").removesuffix("/v1")
            recipe.write_bytes(content.replace(b"@URL@", url.encode()).replace(b"@HOST@", host.encode()))


def snapshot(folder: Path) -> dict[str, str]:
    """What is in a folder: the paths, and the content of files."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            found[str(path.relative_to(folder))] = _content(path)
    return found


def _content(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        return "folder"
    return hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else f"{stat.S_IFMT(mode):o}"
