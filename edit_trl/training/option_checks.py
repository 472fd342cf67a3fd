"""Checks of options by themselves: words, ranges, the schedule, and what is refused. Nothing is loaded.

They take the options of a class by name, so that `DualCoTConfig` in Python, the classes of TRL's trainers and TRL's
`ModelConfig` are checked alike.
"""

import difflib
import enum
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import DynamoBackend, is_deepspeed_available
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from edit_trl.common.errors import brief, show
from edit_trl.training.inherited_options import (
    ACCELERATOR_OPTIONS,
    CHECKPOINTING_KEYS,
    CHOICES,
    MAPPINGS,
    OF_EVERY_RUN,
    PUSHES_CHECKPOINTS,
    REFUSED,
)


class Range(NamedTuple):
    """The numbers that an option may have, and the rule in words."""

    holds: Callable[[float], bool]
    rule: str


COUNT = Range(lambda value: value >= 1, "must be at least 1")
NOT_NEGATIVE = Range(lambda value: 0 <= value < math.inf, "must be a finite number, 0 or more")
POSITIVE = Range(lambda value: 0 < value < math.inf, "must be a finite number above 0")
SHARE = Range(lambda value: 0 < value <= 1, "must be above 0 and at most 1")
BELOW_1 = Range(lambda value: 0 <= value < 1, "must be 0 or more and below 1")
SEED = Range(lambda value: 0 <= value < 2**32, "must be between 0 and 4294967295")
STEPS = Range(lambda value: 0 < value < 1 or _whole(value), "must be a number of steps, or below 1 a share of them")

RANGES: dict[str, Range] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "max_tokens_per_batch"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "save_total_limit"), COUNT),
    **dict.fromkeys(("dataset_num_proc", "dataloader_prefetch_factor", "ddp_timeout", "ddp_bucket_cap_mb"), COUNT),
    **dict.fromkeys(("torch_empty_cache_steps", "pad_to_multiple_of", "lora_r", "lora_alpha"), COUNT),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_epsilon", "eval_delay", "neftune_noise_alpha"), NOT_NEGATIVE
    ),
    **dict.fromkeys(("router_aux_loss_coef", "dataloader_num_workers"), NOT_NEGATIVE),
    **dict.fromkeys(("chosen_key_weight", "chosen_context_weight", "rejected_key_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("preference_weight", "beta"), NOT_NEGATIVE),
    **dict.fromkeys(("preference_beta", "displacement_warning"), POSITIVE),
    "dpop_lambda": NOT_NEGATIVE,
    "preference_margin": Range(math.isfinite, "must be a finite number"),
    **dict.fromkeys(("max_key_fraction", "max_fork_confidence", "hardest_forks", "lr_decay_per_epoch"), SHARE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout", "label_smoothing"), BELOW_1),
    "max_grad_norm": Range(lambda value: value >= 0, "must be 0 (no clipping) or more"),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), STEPS),
    "warmup_steps": Range(lambda value: value == 0 or STEPS.holds(value), "must be 0 or more; below 1 it is a share"),
    "max_steps": Range(
        lambda value: value == -1 or value >= 1, "must be at least 1, or -1 where `num_train_epochs` decides"
    ),
    "max_length": Range(lambda value: value >= 2, "must be at least 2 (a prompt and a completion)"),
}


def _whole(value: float) -> bool:
    return 1 <= value < math.inf and value == int(value)


