"""EleutherAI's lm-evaluation-harness on a model in memory, for scores that can be compared with others.

Tasks and their data are loaded before the model is used; afterwards the model and the random state are
restored. The harness uses its own prompts and the generation settings of the model, so that its scores can be
compared with published ones.

Read in lm_eval 0.4.13: `TaskManager.load`, `evaluator.evaluate` (which `simple_evaluate` calls), and `HFLM`,
which puts the model into eval mode, ties its weights again and adds a padding token to the tokenizer. It has the
options `chat_template_args`, `enable_thinking` and `think_end_token` (a text or an id).
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
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.files import write_whole
from edit_trl.common.tables import aligned
from edit_trl.models.chat_templates import check_variables

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HARNESS_FILE = "harness.json"

_ENDS_OF_THOUGHTS = ("</think>", "[/THINK]", "<channel|>", "<|END_THINKING|>", "◁/think▷")


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks of the harness, with their data.

    Attributes:
        names: The requested tasks, groups and tags.
        loaded: The result of `TaskManager.load`.
    """

    names: tuple[str, ...]
    loaded: Any


def load_harness_tasks(names: Sequence[str], include_path: str | Path | None = None) -> HarnessTasks:
    """Load tasks and their data.

    Args:
        names: Tasks, groups or tags of the harness, such as ["arc_easy", "gsm8k"].
        include_path: A folder with further task YAMLs. If all names are tasks in it, no other task is read,
            and no network is needed for local data.

    Raises:
        InputError: lm_eval is not installed, the folder is missing, a name is unknown, a task runs code that
            the model writes or shows images, or its data cannot be loaded.
    """
    from datasets.exceptions import DatasetsError

    names = tuple(dict.fromkeys(names))
    manager = _manager(names, include_path)
    raise_problems(_unknown(name, manager.all_tasks) for name in names if name not in manager.task_index)
    try:
        with _restored_random_states():  # a task may sample its examples when it is created
            loaded = manager.load(list(names))
    # No data or no network, an invalid task file, a task named twice, or a missing package.
    except (OSError, ValueError, LookupError, ImportError, DatasetsError) as error:
        raise InputError(f"{', '.join(names)} cannot be loaded: {type(error).__name__}: {error}") from error
    errors = [
        f"the task {name!r} {reason}; leave it out"
        for name, task in loaded["tasks"].items()
        for reason, attribute in (
            ("runs code that the model writes, which is not done here", "UNSAFE_CODE"),
            ("shows more than text", "MULTIMODAL"),
        )
        if getattr(task, attribute, False)
    ]
    raise_problems(errors)
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
    chat_template_kwargs: Mapping[str, Any] | None = None,
    seed: int | None = 0,
) -> dict[str, Any]:
    """Measure a model on tasks of lm-evaluation-harness.

    The mode, settings and weights of the model, the tokenizer, the random states (of Python, NumPy and torch)
    and the number of torch threads are restored, also after an error.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, or the result of `load_harness_tasks`.
        include_path: See `load_harness_tasks`.
        batch_size: Number of requests per batch.
        limit: The most items of each task, from its beginning.
        num_fewshot: Number of worked examples in a prompt; that of each task if None. A task that sets it to 0 keeps 0.
        apply_chat_template: Whether to apply the chat template of the tokenizer. What precedes the end of the thoughts
            of a response is then not part of it.
        chat_template_kwargs: Values of the chat template's variables, such as {"enable_thinking": False}.
        seed: Seed of few-shot examples and of sampling.

    Returns:
        A dictionary with `tasks`: for each task its `version`, `num_fewshot` and `items`, and by metric its
        `scores` and `stderr` (a metric after a filter of answers is named "metric,filter"); `groups`: the
        `scores` and `stderr` of groups; `settings`; and the versions of `lm_eval` and `edit_trl`.

    Raises:
        InputError: See `load_harness_tasks`; or an option is out of range, there is no chat template or it has no such
            variable, or thinking is switched on for a task that compares log-probabilities.
    """
    errors = at_least(1, batch_size=batch_size, limit=limit) + at_least(0, num_fewshot=num_fewshot)
    if apply_chat_template and tokenizer.chat_template is None:
        errors.append(f"the tokenizer ({tokenizer.name_or_path}) has no chat template to apply")
    if chat_template_kwargs and not apply_chat_template:
        errors.append("`chat_template_kwargs` has no effect here: the chat template is not applied")
    raise_problems(errors)
    check_variables(tokenizer, chat_template_kwargs)
    if not isinstance(tasks, HarnessTasks):
        tasks = load_harness_tasks(tasks, include_path)
    if (chat_template_kwargs or {}).get("enable_thinking"):
        raise_problems(_without_thoughts(tasks))
    _set_examples(tasks, num_fewshot, seed)
    settings = {
        "tasks": list(tasks.names),
        "batch_size": batch_size,
        "limit": limit,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "seed": seed,
    }
    if chat_template_kwargs:
        settings["chat_template_kwargs"] = dict(chat_template_kwargs)
    from edit_trl.models.generation import undisturbed

    with _restored_random_states(), undisturbed(model):
        raw_results = _run(model, tokenizer, tasks, settings)
    return _readable(raw_results) | {"settings": settings}


