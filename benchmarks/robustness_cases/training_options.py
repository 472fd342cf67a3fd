"""Options of training that cannot be, that have no effect, or that YAML reads otherwise than they are meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustness_cases.case import Case, Outcome
from robustness_cases.material import recipe

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}
EPOCHS = {"max_steps": ...}
EVALUATION = {"eval_dataset_name": "rows.jsonl", "eval_strategy": "steps", "eval_steps": 1}

BESIDE = [*LORA.items(), *EPOCHS.items(), *EVALUATION.items(), ("load_in_4bit", True), ("torch_compile", True)]
"""Options that are right, and that those with a fault need beside them."""

# The value of an option, and what the message must name beside it.
OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    *(({"learning_rate": value}, "") for value in (-1, float("nan"), float("inf"), "fast", True, [1e-3])),
    *((EPOCHS | {"num_train_epochs": value}, "") for value in (-1, 0, float("nan"), "many")),
    *(({"max_steps": value}, "") for value in (0, 1.5, "3 steps", float("nan"))),
    *(({"warmup_steps": value}, "") for value in (-1, float("nan"))),
    *(({name: -1}, "") for name in ("weight_decay", "adam_epsilon", "logging_steps", "save_steps")),
    *(({name: 2}, "") for name in ("adam_beta1", "adam_beta2", "max_key_fraction", "lora_dropout", "hardest_forks")),
    *(({name: float("nan")}, "") for name in ("weight_decay", "max_grad_norm", "adam_epsilon", "preference_beta")),
    *(({name: float("nan")}, "") for name in ("chosen_key_weight", "rejected_key_weight", "preference_weight")),
    *(
        ({name: -1}, "")
        for name in ("chosen_key_weight", "rejected_key_weight", "preference_weight", "preference_beta")
    ),
    *(
        ({name: 0}, "")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "logging_steps")
    ),
    *(({name: 0}, "") for name in ("max_tokens_per_batch", "rows", "save_steps")),
    ({"per_device_train_batch_size": -2}, ""),
    ({"preference_margin": float("inf")}, ""),
    ({"displacement_warning": float("nan")}, ""),
    ({"neftune_noise_alpha": -1}, ""),
    ({"dataloader_num_workers": -1}, ""),
    ({"dataloader_prefetch_factor": 2}, ""),
    ({"seed": -1}, ""),
    ({"seed": 2**70}, ""),
    ({"data_seed": -1}, ""),
    (LORA | {"lora_r": 0}, ""),
    (LORA | {"lora_r": -4}, ""),
    (LORA | {"lora_r": 4.5}, ""),
    (LORA | {"lora_alpha": 0}, ""),
    (LORA | {"lora_dropout": -0.1}, ""),
    (LORA | {"lora_dropout": float("nan")}, ""),
    (LORA | {"lora_target_modules": ["nothing_proj"]}, "nothing_proj"),
    (LORA | {"lora_target_modules": [5]}, ""),
    (LORA | {"lora_modules_to_save": ["nothing"]}, "nothing"),
    (LORA | {"lora_target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    (EVALUATION | {"eval_steps": 0}, ""),
    (EVALUATION | {"eval_steps": -1}, ""),
    (EVALUATION | {"per_device_eval_batch_size": 0}, ""),
    (EVALUATION | {"load_best_model_at_end": True, "metric_for_best_model": "acuracy"}, "acuracy"),
    (EVALUATION | {"save_strategy": "epoch", "load_best_model_at_end": True}, "save_strategy|eval_strategy"),
]
WORDS: list[tuple[dict[str, Any], str]] = [
    ({"preference_loss": "Hinge"}, "hinge"),
    ({"preference_loss": "dpo"}, "sigmoid"),
    ({"normalization": "steps"}, "step"),
    ({"rejected_penalty": "likelyhood"}, "likelihood"),
    ({"preference_reduction": "means"}, "mean"),
    ({"preference_scope": "keysteps"}, "key_steps"),
    ({"rejected_key_scope": "every"}, "all"),
    ({"reference": "precompute"}, "precomputed"),
    ({"layout": "padding"}, "padded"),
    ({"key_step_method": "word"}, "words"),
    ({"trainer": "dop"}, "dpo"),
    ({"view": "pair"}, "pairs"),
    ({"lr_scheduler_type": "cosin"}, "cosine"),
    ({"optim": "adamw_torch_fusd"}, "adamw_torch_fused"),
    ({"save_strategy": "step"}, "steps"),
    ({"eval_strategy": "epochs"}, "epoch"),
    ({"logging_strategy": "never"}, "steps"),
    ({"attn_implementation": "egaer"}, "egaer"),
    ({"attn_implementation": "flash_attention_2"}, "flash"),
    ({"dtype": "float7"}, "float7"),
    ({"report_to": "wandbb"}, "wandbb"),
    ({"report_to": "wandb"}, "wandb"),
    ({"report_to": ["none", "comet_ml"]}, "comet_ml"),
    ({"use_liger_kernel": True}, "liger"),
    ({"optim": "galore_adamw"}, "galore"),
    ({"optim": "lomo"}, "lomo"),
    ({"optim": "grokadamw"}, "grokadamw"),
    ({"deepspeed": "none.json"}, r"none\.json|deepspeed"),
    ({"torch_compile": True, "torch_compile_backend": "nope"}, "nope"),
    ({"torch_compile_mode": "fastest"}, "fastest"),
    ({"hub_strategy": "sometimes"}, "sometimes"),
    ({"train_sampling_strategy": "randm"}, "random"),
    ({"load_in_8bit": True, "use_peft": False}, "load_in_8bit"),
    (LORA | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "nf4"),
    (LORA | {"load_in_4bit": True, "load_in_8bit": True}, "8.?bit"),
    (LORA | {"init_lora_weights": "pisa"}, "init_lora_weights|pisa"),
    ({"reference": "adapter_off"}, "use_peft"),
    ({"stages": [{"name": "a"}, {"name": "a"}]}, "'a'|`a`"),
    ({"stages": []}, "stages"),
    ({"stages": {"name": "a"}}, "stages"),
    ({"stages": [{"seed": 1}]}, "name"),
    ({"stages": [{"name": "a/b"}]}, "a/b"),
    ({"stages": [{"name": ".."}]}, r"\.\."),
    ({"stages": [{"name": "a", "learning_rte": 1}]}, "learning_rate"),
    ({"stages": [{"name": 5}]}, "name"),
    ({"stages": [{"name": "a", "stages": []}]}, "stages"),
    ({"stages": ["warm_up"]}, "stage"),
]
# What these name must not be installed, or they are right.
NEEDS_MISSING = {
    "wandb": ["wandb"],
    "comet_ml": ["comet_ml"],
    "liger": ["liger_kernel"],
    "galore": ["galore_torch"],
    "lomo": ["lomo_optim"],
    "grokadamw": ["grokadamw"],
    "flash": ["flash_attn"],
}
# What only the student's modules, or an evaluation, can tell.
TOLD_BY_THE_MODEL = ("nothing_proj", "nothing", "acuracy", "model_init_kwargs|nope")
# Values inside lists and mappings.
INNER: list[tuple[dict[str, Any], str]] = [
    (
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "low"}},
        "lr_scheduler_kwargs|min_lr",
    ),
    (
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_rl": 1e-6}},
        "lr_scheduler_kwargs|min_rl",
    ),
    ({"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs"),
    ({"lr_scheduler_kwargs": "fast"}, "lr_scheduler_kwargs"),
    ({"optim_args": "betas"}, "optim_args|betas"),
    ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrnt": False}}, "use_reentrnt"),
    ({"accelerator_config": {"split_batchs": True}}, "split_batchs"),
    ({"accelerator_config": "no.json"}, r"accelerator_config|no\.json"),
    ({"model_init_kwargs": {"nope": 1}}, "model_init_kwargs|nope"),
    ({"column_mapping": {"prompt": 5}}, "column_mapping"),
    ({"column_mapping": {"nothing": "prompt"}}, "nothing|column_mapping"),
    ({"column_mapping": ["prompt"]}, "column_mapping"),
    ({"dataset_name": ["rows.jsonl"]}, "dataset_name"),
    ({"dataset_name": {"a": "rows.jsonl"}}, "dataset_name"),
    ({"mistake": [5]}, "mistake|5"),
    ({"report_to": [5]}, "report_to"),
    ({"output_dir": "a\0b"}, "output_dir"),
    ({"output_dir": ""}, "output_dir"),
    ({"model_name_or_path": ["student"]}, "model_name_or_path"),
    ({"seed": [1]}, "seed"),
    ({"seed": {"a": 1}}, "seed"),
    ({"bf16": "yes please"}, "bf16"),
]
# Options that TRL and transformers have and that can have no effect here.
WITHOUT_EFFECT: list[dict[str, Any]] = [
    {"packing": True},
    {"eval_packing": True},
    {"padding_free": True},
    {"assistant_only_loss": True},
    {"completion_only_loss": False},
    {"dataset_text_field": "prompt"},
    {"label_smoothing_factor": 0.1},
    {"length_column_name": "n"},
    {"label_names": ["x"]},
    {"hub_always_push": True},
    {"hub_strategy": "every_save"},
    {"loss_type": "dft"},
    {"past_index": 1},
    {"predict_with_generate": True},
]


def cases() -> Iterator[Case]:
    for kind, table in (("training value", OUT_OF_RANGE), ("training choice", WORDS), ("inner value", INNER)):
        for number, (changes, said) in enumerate(table):
            if any(map(find_spec, NEEDS_MISSING.get(str(said), ()))):
                continue
            option, value = next(item for item in reversed(changes.items()) if item not in BESIDE)
            named = (rf"{option}\b|{said or option}", said or option)
            if str(said) in TOLD_BY_THE_MODEL:
                yield _case(kind, "train", f"{option}: {value!r}", changes, named, loads=True)
                continue
            yield _case(kind, "validate", f"{option}: {value!r}", changes, named)
            if number % 4 == 0:  # training checks as validate does: a sample of them
                yield _case(kind, "train", f"{option}: {value!r}", changes, named)
    for changes in WITHOUT_EFFECT:
        ((option, value),) = changes.items()
        yield _case("option without effect", "validate", f"{option}: {value!r}", changes, option)
    yield _case("training choice", "train", "fsdp: 'full_shard'", {"fsdp": "full_shard"}, "fsdp")
    yield from _right_values()
    yield from _adapters_of_stages()


def _case(kind: str, command: str, name: str, changes: dict[str, Any], said: Any, **more: Any) -> Case:
    return Case(kind, name, (command, "--config", "x.yaml"), said, files={"x.yaml": recipe("train", **changes)}, **more)


def _right_values() -> Iterator[Case]:
    """What YAML reads as text or as false is taken as it is meant."""
    text = recipe("train", lr_scheduler_type="cosine_with_min_lr")
    table = {
        "min_lr: 1e-4 inside lr_scheduler_kwargs": (text + "lr_scheduler_kwargs: {min_lr: 1e-4}\n", _last_rate(1e-4)),
        "learning_rate: 1e-4": (
            recipe("train", learning_rate=...) + "learning_rate: 1e-4\n",
            _option("learning_rate", 1e-4),
        ),
        "save_strategy: no": (recipe("train", save_strategy=...) + "save_strategy: no\n", _no_checkpoint),
        "eval_strategy: no": (recipe("train") + "eval_strategy: no\n", _option("max_steps", 3)),
        "a quoted number": (recipe("train", max_steps="2"), _option("max_steps", 2)),
        "a list of one": (recipe("train", lora_target_modules=["q_proj"], use_peft=True), _targets({"q_proj"})),
        "max_steps: 1_0": (recipe("train", max_steps=...) + "max_steps: 1_0\n", _option("max_steps", 10)),
    }
    for name, (written, check) in table.items():
        yield Case("right value", name, ("train", "--config", "x.yaml"), check=check, files={"x.yaml": written})


def _adapters_of_stages() -> Iterator[Case]:
    """A later stage that asks for another adapter than the stage before has saved: done, or refused with its value."""
    for option, value in (
        ("lora_r", 16),
        ("lora_alpha", 32),
        ("lora_dropout", 0.3),
        ("lora_target_modules", ["q_proj"]),
        ("use_dora", True),
        ("use_peft", False),
    ):
        stages = [{"name": "warm_up", "preference_weight": 0}, {"name": "key_steps", option: value}]
        text = recipe("train", **LORA, max_steps=1, stages=stages)
        words = ("train", "--config", "x.yaml")
        said = (option, "q_proj" if isinstance(value, list) else str(value))
        yield Case(
            "stage option",
            f"{option}: {value!r}",
            words,
            said,
            _stage(option, value),
            files={"x.yaml": text},
            loads=True,
        )


Check = Callable[[Path, Outcome], "str | None"]


def _read(*parts: str | Path) -> dict[str, Any]:
    return json.loads(Path(*parts).read_text(encoding="utf-8"))


def _option(name: str, value: Any) -> Check:
    def check(folder: Path, _outcome: Outcome) -> str | None:
        seen = _read(folder, "out", "run.json")["options"][name]
        return None if seen == value else f"{name} is {seen!r}, not {value!r}"

    return check


def _last_rate(lowest: float) -> Check:
    def check(folder: Path, _outcome: Outcome) -> str | None:
        rates = [
            entry["learning_rate"]
            for entry in _read(folder, "out", "trainer_state.json")["log_history"]
            if "learning_rate" in entry
        ]
        return None if rates and lowest < rates[-1] < rates[0] else f"the learning rates are {rates}"

    return check


def _no_checkpoint(folder: Path, _outcome: Outcome) -> str | None:
    found = [path.name for path in (folder / "out").glob("checkpoint-*")]
    return f"checkpoints were saved: {found}" if found else None


def _targets(names: set[str]) -> Check:
    def check(folder: Path, _outcome: Outcome) -> str | None:
        seen = _read(folder, "out", "adapter_config.json")["target_modules"]
        return None if set(seen) == names else f"the adapter is on {seen}"

    return check


def _stage(option: str, value: Any) -> Check:
    """The second stage's adapter is as its options ask for."""

    def check(folder: Path, _outcome: Outcome) -> str | None:
        file = folder / "out" / "key_steps" / "adapter_config.json"
        if option == "use_peft":
            return "an adapter was saved" if file.exists() else None
        names = {"lora_r": "r", "lora_target_modules": "target_modules"}
        seen = _read(file)[names.get(option, option)]
        seen = sorted(seen) if isinstance(seen, list) else seen
        return None if seen == value else f"the adapter has {option} {seen!r}, not {value!r}"

    return check
