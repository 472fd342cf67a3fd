"""The model card (L3): written by the trainer, and again when more is known."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.markdown import code, one_line, text
from edit_trl.hub.card_facts import CardFacts, read_facts, write_facts
from edit_trl.hub.card_sections import (
    EDIT_CITATION,
    TRL_CITATION,
    Evaluation,
    all_versions,
    data_section,
    eval_results,
    evaluation_section,
    examples_section,
    final_metrics,
    linked,
    objective_section,
    options_table,
    usage,
)
from edit_trl.hub.curves import curves_svg
from edit_trl.hub.licence import Licence, read_licence

CURVES_FILE = "training_curves.svg"
PACKAGES = ("edit_trl", "trl", "transformers", "peft", "torch", "datasets", "accelerate", "bitsandbytes")
TAGS = ("trl", "edit_trl", "dual-cot")


def package_versions() -> dict[str, str]:
    """The packages that training goes through."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # bitsandbytes, where there is none for the machine
            continue
    return versions


def write_card(
    folder: Path,
    facts: CardFacts,
    *,
    model_name: str | None = None,
    repo_id: str | None = None,
    base_model: str | None = None,
    tags: Sequence[str] = TAGS,
    evaluations: Sequence[Evaluation] = (),
) -> Licence:
    """Write `README.md` and `training_curves.svg` into a model's folder.

    Args:
        folder: The folder.
        facts: What is known of the model.
        model_name: The name in the title; the repository's, or the folder's, where None.
        repo_id: Where it goes on the Hub, for the code that loads it.
        base_model: The base model's id on the Hub, where it was trained from a folder.
        tags: The Hub's tags.
        evaluations: What was measured.

    Returns:
        The licence that the card states.
    """
    base = base_model or facts.base_model
    licence = read_licence(base, facts.stages[0].revision if base == facts.base_model else None)
    picture = curves_svg([(stage.name, stage.logs) for stage in facts.stages])
    if picture:
        (folder / CURVES_FILE).write_text(picture, encoding="utf-8")
    name = model_name or (repo_id or folder.resolve().name).split("/")[-1]
    card = dual_cot_model_card(
        facts,
        model_name=name,
        repo_id=repo_id or "PATH_OR_ID_OF_THIS_MODEL",
        base_model=base,
        licence=licence,
        tags=tags,
        evaluations=evaluations,
        has_curves=picture is not None,
    )
    card.save(folder / "README.md")
    return licence


def include_earlier_stages(folder: Path, previous: Path) -> None:
    """Write the card of a stage anew, with the stages before it, where their folder tells of them."""
    facts, earlier = read_facts(folder), read_facts(previous)
    if facts is not None and earlier is not None and len(facts.stages) == 1:
        facts = facts.after(earlier)
        write_facts(folder, facts)
        write_card(folder, facts)


def dual_cot_model_card(
    facts: CardFacts,
    *,
    model_name: str,
    repo_id: str,
    base_model: str,
    licence: Licence,
    tags: Sequence[str] = TAGS,
    evaluations: Sequence[Evaluation] = (),
    has_curves: bool = False,
) -> ModelCard:
    """The card of a trained model: what was trained on what, with which objective, how well, how to load it.

    Args:
        facts: What is known of the model.
        model_name: The name in the title.
        repo_id: What the code that loads it calls it.
        base_model: Id or path of the model the first stage started from.
        licence: The base model's.
        tags: The Hub's tags.
        evaluations: What was measured.
        has_curves: Whether there is a picture of the curves beside it.

    Returns:
        A card with metadata that the Hub accepts.
    """
    data = _metadata(facts, model_name, base_model, licence, tags, evaluations)
    sections = [
        f"# {text(model_name)}",
        _summary(facts, base_model),
        text(licence.why),
        ("Use", usage(facts.form, repo_id, base_model, facts.stages[-1].conversational)),
        ("Evaluation", evaluation_section(evaluations)),
        ("Data", data_section(facts.stages)),
        ("Examples", _examples(facts)),
        ("Objective", objective_section(facts.stages)),
        ("Training", _training(facts, has_curves)),
        ("Versions", all_versions(facts)),
        ("Citation", f"```bibtex\n{EDIT_CITATION}\n```\n\n```bibtex\n{TRL_CITATION}\n```"),
    ]
    parts = [s if isinstance(s, str) else f"## {s[0]}\n\n{s[1]}" for s in sections if s and s[-1]]
    body = "\n\n".join(parts)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _metadata(
    facts: CardFacts,
    model_name: str,
    base_model: str,
    licence: Licence,
    tags: Sequence[str],
    evaluations: Sequence[Evaluation],
) -> ModelCardData:
    datasets = list(dict.fromkeys(s.dataset for s in facts.stages if is_hub_id(s.dataset)))
    extra = {}
    if is_hub_id(base_model):
        extra["base_model_relation"] = "adapter" if facts.form == "adapter" else "finetune"
    return ModelCardData(
        base_model=base_model if is_hub_id(base_model) else None,
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="peft" if facts.form == "adapter" else "transformers",
        model_name=one_line(model_name),
        datasets=datasets or None,
        tags=sorted(map(one_line, tags)),
        pipeline_tag="text-generation",
        eval_results=eval_results(evaluations) or None,
        **extra,
    )


def _summary(facts: CardFacts, base_model: str) -> str:
    what = {
        "adapter": "An adapter for",
        "model": "A fine-tuned version of",
        "merged": "An adapter, merged into the weights, of",
    }[facts.form]
    stages = " and then ".join(code(stage.name) for stage in facts.stages)
    return (
        f"{what} {linked(base_model)}, trained on dual chains of thought (a correct one and a similar wrong "
        "one of the same question) with [EDIT](https://arxiv.org/abs/2405.19737) through edit_trl and "
        f"[TRL](https://github.com/huggingface/trl): {stages}."
    )


def _examples(facts: CardFacts) -> str:
    examples = facts.stages[-1].examples
    if not examples:
        return ""
    method = facts.stages[-1].objective.get("key_step_method")
    return f"Pairs it was trained on; the key steps (`{method}`) in bold.\n\n{examples_section(examples)}"


def _training(facts: CardFacts, has_curves: bool) -> str:
    parts = []
    if has_curves:
        parts.append(f"![Training curves: loss and key accuracy by step]({CURVES_FILE})")
    parts.append(options_table(facts.stages, "training"))
    if any(stage.adapter for stage in facts.stages):
        parts += ["The adapter:", options_table(facts.stages, "adapter")]
    held = facts.stages[-1].quantization
    if held:
        parts.append(f"While training, the base model was held in {text(held)}.")
    if facts.stages[-1].processes > 1:
        parts.append(f"{facts.stages[-1].processes} processes trained together; batch sizes are of each.")
    parts.append(final_metrics(facts.stages))
    return "\n\n".join(part for part in parts if part)
