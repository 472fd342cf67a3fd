"""Accuracies on benchmarks of the Hub, for its leaderboards: the file in `.eval_results/` of a model's repository.

A dataset on the Hub is a benchmark if it has an `eval.yaml`, which names its tasks. The Hub takes results on benchmarks
only, each with the id of the task (https://huggingface.co/docs/hub/eval-results).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edit_trl.common.yaml_file import read_yaml

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

    from edit_trl.common.hub_ids import HubDataset
    from edit_trl.hub.card_facts import Evaluation

RESULTS_FILE = ".eval_results/edit_trl.yaml"
"""The file of edit_trl. Others in this folder, such as those that somebody else contributed, are left alone."""


def eval_results(
    evaluations: Sequence[Evaluation], repo_id: str, *, revision: str | None = None, token: str | None = None
) -> tuple[dict[str, bytes], list[str]]:
    """Return the file of results of a model, and notes for the user.

    Args:
        evaluations: Runs of this model, and of others, which are left out. Of two runs of a benchmark with the same
            setup, the later one counts.
        repo_id: The model's repository, which is named as the source of the results.
        revision: The branch that is pushed to; None for the main branch.
        token: Token of the Hub; None for that of the login.

    Returns:
        The content by the name of the file, in percent; nothing if no task is a whole split of a benchmark. A note for
        each dataset on the Hub that is no benchmark.
    """
    entries: dict[tuple[str, str, str], EvalResultEntry] = {}
    notes: list[str] = []
    task_ids: dict[str, str | None] = {}
    for evaluation, dataset, accuracy in _measured_on_the_hub(evaluations):
        place = f"{dataset['dataset']} (config {dataset['config']}, split {dataset['split']})"
        if place not in task_ids:
            task_ids[place] = _task_id(dataset, token)
            if task_ids[place] is None:
                notes.append(f"found no eval.yaml with a task for {place}: its accuracy is on the card only")
        if (task_id := task_ids[place]) is not None:
            source = f"{repo_id}/blob/{revision or 'main'}/results.json"
            entry = _entry(evaluation, dataset["dataset"], task_id, accuracy, source)
            entries[entry.dataset_id, task_id, evaluation.setup] = entry
    return ({RESULTS_FILE: _written(list(entries.values()))} if entries else {}), notes


def _measured_on_the_hub(evaluations: Sequence[Evaluation]) -> Iterator[tuple[Evaluation, HubDataset, float]]:
    """Yield the runs of this model, in order of time, with each dataset on the Hub and the accuracy on it."""
    for evaluation in sorted(evaluations, key=lambda run: run.finished or ""):
        if evaluation.of_this_model and evaluation.kind == "evaluate":
            for name, dataset in evaluation.hub_datasets.items():
                accuracy = evaluation.tasks.get(name, {}).get("accuracy")
                if accuracy is not None:
                    yield evaluation, dataset, accuracy


def _task_id(dataset: HubDataset, token: str | None) -> str | None:
    """Return the id of a dataset's task, by its `eval.yaml`; None if it has none for this config and split."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        file = hf_hub_download(dataset["dataset"], "eval.yaml", repo_type="dataset", token=token)
        tasks = read_yaml(file, "eval.yaml").get("tasks")
    except (HTTPError, OSError, ValueError):  # no such file, no network, or no YAML
        return None
    ids = [
        str(task["id"])
        for task in (tasks if isinstance(tasks, list) else ())
        if isinstance(task, dict) and re.fullmatch(r"[\w.-]{1,100}", str(task.get("id"))) and _is_of(task, dataset)
    ]
    return ids[0] if len(ids) == 1 else None


def _is_of(task: Mapping[str, Any], dataset: HubDataset) -> bool:
    config, split = task.get("config") or "default", task.get("split") or dataset["split"]
    return (config, split) == (dataset["config"] or "default", dataset["split"])


def _entry(evaluation: Evaluation, dataset: str, task_id: str, accuracy: float, source: str) -> EvalResultEntry:
    from huggingface_hub import EvalResultEntry, constants

    return EvalResultEntry(
        dataset_id=dataset,
        task_id=task_id,
        value=round(100 * accuracy, 2),
        date=evaluation.finished,
        source_url=f"{constants.ENDPOINT}/{source}",
        source_name="Results of edit_trl",
        notes=evaluation.setup or None,
    )


def _written(entries: list[EvalResultEntry]) -> bytes:
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    head = "# Written by `edit-trl push`, which replaces this file. Accuracy in percent.\n"
    return (head + yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)).encode()
