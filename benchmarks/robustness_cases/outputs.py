"""Outputs that cannot be written: no room, no permission, a device, something else in the place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustness_cases.case import Case, Outcome

# Commands with an output, which stands in place of @OUT@: a file or a folder.
FILES = {
    "inspect": ("inspect", "rows.jsonl", "--html", "@OUT@"),
    "report": ("report", "run_a", "run_b", "--output", "@OUT@"),
    "compare --json": ("compare", "run_a", "run_b", "--json", "@OUT@"),
    "compare --markdown": ("compare", "run_a", "run_b", "--markdown", "@OUT@"),
    "compare --junit": ("compare", "run_a", "run_b", "--min-score", "0", "--junit", "@OUT@"),
    "generate .jsonl": ("generate", "--rows", "40", "--output", "@OUT@.jsonl"),
    "generate .parquet": ("generate", "--rows", "40", "--output", "@OUT@.parquet"),
    "generate .csv": ("generate", "--rows", "40", "--output", "@OUT@.csv"),
}
FOLDERS = {
    "generate a folder": ("generate", "--rows", "40", "--output", "@OUT@"),
    "generate by recipe": ("generate", "--config", "generate.yaml", "--output_dir", "@OUT@"),
    "evaluate": ("evaluate", "--config", "evaluate.yaml", "--output_dir", "@OUT@"),
    "suite": ("suite", "--config", "suite.yaml", "--output_dir", "@OUT@"),
    "judge": ("judge", "--config", "judge.yaml", "--output_dir", "@OUT@"),
    "merge": ("merge", "adapter", "--output", "@OUT@"),
    "train": ("train", "--config", "train.yaml", "--output_dir", "@OUT@"),
}
# These resume: what a run has paid for or answered before the disk was full stays.
RESUMED = r"m/x(/.*)?"


def cases() -> Iterator[Case]:
    for name, words in (FILES | FOLDERS).items():
        keeps = {"leaves": RESUMED, "loads": True, "pays": 99} if name in FOLDERS else {}
        yield _case("a full disk", name, words, "m/x", "m/", room="size=32k,nr_inodes=20", prepare=_fill, **keeps)
        yield _case("a read-only disk", name, words, "m/x", "m/", room="size=1m,ro")
        yield _case("no permission", name, words, "closed/x", "closed", nobody=True, prepare=_close)
        yield _case("below a file", name, words, "rows.jsonl/x", r"rows\.jsonl")
        yield _case("a name too long", name, words, "n" * 300, "nnnn")
        yield (
            _case("a NUL in the name", name, words, "a\0b", "output_dir|null|NUL")
            if name in FOLDERS and name != "merge"
            else None or _case("an endless loop of links", name, words, "loop/x", "loop", prepare=_loop)
        )
    for name, words in FILES.items():
        yield _case("a folder there", name, words, "student", "student", prepare=_folders_of_all_names)
        if not name.startswith("generate"):
            yield _case("a full device", name, words, "/dev/full", "/dev/full")
            yield _case("a link to nowhere", name, words, "link", "gone|link", check=_written, prepare=_link)
    for name, words in FOLDERS.items():
        if name != "generate a folder":
            yield _case("a file there", name, words, "rows.jsonl", r"rows\.jsonl")
            yield _case("a device there", name, words, "/dev/null", "/dev/null")
    yield from _kept()
    yield from _read_without_permission()


def _case(fault: str, name: str, words: tuple[str, ...], output: str, said: str, **more: Any) -> Case:
    given = tuple(word.replace("@OUT@", output) for word in words)
    # A NUL cannot stand on a command line: it comes from the recipe.
    if "\0" in output:
        recipe = f"{given[0]}.yaml"
        given, more = (given[0], "--config", recipe), more | {"prepare": _name_in_recipe(recipe)}
    return Case("outputs", f"{fault}: {name}", given, said, **more)


def _name_in_recipe(recipe: str) -> Any:
    def prepare(folder: Path) -> None:
        kept = [line for line in (folder / recipe).read_text().splitlines() if not line.startswith("output_dir")]
        (folder / recipe).write_text("\n".join([*kept, 'output_dir: "a\\0b"', ""]))

    return prepare


def _fill(folder: Path) -> None:
    room = os.statvfs(folder / "m")
    (folder / "m" / "filler").write_bytes(b"x" * (room.f_bavail * room.f_frsize))


def _close(folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)


def _loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def _link(folder: Path) -> None:
    (folder / "link").symlink_to("gone/x")


def _written(folder: Path, _outcome: Outcome) -> str | None:
    return None if (folder / "link").is_file() else "nothing was written"


def _folders_of_all_names(folder: Path) -> None:
    for end in (".jsonl", ".parquet", ".csv"):
        (folder / f"student{end}").mkdir()


def _kept() -> Iterator[Case]:
    """What stood there before is as it was where the command fails."""
    before = {"there.json": "old\n", "there.md": "old\n", "there.xml": "old\n", "there.html": "old\n"}
    for option, file in (("--json", "there.json"), ("--markdown", "there.md")):
        words = ("compare", "run_a", "nowhere", option, file)
        yield Case("outputs", f"something there: compare {option}", words, "nowhere", files=before)
    yield Case(
        "outputs",
        "something there: report",
        ("report", "nowhere", "--output", "there.html"),
        r"nowhere|there\.html",
        files=before,
    )
    yield Case(
        "outputs",
        "something else there: report",
        ("report", "run_a", "--output", "there.html"),
        r"there\.html",
        files=before,
    )
    yield Case(
        "outputs",
        "something else there: inspect",
        ("inspect", "rows.jsonl", "--html", "there.html"),
        r"there\.html",
        files=before,
    )
    yield Case(
        "outputs", "something there: generate", ("generate", "--rows", "2", "--output", "rows.jsonl"), r"rows\.jsonl"
    )
    for option, file in (("--json", "m/there.json"), ("--markdown", "m/there.md")):
        words, prepare = ("compare", "run_a", "run_b", option, file), _old_on_a_full_disk(file)
        name, room = f"something there, a full disk: compare {option}", "size=32k,nr_inodes=20"
        yield Case("outputs", name, words, "m/there", _replaced(file), prepare=prepare, room=room)
    for name, words in (
        ("inspect", ("inspect", "rows.jsonl", "--html", "null")),
        ("report", ("report", "run_a", "--output", "null")),
    ):
        yield Case("outputs", f"a device node: {name}", words, "null", _still_a_device, rooted=True, prepare=_device)


def _old_on_a_full_disk(file: str) -> Any:
    def prepare(folder: Path) -> None:
        (folder / file).write_text("old\n", encoding="utf-8")
        _fill(folder)

    return prepare


def _replaced(file: str) -> Any:
    def check(folder: Path, _outcome: Outcome) -> str | None:
        content = (folder / file).read_text(encoding="utf-8")
        return None if "run" in content and content.endswith("\n") else f"{file} is neither the old nor the new one"

    return check


def _device(folder: Path) -> None:
    os.mknod(folder / "null", 0o666 | 0o020000, os.makedev(1, 3))


def _still_a_device(folder: Path, _outcome: Outcome) -> str | None:
    return None if (folder / "null").is_char_device() else "the device node was replaced by a file"


def _read_without_permission() -> Iterator[Case]:
    """Inputs that may not be read."""

    def hide(*names: str) -> Any:
        return lambda folder: [(folder / name).chmod(0) for name in names]

    table = {
        "rows": (("inspect", "rows.jsonl"), "rows.jsonl"),
        "rows to validate": (("validate", "--dataset", "rows.jsonl"), "rows.jsonl"),
        "rows to train on": (("train", "--config", "train.yaml"), "rows.jsonl"),
        "questions": (("generate", "--config", "generate.yaml"), "q.jsonl"),
        "a recipe of train": (("train", "--config", "train.yaml"), "train.yaml"),
        "a recipe of generate": (("generate", "--config", "generate.yaml"), "generate.yaml"),
        "a recipe of judge": (("judge", "--config", "judge.yaml"), "judge.yaml"),
        "a task file": (("evaluate", "--config", "evaluate.yaml"), "t.yaml"),
        "a run to report": (("report", "run_a", "--output", "/tmp/never.html"), "run_a"),
        "a run to compare": (("compare", "run_a", "run_b"), "run_a"),
        "a record to compare": (("compare", "run_a", "run_b"), "run_a/evaluation.json"),
        "items to judge": (("judge", "--config", "judge.yaml"), "run_a/items.jsonl"),
        "a history": (("history", "--file", "history.sqlite"), "history.sqlite"),
        "a model": (("evaluate", "--config", "evaluate.yaml"), "student"),
        "weights": (("chat", "student"), "student/model.safetensors"),
        "a config": (("suite", "--config", "suite.yaml"), "student/config.json"),
        "an adapter": (("merge", "adapter", "--output", "merged"), "adapter/adapter_config.json"),
        "a trained run": (("push", "trained", "--repo_id", "someone/student", "--dry_run"), "trained/run.json"),
    }
    for name, (words, hidden) in table.items():
        said = hidden.partition("/")[0].replace(".", r"\.")
        yield Case(
            "permissions",
            name,
            words,
            said,
            prepare=hide(hidden),
            nobody=True,
            loads=name == "weights",
            typed="Hello\n",
        )
