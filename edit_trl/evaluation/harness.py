"""EleutherAI's lm-evaluation-harness on a model in memory, for the tasks that others report.

Tasks and their data are loaded before the model is touched, and the model and the random state are left as
they were. The harness measures with its own prompts and the model's own generation settings, so that its
scores are comparable with published ones.

Read in lm_eval 0.4.13: `TaskManager.load`, `evaluator.evaluate` (what `simple_evaluate` does with a model),
`HFLM`, which puts the model into eval mode, ties its weights again and completes the tokenizer.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.checks import at_least
from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.common.tables import aligned

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HARNESS_FILE = "harness.json"


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks of the harness, with their data.

    Attributes:
        names: The tasks, groups and tags that were asked for.
        loaded: The result of `TaskManager.load` for them.
    """

    names: tuple[str, ...]
    loaded: Any


def load_harness_tasks(names: Sequence[str], include_path: str | Path | None = None) -> HarnessTasks:
    """Find tasks and load their data.

    Args:
        names: Tasks, groups or tags of the harness, such as ["arc_easy", "gsm8k"].
        include_path: A folder with your own task YAMLs. If all names are tasks of it, nothing else is
            looked at, and no network is needed for local data.

    Raises:
        InputError: lm_eval is not installed, the folder is missing, a name is unknown, a task runs code that
            a model wrote or is multimodal, or its data cannot be loaded.
    """
    from datasets.exceptions import DatasetsError

    names = tuple(dict.fromkeys(names))
    manager = _manager(names, include_path)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise InputError([_unknown(name, manager.all_tasks) for name in unknown])
    try:
        with _random_states_kept():  # a task may draw its few-shot examples when it is loaded
            loaded = manager.load(list(names))
    # No data or no network, an invalid task file, a task defined twice, a package that is not installed.
    except (OSError, ValueError, LookupError, ImportError, DatasetsError) as error:
        raise InputError(f"{', '.join(names)} cannot be loaded: {type(error).__name__}: {error}") from error
    problems = [
        f"the task {name!r} {trouble}; leave it out"
        for name, task in loaded["tasks"].items()
        for trouble, is_so in (
            ("runs code that the model writes, which is not done here", "UNSAFE_CODE"),
            ("shows more than text", "MULTIMODAL"),
        )
        if getattr(task, is_so, False)
    ]
    if problems:
        raise InputError(problems)
    return HarnessTasks(names, loaded)


def evaluate_with_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] | HarnessTasks,
    *,
    include_path: str | Path | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model on tasks of lm-evaluation-harness.

    The model's mode, settings and weights, the tokenizer, the random states of Python, NumPy and torch, and
    torch's number of threads are left as they were, also after an error.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, or the result of `load_harness_tasks`.
        include_path: See `load_harness_tasks`.
        batch_size: Requests at once.
        limit: Only the first so many items of each task.
        num_fewshot: Few-shot examples per prompt; each task's own number where None. A task whose own number
            is 0 keeps it.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        seed: Of few-shot examples and of sampling.

    Returns:
        `tasks`: by name, `version`, `num_fewshot`, `items`, and `scores` and `stderr` by metric; a metric
        behind a filter of answers is called "metric,filter". `groups`: `scores` and `stderr` by name.
        `settings`, and the versions of `lm_eval` and `edit_trl`.

    Raises:
        InputError: See `load_harness_tasks`; or an option is out of range, or there is no chat template.
    """
    problems = at_least(1, batch_size=batch_size, limit=limit) + at_least(0, num_fewshot=num_fewshot)
    if apply_chat_template and tokenizer.chat_template is None:
        problems.append(f"the tokenizer ({tokenizer.name_or_path}) has no chat template to apply")
    if problems:
        raise InputError(problems)
    if not isinstance(tasks, HarnessTasks):
        tasks = load_harness_tasks(tasks, include_path)
    _set_examples(tasks, num_fewshot, seed)
    settings = {
        "tasks": list(tasks.names),
        "batch_size": batch_size,
        "limit": limit,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "seed": seed,
    }
    from edit_trl.models.generation import undisturbed

    with _random_states_kept(), undisturbed(model):
        measured = _measure(model, tokenizer, tasks, settings)
    return _readable(measured) | {"settings": settings}


def write_harness(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Write the results of `evaluate_with_harness` to `harness.json` in a run's folder."""
    path = Path(folder) / HARNESS_FILE
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def format_harness(results: Mapping[str, Any]) -> str:
    """A plain-text table of task, version, items, metric, score and standard error."""
    rows = [("", "version", "items", "metric", "score", "+/-")]
    for kind in ("tasks", "groups"):
        for name, one in results[kind].items():
            for metric, score in one["scores"].items():
                error = one["stderr"].get(metric)
                shown = ["-" if value is None else f"{value:.4f}" for value in (score, error)]
                rows.append((name, str(one.get("version", "")), str(one.get("items", "")), metric, *shown))
    return aligned([rows], left=len(rows[0]))