def write_harness(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Write the results of `evaluate_with_harness` as `harness.json` into the folder of a run."""
    path = Path(folder) / HARNESS_FILE
    write_whole(path, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def format_harness(results: Mapping[str, Any]) -> str:
    """Format a plain-text table of the scores with their standard errors, by task and metric."""
    rows = [("", "version", "items", "metric", "score", "+/-")]
    for kind in ("tasks", "groups"):
        for name, one in results[kind].items():
            for metric, score in one["scores"].items():
                error = one["stderr"].get(metric)
                numbers = ["-" if value is None else f"{value:.4f}" for value in (score, error)]
                rows.append((name, str(one.get("version", "")), str(one.get("items", "")), metric, *numbers))
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
    if include_path is None:
        return TaskManager()
    if not Path(include_path).is_dir():
        raise InputError(f"no folder of tasks at {include_path}")
    own = TaskManager(include_path=str(include_path), include_defaults=False)
    # A group in the folder may contain tasks of the harness, but a task needs no others.
    return own if set(names) <= set(own.all_subtasks) else TaskManager(include_path=str(include_path))


def _unknown(name: str, names: Sequence[str]) -> str:
    similar = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, similar))}?" if similar else "`lm_eval ls tasks` lists them"
    return f"lm-evaluation-harness has no task {name!r}; {hint}"


def _set_examples(tasks: HarnessTasks, num_fewshot: int | None, seed: int | None) -> None:
    """Set the few-shot examples like `simple_evaluate`, which does not take loaded tasks."""
    for task in tasks.loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)


@contextmanager
def _restored_random_states() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch, and the number of torch threads, at the end."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    threads = torch.get_num_threads()
    # All devices, since `torch.manual_seed` seeds all of them.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: HarnessTasks, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    from lm_eval.evaluator import evaluate
    from transformers import set_seed

    set_seed(settings["seed"])
    return evaluate(
        _wrapped(model, tokenizer, settings),
        tasks.loaded,
        limit=settings["limit"],
        apply_chat_template=settings["apply_chat_template"],
        fewshot_as_multiturn=True,  # the default of `simple_evaluate`; without a chat template, of no effect
        log_samples=False,
    )


def _without_thoughts(tasks: HarnessTasks) -> Iterator[str]:
    """Yield an error for each task that lets the model write nothing."""
    for name, task in tasks.loaded["tasks"].items():
        if task.get_config("output_type") != "generate_until":
            yield (
                f"the task {name!r} compares log-probabilities of given answers, before which a model cannot think; "
                "leave it out, or set `enable_thinking: false` in `chat_template_kwargs`"
            )


def _thinking(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `HFLM` about chat templates and thoughts."""
    if not settings["apply_chat_template"]:
        return {}
    values, vocabulary = settings.get("chat_template_kwargs") or {}, tokenizer.get_vocab()
    # As an id: a special token is not part of the text.
    end = next((vocabulary[token] for token in _ENDS_OF_THOUGHTS if token in vocabulary), "</think>")
    return {
        "chat_template_args": values,
        "enable_thinking": values.get("enable_thinking"),
        "think_end_token": end,
    }


def _wrapped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that it is given a model, which is intended
    # The weights are tied already, and tying them again fails if an adapter has a head of its own.
    untied: Any = model
    untied.tie_weights = lambda: None
    try:
        # A copy, since HFLM adds a padding token to the tokenizer.
        options = {"batch_size": settings["batch_size"], **_thinking(tokenizer, settings)}
        return HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), **options)
    finally:
        del untied.tie_weights
        logger.setLevel(level)


def _readable(raw_results: Mapping[str, Any]) -> dict[str, Any]:
    from lm_eval import __version__ as lm_eval_version

    tasks = {
        name: {
            "version": raw_results["versions"].get(name),
            "num_fewshot": raw_results["n-shot"].get(name),
            "items": raw_results["n-samples"][name]["effective"],
            **_scores(values),
        }
        for name, values in raw_results["results"].items()
        if name in raw_results["n-samples"]
    }
    groups = {name: _scores(values) for name, values in raw_results.get("groups", {}).items()}
    return {"tasks": tasks, "groups": groups, "lm_eval": lm_eval_version, "edit_trl": version("edit_trl")}


def _scores(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return metrics and their standard errors, from `metric,filter` and `metric_stderr,filter`."""
    scores: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma:
            continue  # the name, alias or number of items
        values_by_name = errors if metric.endswith("_stderr") else scores
        name = metric.removesuffix("_stderr") + ("" if filter_name == "none" else f",{filter_name}")
        # The harness has "N/A" or nan for a missing value.
        is_number = isinstance(value, Real) and math.isfinite(value)
        values_by_name[name] = float(value) if is_number else None
    return {"scores": scores, "stderr": errors}
