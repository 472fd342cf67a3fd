"""Runs, checkpoints, histories and journals that were cut, or edited by hand."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustness_cases.case import Case
from robustness_cases.models import Edit, cut, gone, text, values

RECORD, ITEMS = "evaluation.json", "items.jsonl"


def first_item(**changes: Any) -> Edit:
    """Changes values of a run's first item."""

    def edit(folder: Path) -> None:
        items = [json.loads(line) for line in (folder / ITEMS).read_text(encoding="utf-8").splitlines()]
        items[0].update(changes)
        (folder / ITEMS).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")

    return edit


def _no_answers(folder: Path) -> None:
    items = [json.loads(line) for line in (folder / ITEMS).read_text(encoding="utf-8").splitlines()]
    del items[0]["samples"]
    (folder / ITEMS).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def _twice(folder: Path) -> None:
    content = (folder / ITEMS).read_text(encoding="utf-8")
    (folder / ITEMS).write_text(content + content, encoding="utf-8")


DEEP = "[" * 100000 + "]" * 100000
RUNS: dict[str, Edit] = {
    "an empty record": text(RECORD, ""),
    "a cut record": cut(RECORD),
    "a record that is a list": text(RECORD, "[1]"),
    "a deep record": text(RECORD, DEEP),
    "a record in another encoding": lambda folder: (folder / RECORD).write_bytes(b"\xff\xfe{}"),
    "a record of huge digits": text(RECORD, '{"seed": ' + "9" * 5000 + "}"),
    "a kind that is a list": values(RECORD, kind=[1]),
    "a kind that nobody knows": values(RECORD, kind="magic"),
    "a name that is null": values(RECORD, name=None),
    "a name that is a list": values(RECORD, name=["a"]),
    "scores that are null": values(RECORD, scores=None),
    "a score that is a text": values(RECORD, scores={"accuracy": "x"}),
    "a score that is NaN": values(RECORD, scores={"accuracy": float("nan")}),
    "intervals that are null": values(RECORD, intervals=None),
    "settings that are null": values(RECORD, settings=None),
    "tasks that are a list": values(RECORD, tasks=["sums"]),
    "a time that is a number": values(RECORD, finished=5),
    "a number of items that is a text": values(RECORD, items="many"),
    "a format of tomorrow": values(RECORD, format=99),
    "a run that is not finished": values(RECORD, finished=None),
    "no items": gone(ITEMS),
    "an empty file of items": text(ITEMS, ""),
    "cut items": cut(ITEMS),
    "deep items": text(ITEMS, DEEP + "\n"),
    "an item that is a number": text(ITEMS, "5\n" * 4),
    "items in another encoding": lambda folder: (folder / ITEMS).write_bytes(b"\xff\xfe{}\n"),
    "items that are twice there": _twice,
    "an item without samples": _no_answers,
    "an item whose samples are none": first_item(samples=[]),
    "a sample that is a number": first_item(samples=[5]),
    "a task that is a list": first_item(task=[1]),
    "an id that is null": first_item(id=None),
    "a verdict that nobody knows": first_item(verdict="perhaps"),
    "a verdict that is a list": first_item(verdict=["correct"]),
    "a number that is NaN": first_item(cut_off=float("nan")),
    "a prompt that is a number": first_item(prompt=5),
}
HISTORIES = (
    *("scores='{nope'", "scores='[]'", 'scores=\'{"accuracy": "x"}\'', "scores=NULL", "items='many'", "items=NULL"),
    *("name=x'ff00'", "name=NULL", "finished=5", "finished=NULL", "seed='x'", "kind=x'ff'"),
)
# A file of checkpoint-2, and what is done to it; the run was cut off after that step.
CHECKPOINTS: dict[str, Edit] = {
    **{f"{name} is gone": gone(f"checkpoint-2/{name}") for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")},
    **{
        f"{name} is empty": text(f"checkpoint-2/{name}", "")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    },
    **{
        f"{name} is cut": cut(f"checkpoint-2/{name}")
        for name in ("optimizer.pt", "model.safetensors", "trainer_state.json")
    },
    **{f"{name} is empty": text(f"checkpoint-2/{name}", "") for name in ("model.safetensors", "trainer_state.json")},
    **{f"{name} is gone": gone(f"checkpoint-2/{name}") for name in ("model.safetensors", "trainer_state.json")},
    "edit_trl.json is empty": text("checkpoint-2/edit_trl.json", ""),
    "edit_trl.json is a list": text("checkpoint-2/edit_trl.json", "[1]"),
    "edit_trl.json is deep": text("checkpoint-2/edit_trl.json", DEEP),
    "progress_0.json is cut": cut("checkpoint-2/progress_0.json"),
    "run.json is empty": text("run.json", ""),
    "run.json is cut": cut("run.json"),
    "run.json is a list": text("run.json", "[1]"),
    "run.json is deep": text("run.json", DEEP),
    "run.json has no options": text("run.json", '{"finished": null}'),
    "run.json has options that are a list": text("run.json", '{"finished": null, "options": [1]}'),
    "run.json has a time that is a list": values("run.json", finished=[1]),
}
PUSHED: dict[str, Edit] = {
    "an empty run.json": text("run.json", ""),
    "a run.json that is a list": text("run.json", "[1]"),
    "a run.json that is deep": text("run.json", DEEP),
    "an empty card.json": text("card.json", ""),
    "a card.json that is a list": text("card.json", "[1]"),
    "a card.json without stages": text("card.json", "{}"),
    "a card.json of other types": values("card.json", stages=5),
    "a run that is not finished": values("run.json", finished=None),
    "no weights": gone("model.safetensors"),
    "no run.json, no config": gone("run.json", "config.json", "model.safetensors"),
}
JOURNAL = "journal-0.sqlite"


def _stage(**changes: Any) -> Edit:
    """Changes values of the stage in a card.json."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        content["stages"][0].update(changes)
        (folder / "card.json").write_text(json.dumps(content), encoding="utf-8")

    return edit


_EXAMPLE = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_spans": [], "rejected_spans": []}
CARDS: dict[str, Edit] = {
    "a name that is a list": _stage(name=["a"]),
    "a base that is a number": _stage(base_model=5),
    "a dataset that is a number": _stage(dataset=5),
    "rows that are a list": _stage(rows=[1]),
    "an objective that is a list": _stage(objective=[1]),
    "a weight that is text": _stage(objective={"chosen_key_weight": "many"}),
    "training that is text": _stage(training="x"),
    "processes that are text": _stage(processes="two"),
    "logs of numbers": _stage(logs=[1]),
    "a log without its step": _stage(logs=[{"loss": 1.0}]),
    "a log that is text": _stage(logs=[{"step": 1, "loss": "x"}]),
    "an adapter that is a list": _stage(adapter=[1]),
    "versions that are numbers": _stage(versions={"trl": 5}),
    "an example that is a number": _stage(examples=[_EXAMPLE | {"prompt": 5}]),
    "a span of one number": _stage(examples=[_EXAMPLE | {"chosen_spans": [[0]]}]),
    "no stages": values("card.json", stages=[]),
    "a stage that is null": values("card.json", stages=[None]),
    "a form that nobody knows": values("card.json", form="magic"),
}


def cases() -> Iterator[Case]:
    for number, (name, edit) in enumerate(RUNS.items()):
        lines = {
            "report": ("report", "run_a", "run_b", "--output", "r.html"),
            "compare": ("compare", "run_a", "run_b"),
            "judge": ("judge", "--config", "judge.yaml"),
            "push": ("push", "trained", "--repo_id", "someone/student", "--evaluation", "run_a", "--dry_run"),
        }
        for command in ("report", "compare", ("judge", "push")[number % 2]):
            check = _as_before if command in HARMLESS.get(name, ()) else None
            yield Case("runs", name, lines[command], "run_a", check, prepare=_edit("run_a", edit))
    for change in HISTORIES:
        yield _history(change, ())
        if "scores" in change or "x'" in change:
            yield _history(change, ("--json",))
            yield _history(change, ("--metric", "accuracy"))
    for name, content in (("a file that is no database", b"hello" * 300), ("half a database", None)):
        prepare = cut("history.sqlite") if content is None else None
        files = {} if content is None else {"history.sqlite": content}
        yield Case(
            "history", name, ("history", "--file", "history.sqlite"), r"history\.sqlite", files=files, prepare=prepare
        )
    for name, path in (
        ("a folder", "student"),
        ("no file", "gone.sqlite"),
        ("a device", "/dev/null"),
        ("a long name", "n" * 300),
    ):
        yield Case("history", name, ("history", "--file", path), path[:20])
    yield Case("history", "another database", ("history", "--file", f"generated/{JOURNAL}"), JOURNAL)
    for name, edit in CHECKPOINTS.items():
        words = ("train", "--config", "train.yaml", "--output_dir", "trained")
        named = name.partition(" ")[0].partition(".")[0]
        yield Case(
            "checkpoints", name, words, named, _resumed, prepare=_interrupted(edit), loads=True, leaves="trained/.*"
        )
    for name, edit in PUSHED.items():
        words = ("push", "trained", "--repo_id", "someone/student", "--dry_run")
        yield Case("runs", f"to push: {name}", words, "trained", prepare=_edit("trained", edit))
    for name, edit in CARDS.items():
        words = ("push", "trained", "--repo_id", "someone/student", "--dry_run")
        yield Case("cards", name, words, r"card\.json", prepare=_edit("trained", edit))
        yield Case("cards", name, ("merge", "adapter", "--output", "m"), r"card\.json", prepare=_card_of_adapter(edit))
    for value in (5, ["a"]):
        edit = values("run.json", options={"hub_model_id": value})
        name = f"to push: hub_model_id {value}"
        yield Case("runs", name, ("push", "trained", "--dry_run"), "hub_model_id", prepare=_edit("trained", edit))
    yield from _journals()


# Commands for which a fault is none, since they do not use the value: they may pass.
HARMLESS = {
    "a name that is null": ("compare",),
    "a name that is a list": ("compare",),
    **dict.fromkeys(("scores that are null", "a score that is a text", "a score that is NaN"), ("compare", "judge")),
    "intervals that are null": ("compare", "judge"),
    "settings that are null": ("judge", "push"),
    "tasks that are a list": ("judge", "push"),
    "a time that is a number": ("report", "compare", "judge", "push"),
    "an item whose samples are none": ("compare", "push"),
    "a sample that is a number": ("compare", "push"),
    "a number that is NaN": ("compare", "judge", "push"),
    "a prompt that is a number": ("report", "compare", "push"),
    **dict.fromkeys(("an item without samples", "a task that is a list", "an id that is null"), ("push",)),
    **dict.fromkeys(("a verdict that nobody knows", "a verdict that is a list"), ("judge", "push")),
    **dict.fromkeys(("items that are twice there", "an item that is a number", "an empty file of items"), ("push",)),
    **dict.fromkeys(("no items", "cut items", "deep items", "items in another encoding"), ("push",)),
}


def _as_before(_folder: Path, _outcome: Any) -> None:
    """The fault is none for this command."""


def _edit(name: str, edit: Edit) -> Edit:
    return lambda folder: edit(folder / name)


def _card_of_adapter(edit: Edit) -> Edit:
    def prepare(folder: Path) -> None:
        shutil.copy(folder / "trained" / "card.json", folder / "adapter")
        edit(folder / "adapter")

    return prepare


def _history(change: str, more: tuple[str, ...]) -> Case:
    def prepare(folder: Path) -> None:
        connection = sqlite3.connect(folder / "history.sqlite")
        # NOT NULL of a column is a refusal of its own: such a file cannot be made.
        try:
            connection.execute(f"UPDATE runs SET {change}")
        except sqlite3.IntegrityError:
            connection.execute("DROP TABLE runs")
        connection.commit()
        connection.close()

    name = f"{change} {' '.join(more)}".strip()
    return Case("history", name, ("history", "--file", "history.sqlite", *more), r"history\.sqlite", prepare=prepare)


def _interrupted(edit: Edit) -> Edit:
    """A run that was cut off after step 2, whose checkpoint or record is then broken."""

    def prepare(folder: Path) -> None:
        run = folder / "trained"
        shutil.copytree(run, folder / "whole")
        shutil.rmtree(run / "checkpoint-3")
        (run / "model.safetensors").unlink()
        values("run.json", finished=None)(run)
        edit(run)

    return prepare


def _resumed(folder: Path, _outcome: Any) -> str | None:
    """Where the run goes on, it ends with the weights of the run that was left alone."""
    ended, whole = ((folder / name / "model.safetensors").read_bytes() for name in ("trained", "whole"))
    return None if ended == whole else "it was resumed to other weights"


def _journals() -> Iterator[Case]:
    """Journals of generate and judge that were cut or belong to something else; what was paid for stays in them."""
    edits: dict[str, Edit] = {
        "a journal that is text": text(JOURNAL, "hello" * 300),
        "a cut journal": cut(JOURNAL),
        "a journal of another program": _other_database,
    }
    for command, output in (("generate", "generated"), ("judge", "judged")):
        for name, edit in edits.items():
            words = (command, "--config", f"{command}.yaml", "--output_dir", output)
            yield Case(
                "journals",
                name,
                words,
                JOURNAL.replace(".", r"\."),
                prepare=_edit(output, edit),
                leaves=rf"{output}/journal-0.*",
            )


def _other_database(folder: Path) -> None:
    (folder / JOURNAL).unlink()
    connection = sqlite3.connect(folder / JOURNAL)
    connection.execute("CREATE TABLE birds (name TEXT)")
    connection.commit()
    connection.close()