def option_problems(cls: Any, values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the options of a class.

    Args:
        cls: `DualCoTConfig`, the options of another trainer, or `ModelConfig`.
        values: The options by name; those that are missing have their default.
    """
    values = {**{field.name: _default(field) for field in fields(cls)}, **values}
    return [
        *_word_problems(cls, values),
        *_range_problems(values),
        *_mapping_problems(values),
        *_refusals(cls, values),
        *_combination_problems(values),
    ]


# Words


@functools.cache
def choices_of(cls: Any) -> dict[str, tuple[Any, ...]]:
    """Return the words of every option that has a list of them: in its type, its metadata or `CHOICES`."""
    choices = dict(CHOICES) | {"torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend)}
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        words = tuple(field.metadata.get("choices") or ()) or tuple(_words_of(hints[field.name]))
        if words:
            choices[field.name] = words
    return choices


def _words_of(hint: Any) -> Iterator[Any]:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for member in members:
        if typing.get_origin(member) is Literal:
            words = typing.get_args(member)
            # A type such as `str | Literal[False]` leaves the words open.
            yield from () if str in members else words
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            yield from (item.value for item in member)


def _word_problems(cls: type, values: Mapping[str, Any]) -> Iterator[str]:
    for name, words in choices_of(cls).items():
        value = values.get(name)
        several = value.split() if name == "debug" and isinstance(value, str) else value
        for item in several if isinstance(several, list | tuple) else [several]:
            word = getattr(item, "value", item)
            if word is None or word in words:
                continue
            close = difflib.get_close_matches(str(word), map(str, words), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"`{name}: {show(word)}`: expected one of {', '.join(map(str, words))}{hint}"


# Numbers


def _range_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name, (holds, rule) in RANGES.items():
        value = values.get(name)
        if name == "pad_to_multiple_of" and isinstance(value, str):  # the words that TRL knows
            value = int(value) if value.isdigit() else None if value in ("auto", "none", "null") else value
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            yield f"`{name}` must be a number, got {show(value)}"
        elif not holds(value):
            missing = math.isnan(value) and "finite" not in rule
            yield f"`{name}` {'must be a number' if missing else rule}, got {value}"
    epochs, steps = values.get("num_train_epochs"), values.get("max_steps")
    # A number of steps decides by itself.
    if isinstance(epochs, int | float) and not (0 < epochs < math.inf or (epochs <= 0 and (steps or -1) >= 1)):
        yield f"`num_train_epochs` must be a finite number above 0, or no step is trained, got {epochs}"


# Mappings


def as_mapping(value: Any) -> Any:
    """Return an option's mapping, also where it is given as JSON; any other value unchanged."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _mapping_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name in MAPPINGS:
        value = as_mapping(values.get(name))
        if value is not None and not isinstance(value, Mapping):
            yield f"`{name}` must be a mapping, got {show(value)}; write `{name}: {{key: value}}`"
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        keys = as_mapping(values.get(name))
        if isinstance(keys, Mapping):
            unknown = [key for key in keys if key not in (*CHECKPOINTING_KEYS, "context_fn")]
            for key in unknown:
                yield f"`{name}` has no key {show(key)}; it has {', '.join(CHECKPOINTING_KEYS)}"
    loading = as_mapping(values.get("model_init_kwargs"))
    dtype = loading.get("dtype") if isinstance(loading, Mapping) else None
    if isinstance(dtype, str) and dtype not in ("auto", "bfloat16", "float16", "float32"):
        yield f"`model_init_kwargs: {{dtype: {dtype}}}`: expected one of auto, bfloat16, float16, float32"
    accelerator = as_mapping(values.get("accelerator_config"))
    if accelerator is not None and not isinstance(accelerator, str):
        keys = accelerator if isinstance(accelerator, Mapping) else accelerator.to_dict()
        yield from _accelerator_problems({**keys, **(keys.get("gradient_accumulation_kwargs") or {})})


def _accelerator_problems(keys: Mapping[str, Any]) -> Iterator[str]:
    known = (
        *ACCELERATOR_OPTIONS,
        "non_blocking",
        "gradient_accumulation_kwargs",
        "sync_each_batch",
        "adjust_scheduler",
    )
    for key, value in keys.items():
        if key not in known:
            yield f"`accelerator_config` has no key {show(key)}; it has {', '.join(known)}"
        elif key in ACCELERATOR_OPTIONS and value != ACCELERATOR_OPTIONS[key][0]:
            yield f"`accelerator_config: {{{key}: {value}}}` is not used here: {ACCELERATOR_OPTIONS[key][1]}. Remove it"


# Refusals


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _refusals(cls: Any, values: Mapping[str, Any]) -> Iterator[str]:
    ours = any(field.name == "key_step_method" for field in fields(cls))
    for field in fields(cls):
        refusal = REFUSED.get(field.name)
        if refusal is None or not (ours or field.name in OF_EVERY_RUN):
            continue
        value = values[field.name]
        plain = getattr(value, "value", value)
        if plain == _default(field) or plain in refusal.allowed:
            continue
        pushes = field.name == "hub_strategy" and "checkpoint" in str(plain)
        yield f"`{field.name}: {plain}` {PUSHES_CHECKPOINTS if pushes else refusal.reason}"


# Combinations of options of a trainer


def _combination_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if "output_dir" not in values:
        return
    yield from _loader_problems(values)
    on_cpu = values["use_cpu"] or not torch.accelerator.is_available()
    for name in ("fp16", "activation_offloading"):
        if values.get(name) and on_cpu:
            yield f"`{name}: true` has no effect on a CPU; remove it, or train on a GPU"
    if values["liger_kernel_config"] and not values["use_liger_kernel"]:
        yield "`liger_kernel_config` needs `use_liger_kernel: true`"
    files = {name: as_mapping(values[name]) for name in ("deepspeed", "accelerator_config", "fsdp_config")}
    missing = [name for name, file in files.items() if isinstance(file, str) and not Path(file).is_file()]
    yield from (f"`{name}: {files[name]}`: there is no such file" for name in missing)
    if values["deepspeed"] and "deepspeed" not in missing and not is_deepspeed_available():
        yield "`deepspeed` needs deepspeed, which is not installed here; `pip install deepspeed`, or remove it"
    optimizer = _word(values["optim"])
    if values["optim_target_modules"] and not any(name in optimizer for name in ("galore", "apollo")):
        yield f"`optim_target_modules` is for the optimizers galore and apollo, not for `optim: {optimizer}`; remove it"
    schedule = _word(values["lr_scheduler_type"])
    if values["warmup_steps"] and schedule in ("constant", "reduce_lr_on_plateau", "greedy"):
        yield (
            f"`lr_scheduler_type: {schedule}` has no warm-up, so `warmup_steps: {values['warmup_steps']}` would do "
            "nothing; write `constant_with_warmup`, or remove it"
        )
    if _word(values["save_strategy"]) == "best" and not values["metric_for_best_model"]:
        yield "`save_strategy: best` needs `metric_for_best_model`, such as `loss`"
    if _word(values["eval_strategy"]) == "no" and values["do_eval"]:
        yield "`do_eval: true` evaluates nothing with `eval_strategy: no`; set `steps` or `epoch`, or remove it"


def _loader_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if values["dataloader_num_workers"] == 0:
        for name in ("persistent_workers", "multiprocessing_context", "prefetch_factor"):
            if values[f"dataloader_{name}"]:
                yield f"`dataloader_{name}` needs processes that load; set `dataloader_num_workers`, or remove it"
    if values.get("max_tokens_per_batch") is not None:
        if values["dataloader_drop_last"]:
            yield "`dataloader_drop_last: true` has no effect with `max_tokens_per_batch`; remove one of them"
        if values["train_sampling_strategy"] not in ("random", "sequential"):
            yield (
                f"`train_sampling_strategy: {values['train_sampling_strategy']}` has no effect with "
                "`max_tokens_per_batch`, which fills batches by itself; remove one of them"
            )


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))


