"""Hard forks: pairs whose first divergence the student does not decide rightly yet."""

import math

import torch
from datasets import Dataset

from edit_trl.common.errors import InputError

HISTOGRAM_BINS = 10


def fork_histogram(confidences: list[float]) -> str:
    """How sure the student is at the forks, as one line of text: share of pairs per tenth."""
    counts = torch.histc(torch.tensor(confidences), HISTOGRAM_BINS, 0.0, 1.0).tolist()
    bars = (f"{i / HISTOGRAM_BINS:.1f}: {n / len(confidences):.0%}" for i, n in enumerate(counts))
    return "share of pairs by the student's probability of the right token at the fork, from " + (
        ", ".join(bars)
    )


def keep_hard_forks(dataset: Dataset, max_confidence: float) -> Dataset:
    """The pairs whose fork the student does not decide rightly with more than `max_confidence`.

    Args:
        dataset: A prepared dataset with the column `fork_confidence` (see `add_scores`).
        max_confidence: The most the student's probability of the right token may be.

    Raises:
        InputError: No pair is left.
    """
    confidences = dataset["fork_confidence"][:]
    kept = [index for index, confidence in enumerate(confidences) if confidence <= max_confidence]
    if not kept:
        raise InputError(
            f"max_fork_confidence={max_confidence} leaves no pair: the student decides every fork rightly "
            f"with at least {min(confidences):.3f}; raise it, or find harder pairs"
        )
    return dataset.select(kept)


def hardest_forks(dataset: Dataset, share: float) -> Dataset:
    """The share of the pairs whose fork the student finds hardest, in the order of the dataset.

    Args:
        dataset: A prepared dataset with the column `fork_confidence` (see `add_scores`).
        share: How many of the pairs to keep, above 0 and at most 1; rounded up. Of equal confidences the
            earlier pair stays.
    """
    confidences = dataset["fork_confidence"][:]
    order = sorted(range(len(confidences)), key=confidences.__getitem__)  # stable: ties stay in row order
    count = math.ceil(round(share * len(order), 6))  # 0.07 * 100 is a little more than 7
    return dataset.select(sorted(order[: max(count, 1)]))
