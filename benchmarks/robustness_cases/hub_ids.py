"""Repositories of the Hub that cannot be, told before anything is made, asked or loaded; and what is no run to push."""

from __future__ import annotations

from collections.abc import Iterator

from robustness_cases.case import Case
from robustness_cases.commands import COMMANDS
from robustness_cases.material import recipe

IDS = {
    "dots": "../../x",
    "three parts": "a/b/c",
    "a space": "someone/my model",
    "no name": "someone/",
    "no namespace": "/model",
    "a URL": "https://huggingface.co/someone/model",
    "a query": "someone/model?x=1",
    "an end of .git": "someone/model.git",
    "two dots": "someone/a..b",
    "two dashes": "someone/a--b",
    "a name too long": "someone/" + "x" * 200,
    "a control character": "someone/\x1b[31m",
    "a number": "5/-",
}


def cases() -> Iterator[Case]:
    for number, (name, given) in enumerate(IDS.items()):
        said = "repo_id|push_to_hub|hub_model_id|namespace|id"
        yield Case("Hub ids", name, ("push", "trained", "--dry_run", "--repo_id", given), said)
        files = {"x.yaml": recipe("generate", push_to_hub=given)}
        yield Case("Hub ids", name, ("generate", "--config", "x.yaml"), said, files=files)
        yield Case("Hub ids", name, ("validate", "--config", "x.yaml"), said, files=files)
        if number % 2 == 0:
            files = {"x.yaml": recipe("train", push_to_hub=True, hub_model_id=given)}
            yield Case("Hub ids", name, ("train", "--config", "x.yaml"), said, files=files)
            words = ("push", "trained", "--dry_run", "--repo_id", "someone/x", "--base_model", given)
            yield Case("Hub ids", f"of the base: {name}", words, "base_model|id")
    for name, source in {
        "a run of evaluate": "run_a",
        "a file of another kind": "t.yaml",
        "a history": "history.sqlite",
        "nothing there": "gone",
        "what a judge wrote": "judged",
    }.items():
        words = ("push", source, "--repo_id", "someone/x", "--dry_run")
        yield Case("Hub ids", f"to push: {name}", words, source.replace(".", r"\."))
    # Nothing of this process is logged in, and the Hub cannot be reached.
    for name, words in {
        "no token": ("push", "trained", "--repo_id", "someone/student"),
        "no account for the namespace": ("push", "trained", "--dry_run"),
        "rows of the Hub": ("inspect", "nobody/nothing"),
        "rows of the Hub to train on": (*COMMANDS["train"], "--dataset_name", "nobody/nothing"),
        "questions of the Hub": (*COMMANDS["generate"], "--dataset_name", "nobody/nothing"),
        "a tokenizer of the Hub": (*COMMANDS["inspect"], "--tokenizer", "nobody/nothing"),
        "a base of the Hub": (*COMMANDS["merge"], "--base_model", "nobody/nothing"),
    }.items():
        said = "nobody/nothing|token|log in|login|offline|Hub|repo_id|namespace"
        yield Case("Hub ids", name, words, said)