def _manager(names: Sequence[str], include_path: str | Path | None) -> TaskManager:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not installed ({error}): pip install 'edit_trl[harness]'"
        ) from error
    if not names:
        raise InputError("no task of lm-evaluation-harness is named; name some, such as arc_easy")
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise InputError(f"no folder of tasks at {include_path}")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        # A group in the folder may be made of the harness's own tasks; a task needs no other.
        if set(names) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=None if include_path is None else str(include_path))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm_eval ls tasks` lists them"
    return f"lm-evaluation-harness has no task {name!r}; {hint}"


def _set_examples(tasks: HarnessTasks, num_fewshot: int | None, seed: int) -> None:
    """Set few-shot examples as `simple_evaluate` does, which takes no tasks that are loaded already."""
    for task in tasks.loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch, and torch's number of threads."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    threads = torch.get_num_threads()
    # All devices, since `torch.manual_seed` seeds them all.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: HarnessTasks,
    settings: Mapping[str, Any],
) -> Mapping[str, Any]:
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate

    random.seed(settings["seed"])
    np.random.seed(settings["seed"])
    torch.manual_seed(settings["seed"])
    return evaluate(
        _wrapped(model, tokenizer, settings["batch_size"]),
        tasks.loaded,
        limit=settings["limit"],
        apply_chat_template=settings["apply_chat_template"],
        fewshot_as_multiturn=True,  # as `simple_evaluate` has it; without a chat template, of no effect
        log_samples=False,
    )


def _wrapped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that a model was passed in, which is intended
    # Weights are tied already, and tying them again fails if an adapter has a head of its own.
    model.tie_weights = lambda: None
    try:
        # A copy of the tokenizer, since HFLM gives it a padding token.
        return HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch_size)
    finally:
        del model.tie_weights
        logger.setLevel(level)


def _readable(measured: Mapping[str, Any]) -> dict[str, Any]:
    from lm_eval import __version__ as lm_eval_version

    tasks = {
        name: {
            "version": measured["versions"].get(name),
            "num_fewshot": measured["n-shot"].get(name),
            "items": measured["n-samples"][name]["effective"],
            **_scores(values),
        }
        for name, values in measured["results"].items()
        if name in measured["n-samples"]
    }
    groups = {name: _scores(values) for name, values in measured.get("groups", {}).items()}
    return {"tasks": tasks, "groups": groups, "lm_eval": lm_eval_version, "edit_trl": version("edit_trl")}


def _scores(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metrics and their standard errors, from `metric,filter` and `metric_stderr,filter`."""
    scores: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    for key, value in values.items():
        metric, comma, answer_filter = key.partition(",")
        if not comma:
            continue  # the task's name, alias and number of items
        table = errors if metric.endswith("_stderr") else scores
        name = metric.removesuffix("_stderr") + ("" if answer_filter == "none" else f",{answer_filter}")
        # Without a score, the value is "N/A" or not a number.
        is_number = isinstance(value, Real) and math.isfinite(value)
        table[name] = float(value) if is_number else None
    return {"scores": scores, "stderr": errors}
