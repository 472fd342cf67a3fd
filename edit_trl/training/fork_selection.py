"""Selection of hard forks: pairs whose right token at the fork the student finds unlikely."""

import math

import torch
from datasets import Dataset
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.data.preparation import PreparationReport

logger = logging.get_logger(__name__)


def choose(dataset: Dataset, max_confidence: float | None, hardest: float | None, report: PreparationReport) -> Dataset:
    """Drop the pairs whose forks are too easy, and log a histogram of the forks.

    Args:
        dataset: A prepared dataset with the column `fork_confidence` (see `edit_trl.training.reference`).
        max_confidence: See `keep_hard_forks`; None keeps all pairs.
        hardest: The share for `hardest_forks`, of the pairs that `max_confidence` leaves; None keeps all.
        report: The report of the dataset, to which the dropped pairs are added.

    Raises:
        InputError: No pair is left.
    """
    logger.warning(fork_histogram(dataset["fork_confidence"][:]))
    hard = dataset
    if max_confidence is not None:
        hard = keep_hard_forks(dataset, max_confidence)
        report.dropped[f"fork confidence over {max_confidence}"] = len(dataset) - len(hard)
    if hardest is not None:
        before, hard = len(hard), hardest_forks(hard, hardest)
        report.dropped[f"not among the hardest {hardest:g} of the forks"] = before - len(hard)
    if hard is not dataset:
        report.kept = len(hard)
        logger.warning(f"train dataset: {report}")
    return hard


def fork_histogram(confidences: list[float]) -> str:
    """Return one line of text with the share of pairs per tenth of the student's confidence at the fork."""
    counts = torch.histc(torch.tensor(confidences), 10, 0.0, 1.0).tolist()
    bars = (f"{i / 10:.1f}: {n / len(confidences):.0%}" for i, n in enumerate(counts))
    return "share of pairs by the student's probability of the right token at the fork, from " + ", ".join(bars)


def keep_hard_forks(dataset: Dataset, max_confidence: float) -> Dataset:
    """Keep the pairs whose right token at the fork has at most this probability.

    Raises:
        InputError: No pair is left.
    """
    confidences = dataset["fork_confidence"][:]
    hard = [index for index, confidence in enumerate(confidences) if confidence <= max_confidence]
    if not hard:
        raise InputError(
            f"max_fork_confidence={max_confidence} leaves no pair: the student decides every fork rightly "
            f"with at least {min(confidences):.3f}; raise it, or find harder pairs"
        )
    return dataset.select(hard)


def hardest_forks(dataset: Dataset, share: float) -> Dataset:
    """Keep the share of the pairs whose fork the student finds hardest, in the order of the dataset.

    The number of pairs is rounded up. Of pairs with equal confidences the earlier one stays.
    """
    confidences = dataset["fork_confidence"][:]
    order = sorted(range(len(confidences)), key=confidences.__getitem__)  # stable: ties stay in row order
    count = math.ceil(round(share * len(order), 6))  # 0.07 * 100 is a little more than 7
    return dataset.select(sorted(order[: max(count, 1)]))