_OF_EVERY_SCHEDULE = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs")


def schedule_problems(training: TrainingArguments) -> Iterator[str]:
    """Make the schedule for a toy optimizer and take its first steps, to find options that it does not take."""
    kwargs: Any = training.lr_scheduler_kwargs or {}
    kind = SchedulerType(training.lr_scheduler_type)
    name, option = kind.value, f"`lr_scheduler_kwargs: {training.lr_scheduler_kwargs}`"
    if kwargs and name == "constant_with_warmup":
        yield f"{option}: `lr_scheduler_type: {name}` has no options; remove it"
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate or 1e-3)
    try:
        schedule = get_scheduler(name, optimizer, 2, 10**6, kwargs)
        for _ in range(6):
            optimizer.step()
            schedule.step(1.0) if name in ("reduce_lr_on_plateau", "greedy") else schedule.step()
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, KeyError) as error:
        make: Any = TYPE_TO_SCHEDULER_FUNCTION[kind]
        parameters = inspect.signature(make).parameters
        own = [key for key in parameters if key not in _OF_EVERY_SCHEDULE]
        takes = f"; it takes {', '.join(own)}" if own else "; it takes none"
        yield f"`lr_scheduler_type: {name}`{f' with {option}' if kwargs else ''}: {brief(error)}{takes}"
