"""What the student thinks of the pairs before it is trained (L2).

One pass over the data gives, per pair, the reference scores of the preference term and the student's
probability of the right token at the fork. It needs no second model: the pass runs before training,
on the student itself, and `reference: adapter_off` scores with the adapter switched off instead.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Run the model without its PEFT adapter, and in eval mode: a reference has no dropout."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(training)


def weights_hash(model: nn.Module) -> str:
    """A hash of all weights, so that cached scores are never another model's."""
    hasher = Hasher()
    for name, parameter in sorted(model.named_parameters()):
        hasher.update(name)
        hasher.update(parameter.detach().flatten().view(torch.uint8).cpu().numpy())
    return hasher.hexdigest()


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
        score_batch: Batch -> named scores, each of shape (B,).
        model: The student, put in eval mode for the pass.
        accelerator: Spreads the batches over processes.
        collator: Examples -> batch.
        batch_size: Pairs a forward.
        settings: What else the scores depend on (scope, reduction); part of the cache key.
        name: The dataset's name in the progress bar.

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
        for batch in tqdm(loader, desc=f"Scoring {name} pairs", disable=not accelerator.is_main_process):
            for column, values in accelerator.gather_for_metrics(score_batch(batch)).items():
                scores.setdefault(column, []).append(values.float().cpu())
    finally:
        model.train(training)
    columns = Dataset.from_dict({c: torch.cat(v).tolist() for c, v in scores.items()})
    if cache_file and accelerator.is_main_process:
        columns.map(cache_file_name=cache_file, desc="Caching the scores")
    accelerator.wait_for_everyone()
    return concatenate_datasets([dataset, columns], axis=1)
