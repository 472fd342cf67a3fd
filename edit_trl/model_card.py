"""The model card (L3)."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from edit_trl.config import DualCoTConfig
from edit_trl.tokenization import PreparationReport

CITATION = """\
@inproceedings{dai2025capture,
    title        = {Capture the Key in Reasoning to Enhance CoT Distillation Generalization},
    author       = {Dai, Chengwei and Li, Kun and Zhou, Wei and Hu, Songlin},
    year         = 2025,
    booktitle    = {Annual Meeting of the Association for Computational Linguistics},
    eprint       = {2405.19737},
}"""

PACKAGES = ("edit_trl", "trl", "transformers", "peft", "torch", "datasets")

OBJECTIVE_FIELDS = (
    "key_step_method",
    "chosen_key_weight",
    "chosen_context_weight",
    "rejected_key_weight",
    "rejected_key_scope",
    "rejected_penalty",
    "normalization",
    "preference_weight",
    "preference_loss",
    "preference_scope",
    "reference",
)
TRAINING_FIELDS = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "seed",
)
FINAL_METRICS = ("loss", "key_accuracy", "completion_accuracy", "logps/chosen", "drift/chosen")


def dual_cot_model_card(
    *,
    config: DualCoTConfig,
    base_model: str,
    adapter: bool,
    model_name: str,
    dataset_name: str | None,
    tags: Sequence[str],
    reports: Mapping[str, PreparationReport],
    log_history: Sequence[Mapping[str, Any]],
) -> ModelCard:
    """The card of a trained model: what was trained on what, with which objective, how to load it.

    Args:
        config: The run's configuration.
        base_model: Id or path of the model the run started from.
        adapter: Whether a PEFT adapter was trained.
        model_name: The name in the title.
        dataset_name: The dataset, where it has a name.
        tags: The Hub's tags.
        reports: What became of the rows of each dataset.
        log_history: The trainer's logs.

    Returns:
        A card with metadata that the Hub accepts.
    """
    data = ModelCardData(
        base_model=_hub_id(base_model),
        library_name="peft" if adapter else "transformers",
        model_name=model_name,
        datasets=[dataset_name] if _hub_id(dataset_name) else None,
        tags=list(tags),
        pipeline_tag="text-generation",
    )
    rows = "\n".join(f"- {name}: {report}" for name, report in reports.items())
    body = f"""# {model_name}

A student of `{base_model}` trained on dual chains of thought (a correct one and a similar wrong one of
the same question) with [EDIT](https://arxiv.org/abs/2405.19737) through edit_trl.

## Use

```python
{_usage(base_model, adapter)}
```

## Data

{rows or "- (prepared outside the trainer)"}

## Objective

{_table(config, OBJECTIVE_FIELDS)}

## Training

{_table(config, TRAINING_FIELDS)}

{_final_metrics(log_history)}

Versions: {", ".join(f"{package} {version(package)}" for package in PACKAGES)}.

## Citation

```bibtex
{CITATION}
```
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _hub_id(name: str | None) -> str | None:
    """The name, unless it is a local path: the Hub refuses those as ids."""
    return None if not name or Path(name).exists() else name


def _usage(base_model: str, adapter: bool) -> str:
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    package = "peft" if adapter else "transformers"
    return f"""from {package} import {loader}
from transformers import AutoTokenizer

model = {loader}.from_pretrained("PATH_OR_ID_OF_THIS_MODEL")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID_OF_THIS_MODEL")"""


def _table(config: DualCoTConfig, names: Sequence[str]) -> str:
    lines = [f"| `{name}` | {_plain(getattr(config, name))} |" for name in names]
    return "\n".join(["| option | value |", "|---|---|", *lines])


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def _final_metrics(log_history: Sequence[Mapping[str, Any]]) -> str:
    last = next((entry for entry in reversed(log_history) if "logps/chosen" in entry), None)
    if last is None:
        return ""
    lines = [f"| `{name}` | {last[name]:.4f} |" for name in FINAL_METRICS if name in last]
    return "\n".join([f"Last log, step {last['step']}:", "", "| metric | value |", "|---|---|", *lines])
