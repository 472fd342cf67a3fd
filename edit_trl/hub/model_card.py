"""The model card: written after training, and rewritten with earlier stages and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from edit_trl.common.files import write_whole
from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.markdown import one_line
from edit_trl.hub.card_facts import LOGGED, CardFacts, Evaluation, StageFacts, read_facts, write_facts
from edit_trl.hub.card_templates import render_card
from edit_trl.hub.curves import curves_svg
from edit_trl.hub.licence import Licence, read_licence

CURVES_FILE = "training_curves.svg"
PACKAGES = ("edit_trl", "trl", "transformers", "peft", "torch", "datasets", "accelerate", "bitsandbytes")
TAGS = ("trl", "edit_trl", "dual-cot")


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages among `PACKAGES`, by name."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # bitsandbytes does not exist for every machine
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
        folder: The folder for both files.
        facts: The facts of the model.
        model_name: The name in the title; None for the name of the repository or, without `repo_id`, the folder.
        repo_id: The model's id on the Hub, for the code in the card that loads it.
        base_model: The base model's id on the Hub, if it was trained from a folder.
        tags: Tags for the Hub.
        evaluations: The evaluations to show.

    Returns:
        The licence that the card states.
    """
    base = base_model or facts.base_model
    licence = read_licence(base, facts.stages[0].revision if base == facts.base_model else None)
    picture = curves_svg([(stage.name, stage.logs) for stage in facts.stages])
    if picture:
        write_whole(folder / CURVES_FILE, picture)
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
    write_whole(folder / "README.md", card)
    return licence


def include_earlier_stages(folder: Path, previous: Path) -> None:
    """Rewrite the card of a stage with the stages before it, if the folder `previous` has their facts."""
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
) -> str:
    """Return the card of a trained model: the training, its data, scores, and code that loads the model.

    `repo_id` is the model's id or path in that code; `has_curves` says whether `training_curves.svg` exists.
    """
    metadata = _metadata(facts, model_name, base_model, licence, tags, evaluations)
    values = {
        "model_name": model_name,
        "form": facts.form,
        "base_model": base_model,
        "repo_id": repo_id,
        "licence": licence,
        "stages": facts.stages,
        "rows": [(stage, name, report) for stage in facts.stages for name, report in stage.rows.items()],
        "score_tables": _score_tables(evaluations),
        "has_curves": has_curves,
    }
    return render_card("model_card.md", metadata, values | _training_values(facts.stages))


def _training_values(stages: Sequence[StageFacts]) -> dict[str, Any]:
    """Return the values for the tables of options, last logs and versions."""
    logs = [next((log for log in reversed(s.logs) if "logps/chosen" in log), {}) for s in stages]
    options = {kind: [getattr(stage, kind) or {} for stage in stages] for kind in ("objective", "training", "adapter")}
    versions = stages[-1].versions
    return {
        "option_names": {kind: list(dict.fromkeys(chain.from_iterable(v))) for kind, v in options.items()},
        "last_logs": logs,
        "logged": [name for name in LOGGED if any(name in log for log in logs)],
        # The template shows these names as they are.
        "versions": {package: versions[package] for package in PACKAGES if package in versions},
    }


def _score_tables(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return a table of scores per kind of evaluation, this model first; `by_task` is the run shown by task."""
    tables = []
    for kind in dict.fromkeys(evaluation.kind for evaluation in evaluations):
        runs = [evaluation for evaluation in evaluations if evaluation.kind == kind]
        runs.sort(key=lambda run: not run.of_this_model)
        scores = dict.fromkeys(name for run in runs for name, value in run.scores.items() if value is not None)
        own = next((run for run in runs if run.of_this_model), None)
        tables.append(
            {
                "kind": kind,
                "runs": runs,
                "scores": sorted(scores, key=lambda name: name != runs[0].main),
                "by_task": own if own is not None and len(own.tasks) > 1 else None,
            }
        )
    return tables


def _metadata(
    facts: CardFacts,
    model_name: str,
    base_model: str,
    licence: Licence,
    tags: Sequence[str],
    evaluations: Sequence[Evaluation],
) -> ModelCardData:
    datasets = list(dict.fromkeys(name for stage in facts.stages for name in stage.datasets if is_hub_id(name)))
    extra: dict[str, Any] = {}
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
        eval_results=_eval_results(evaluations) or None,
        **extra,
    )


def _eval_results(evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """Return the scores of this model for the Hub's model-index, with intervals as arguments of the metric."""
    scores = (
        (run, name, value)
        for run in evaluations
        if run.of_this_model
        for name, value in run.scores.items()
        if value is not None
    )
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"edit_trl-{run.kind}",
            dataset_name=one_line(", ".join(run.tasks) or run.kind),
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 6),
            metric_args={"items": run.items}
            | ({"confidence_interval_95": [round(x, 6) for x in run.intervals[name]]} if name in run.intervals else {}),
        )
        for run, name, value in scores
    ]
