"""Scores of the reference: the student before training.

One pass over the data gives, for each pair, the reference scores of the preference term and the student's
probability of the right token at the fork. It needs no second model: the pass runs on the student itself
before training. With `reference: adapter_off` there is no pass; each batch is scored with the adapter
switched off.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from edit_trl.common.errors import InputError
from edit_trl.common.progress import Progress
from edit_trl.models.pairs.scoring import PairLogps
from edit_trl.training.objective import Objective

if TYPE_CHECKING:
    from edit_trl.training.config import Reference


def reference_scores(
    reference: "Reference",
    model: nn.Module,
    batch: dict[str, Tensor],
    score: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor] | None:
    """Return the reference's scores of a batch, s⁺ and s⁻ of shape (B,); None without a reference.

    Args:
        reference: The reference of the run.
        model: The student, unwrapped.
        batch: As `edit_trl.models.pairs.collation` describes it.
        score: Scores a batch with the student as it stands.

    Raises:
        InputError: `precomputed`, and the batch comes from a dataset that was not scored before training.
    """
    if reference == "none":
        return None
    if reference == "adapter_off":
        with torch.no_grad(), adapter_off(model):
            return score(batch)
    if "reference_chosen_score" not in batch:
        raise InputError(
            "`reference: precomputed` scores the datasets that the trainer is made with, before "
            "training; this one came later. Pass it as `eval_dataset` to the trainer"
        )
    return batch["reference_chosen_score"], batch["reference_rejected_score"]


# Initial values of a LoRA adapter under which the weights of the model stay what they are. PiSSA, OLoRA, CorDA, LoftQ
# and LoRA-GA take the adapter's first product out of the weights. Read in PEFT 0.21, `LoraLayer.update_layer`.
_WEIGHTS_STAY = (True, False, "gaussian", "eva", "orthogonal", "mica")


def reference_problems(model: Any, peft_config: PeftConfig | None) -> Iterator[str]:
    """Check that the model with its adapter switched off is the reference (`adapter_off`).

    Args:
        model: The model, or its name.
        peft_config: The configuration of a new adapter.
    """
    adapted = isinstance(model, nn.Module) and is_peft_model(model)
    if peft_config is None and not adapted:
        yield (
            "`reference: adapter_off` needs an adapter to switch off: train with LoRA (`use_peft: "
            "true`, or a `peft_config`), or use `reference: precomputed`"
        )
        return
    active = model.active_adapters if adapted else ["default"]
    way_out = "use `reference: precomputed`"
    if len(active) > 1:
        yield f"`reference: adapter_off` would switch off all active adapters ({', '.join(active)}); {way_out}"
    for config in [model.peft_config[name] for name in active] if adapted else [peft_config]:
        initial, bias = getattr(config, "init_lora_weights", True), getattr(config, "bias", "none")
        if initial not in _WEIGHTS_STAY:
            yield (
                f"`init_lora_weights: {initial}` changes the weights below the adapter, so that the model without its "
                f"adapter (`reference: adapter_off`) is not the model before training; {way_out}"
            )
        if bias != "none":
            yield (
                f"`bias: {bias}` trains the model's own biases, which stay when the adapter is switched off "
                f"(`reference: adapter_off`); set `bias: none`, or {way_out}"
            )
            return
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad] if adapted else []
    marks = (*(f".{adapter}" for adapter in active), "adaption_")  # the latter: LLaMA-Adapter
    own = [name for name in trained if not any(mark in name for mark in marks)]
    if own:
        yield (
            f"{len(own)} of the model's own weights are trained ({own[0]}, ...), which stay when the adapter is "
            f"switched off (`reference: adapter_off`); freeze them, or {way_out}"
        )


_NOT_SCORED = ("_name_or_path", "transformers_version", "use_cache", "architectures")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Run the model without its PEFT adapter and in eval mode: a reference has no dropout."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(training)


def weights_hash(model: Any) -> str:
    """Return a hash of all weights and of the configuration, so that cached scores are never those of another model."""
    hasher = Hasher()
    # Scales, windows and rotary embeddings are no weights. What is left out changes no score.
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_SCORED}
    hasher.update(json.dumps(config, sort_keys=True, default=str))
    for name, parameter in sorted(model.named_parameters()):
        hasher.update(name)
        hasher.update(parameter.detach().flatten().view(torch.uint8).cpu().numpy())
    return hasher.hexdigest()


def pair_scores(logps: PairLogps, objective: Objective, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the columns that `add_scores` adds for a training run, each of shape (B,).

    `reference_chosen_score` and `reference_rejected_score` are s⁺ and s⁻ of the preference term;
    `fork_confidence` is the probability of the right token at the fork.
    """
    chosen, rejected = objective.scores(logps, batch)
    fork = logps.chosen.gather(1, batch["fork"].unsqueeze(1)).squeeze(1).exp()
    return {"reference_chosen_score": chosen, "reference_rejected_score": rejected, "fork_confidence": fork}


@torch.no_grad()
def add_scores(
    dataset: Dataset,
    score_batch: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    model: nn.Module,
    accelerator: Accelerator,
    collator: Callable,
    batch_size: int,
    settings: str,
    name: str = "train",
) -> Dataset:
    """Add a column per score to a prepared dataset, computed once and cached beside it.

    Args:
        dataset: A prepared dataset.
        score_batch: Returns the named scores of a batch, each of shape (B,); see `pair_scores`.
        model: The student, put in eval mode for the pass.
        accelerator: The accelerator, whose processes share the batches.
        collator: Makes a batch of examples.
        batch_size: Pairs per forward pass.
        settings: Options that the scores depend on; part of the cache key.
        name: The dataset's name in the display of the progress.

    Returns:
        The dataset with the columns added, rows in the same order.
    """
    key = Hasher.hash((dataset._fingerprint, weights_hash(model), settings))
    cache_file = dataset._get_cache_file_path(f"scores-{key}") if dataset.cache_files else None
    if cache_file and os.path.exists(cache_file):
        return concatenate_datasets([dataset, Dataset.from_file(cache_file)], axis=1)
    loader = accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=collator))
    training = model.training
    model.eval()
    try:
        scores: dict[str, list[Tensor]] = {}
        with Progress(hidden=not accelerator.is_main_process) as progress:
            progress.begin(f"scoring {name} pairs", len(loader), unit="batches")
            for number, batch in enumerate(loader, 1):
                for column, values in accelerator.gather_for_metrics(score_batch(batch)).items():
                    scores.setdefault(column, []).append(values.float().cpu())
                progress.update(number)
    finally:
        model.train(training)
    columns = Dataset.from_dict({c: torch.cat(v).tolist() for c, v in scores.items()})
    if cache_file and accelerator.is_main_process:
        columns.map(cache_file_name=cache_file, desc="Caching the scores")
    accelerator.wait_for_everyone()
    return concatenate_datasets([dataset, columns], axis=1)
