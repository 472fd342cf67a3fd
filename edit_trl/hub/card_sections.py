"""The sections of a card (L2): facts -> Markdown. Text of the data is shown, never read as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.markdown import code, marked_block, one_line, table, text
from edit_trl.hub.card_facts import LOGGED, CardFacts, Example, Form, StageFacts

EDIT_CITATION = """\
@inproceedings{dai2025capture,
    title        = {Capture the Key in Reasoning to Enhance CoT Distillation Generalization},
    author       = {Dai, Chengwei and Li, Kun and Zhou, Wei and Hu, Songlin},
    year         = 2025,
    booktitle    = {Annual Meeting of the Association for Computational Linguistics},
    eprint       = {2405.19737},
}"""

TRL_CITATION = """\
@software{vonwerra2020trl,
    title        = {{TRL: Transformers Reinforcement Learning}},
    author       = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
    license      = {Apache-2.0},
    url          = {https://github.com/huggingface/trl},
    year         = {2020},
}"""  # noqa: E501 (as TRL gives it)


@dataclass(frozen=True)
class Evaluation:
    """A finished run of `edit-trl evaluate` or `suite`.

    Attributes:
        name: What was measured, as tables call it.
        kind: `evaluate` or `suite`.
        of_this_model: Whether it was the model of the card, not one to compare with.
        items: How many.
        scores: By name.
        intervals: The 95% confidence interval of some.
        main: The score that is shown first.
        tasks: By task: scores, and `items`.
    """

    name: str
    kind: str
    of_this_model: bool
    items: int
    scores: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float]]
    main: str
    tasks: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def shown_name(name: str) -> str:
    """A model or dataset as a card names it: an id as it is, of a path its last part."""
    return name if is_hub_id(name) else Path(name).name


def linked(name: str, kind: str = "") -> str:
    """The same as a link to the Hub, where it is an id with a namespace."""
    if not name:
        return "a model made in memory"
    shown = code(shown_name(name))
    return f"[{shown}](https://huggingface.co/{kind}{name})" if is_hub_id(name) and "/" in name else shown


# How to load it


def usage(form: Form, repo_id: str, base_model: str, conversational: bool) -> str:
    """Code that loads the model and asks it something; merged, and in 4 bits."""
    first, loader = _loader(form)
    question = "Tom has 3 apples and eats one. How many are left?"
    inputs = f'inputs = tokenizer("{question}\\n", return_tensors="pt")'
    if conversational:
        inputs = f"""messages = [{{"role": "user", "content": "{question}"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
    plain = f"""```python
{first}

model = {loader}.from_pretrained("{repo_id}")
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
{inputs}
output = model.generate(**inputs.to(model.device), max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
    parts = [plain, *(_adapter_usage(repo_id, base_model) if form == "adapter" else ())]
    return "\n\n".join([*parts, _usage_in_4_bits(form, repo_id)])


def _loader(form: Form) -> tuple[str, str]:
    if form == "adapter":
        name = "AutoPeftModelForCausalLM"
        return f"from peft import {name}\nfrom transformers import AutoTokenizer", name
    return "from transformers import AutoModelForCausalLM, AutoTokenizer", "AutoModelForCausalLM"


def _adapter_usage(repo_id: str, base_model: str) -> list[str]:
    parts = []
    if not is_hub_id(base_model):
        parts.append(
            f"The adapter's base model ({linked(base_model)}) was not on the Hub when it was trained: name "
            "yours as `base_model_name_or_path` in `adapter_config.json`."
        )
    parts.append(
        f"""Merged into the weights, as vLLM and GGUF converters want it:

```python
merged = model.merge_and_unload()
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")
```

or `edit-trl merge {repo_id} --output merged`, which also checks that both answer alike."""
    )
    return parts


def _usage_in_4_bits(form: Form, repo_id: str) -> str:
    first, loader = _loader(form)
    imports = first.splitlines()[0].replace(", AutoTokenizer", ", BitsAndBytesConfig")
    imports += "\nfrom transformers import BitsAndBytesConfig" if form == "adapter" else ""
    return f"""In 4 bits, with `bitsandbytes`:

```python
import torch
{imports}

model = {loader}.from_pretrained(
    "{repo_id}",
    device_map="auto",
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
)
```"""


# What it was trained with


def data_section(stages: Sequence[StageFacts]) -> str:
    """Where each stage's pairs came from and what became of them."""
    rows = []
    for stage in stages:
        for name, report in stage.rows.items():
            source = linked(stage.dataset, "datasets/") if stage.dataset else "-"
            rows.append([code(stage.name), source, text(name), text(report)])
    if not rows:
        return "The data was prepared outside the trainer."
    return table(["stage", "dataset", "set", "pairs"], rows)


def objective_section(stages: Sequence[StageFacts]) -> str:
    """The loss in a sentence a stage, and its options."""
    sentences = [f"- {code(stage.name)}: {_loss(stage.objective)}" for stage in stages]
    formula = """\
    L = 1/Z⁺ Σ [α m⁺ + γ (1 - m⁺)] (-log p⁺)     the correct chain: key tokens, and its context
      + β/Z⁻ Σ m⁻ R(p⁻)                          the wrong chain's key tokens
      + λ C(s⁺, s⁻)                              a contrast between the two"""
    return "\n".join(["For each pair:", "", formula, "", *sentences, "", options_table(stages, "objective")])


def _loss(options: Mapping[str, Any]) -> str:
    key, context = options.get("chosen_key_weight", 0), options.get("chosen_context_weight", 0)
    if key == context:
        parts = [f"cross-entropy on the correct chain (α = γ = {key:g}), as in supervised fine-tuning"]
    else:
        parts = [f"cross-entropy on the correct chain, key tokens by α = {key:g}, others by γ = {context:g}"]
    if options.get("rejected_key_weight"):
        parts.append(
            f"β = {options['rejected_key_weight']:g} times the {options.get('rejected_penalty')} penalty on "
            f"the wrong chain's key tokens ({options.get('rejected_key_scope')})"
        )
    if options.get("preference_weight"):
        parts.append(
            f"λ = {options['preference_weight']:g} times a {options.get('preference_loss')} contrast of both "
            f"chains ({options.get('preference_scope')})"
        )
    return " + ".join(parts)


def options_table(stages: Sequence[StageFacts], kind: str) -> str:
    """The `objective`, `training` or `adapter` options of all stages, a column each."""
    of = [getattr(stage, kind) or {} for stage in stages]
    names = list(dict.fromkeys(name for options in of for name in options))
    rows = [
        [code(name), *(code(options[name]) if name in options else "-" for options in of)] for name in names
    ]
    return table(["option", *(code(stage.name) for stage in stages)], rows)


def final_metrics(stages: Sequence[StageFacts]) -> str:
    """What the last log of each stage says of the training pairs."""
    last = [next((entry for entry in reversed(s.logs) if "logps/chosen" in entry), {}) for s in stages]
    rows = [
        [code(name), *(f"{entry[name]:.4f}" if name in entry else "-" for entry in last)]
        for name in LOGGED
        if any(name in entry for entry in last)
    ]
    if not rows:
        return ""
    steps = [f"{code(s.name)}, step {entry.get('step', '-')}" for s, entry in zip(stages, last, strict=True)]
    return table(["last log", *steps], rows)


# What it can do


def evaluation_section(evaluations: Sequence[Evaluation]) -> str:
    """Tables of scores with their intervals, the model's own first."""
    if not evaluations:
        return "Not measured yet. `edit-trl push --evaluation RUN` adds runs of `evaluate` and `suite`."
    parts = []
    for kind in dict.fromkeys(e.kind for e in evaluations):
        of_kind = sorted((e for e in evaluations if e.kind == kind), key=lambda e: not e.of_this_model)
        names = list(
            dict.fromkeys(name for e in of_kind for name, value in e.scores.items() if value is not None)
        )
        names.sort(key=lambda name: name != of_kind[0].main)
        rows = [[_evaluated(e), str(e.items), *(_with_interval(e, name) for name in names)] for e in of_kind]
        parts.append(table([code(f"edit-trl {kind}"), "items", *map(code, names)], rows))
        own = next((e for e in of_kind if e.of_this_model), None)
        if own is not None and len(own.tasks) > 1:
            by_task = [
                [code(task), f"{scores.get('items', 0):.0f}", _number(scores.get(own.main))]
                for task, scores in own.tasks.items()
            ]
            parts.append(table(["task", "items", code(own.main)], by_task))
    parts.append("In brackets: 95% bootstrap confidence intervals over items.")
    return "\n\n".join(parts)


def _evaluated(evaluation: Evaluation) -> str:
    return f"**{text(evaluation.name)}**" if evaluation.of_this_model else text(evaluation.name)


def _with_interval(evaluation: Evaluation, name: str) -> str:
    shown = _number(evaluation.scores.get(name))
    interval = evaluation.intervals.get(name)
    return f"{shown} ({_number(interval[0])} to {_number(interval[1])})" if interval else shown


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def eval_results(evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """The scores of this model as the Hub's model-index has them; intervals are arguments of the metric."""
    results = []
    for evaluation in evaluations:
        if not evaluation.of_this_model:
            continue
        for name, value in evaluation.scores.items():
            if value is None:
                continue
            args: dict[str, Any] = {"items": evaluation.items}
            if name in evaluation.intervals:
                args["confidence_interval_95"] = [round(x, 6) for x in evaluation.intervals[name]]
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=f"edit_trl-{evaluation.kind}",
                    dataset_name=one_line(", ".join(evaluation.tasks) or evaluation.kind),
                    metric_type=name,
                    metric_name=name.replace("_", " "),
                    metric_value=round(value, 6),
                    metric_args=args,
                )
            )
    return results


def examples_section(examples: Sequence[Example]) -> str:
    """A few pairs, their key steps in bold."""
    parts = []
    for example in examples:
        parts += ["Question:", marked_block(example.prompt), "Correct chain:"]
        parts += [marked_block(example.chosen, example.chosen_spans), "Wrong chain:"]
        parts += [marked_block(example.rejected, example.rejected_spans), "---"]
    return "\n\n".join(parts[:-1])


def all_versions(facts: CardFacts) -> str:
    """The packages of the last stage."""
    return ", ".join(f"{name} {text(number)}" for name, number in facts.stages[-1].versions.items())
