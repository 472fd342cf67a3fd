"""Metrics of a batch as sums and counts.

Each metric is a ratio of two sums, so that batches and processes of any size combine exactly. Nothing is read
from the device until the totals are read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edit_trl.losses import DualCoTLoss, masked_mean, masked_sum

Ratio = tuple[Tensor, Tensor]

CONFIDENT = 0.9
"""A fork whose right token has more than this probability counts as solved."""


@torch.no_grad()
def chosen_metrics(
    loss: DualCoTLoss, logps: Tensor, mask: Tensor, key_mask: Tensor, fork: Tensor, paired: Tensor
) -> dict[str, Ratio]:
    """Compute metrics of the objective and of the correct chains of B pairs.

    Args:
        loss: The objective's parts, each of shape (B,).
        logps: Log-probabilities of the correct chains' tokens. Shape (B, T).
        mask: Completion tokens. (B, T), bool.
        key_mask: Key tokens. (B, T), bool.
        fork: Index of the first completion token in which the chains differ. Shape (B,).
        paired: False for a correct chain alone, which has no fork. Shape (B,), bool.

    Returns:
        `loss/*` (the weighted parts, mean over pairs), `logps/*` (mean over tokens), `fork/confidence`
        (the student's probability of the right token at the fork) and `fork/solved` (share above 0.9).
    """
    pairs = torch.ones_like(loss.loss)
    fork_probability = logps.gather(1, fork.unsqueeze(1)).squeeze(1).exp()
    ratios = {
        "loss/chosen": (loss.chosen, pairs),
        "loss/rejected": (loss.rejected, pairs),
        "loss/preference": (loss.preference, pairs),
        "logps/chosen": _token_ratio(logps, mask),
        "logps/chosen_key": _token_ratio(logps, key_mask),
        "logps/chosen_context": _token_ratio(logps, mask & ~key_mask),
        "fork/confidence": (fork_probability * paired, paired),
        "fork/solved": ((fork_probability > CONFIDENT) & paired, paired),
    }
    return _sums(ratios)


@torch.no_grad()
def pair_metrics(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_key_mask: Tensor,
    rejected_key_mask: Tensor,
    paired: Tensor,
) -> dict[str, Ratio]:
    """Compute metrics that compare the two chains of B pairs.

    Args:
        chosen_logps: Log-probabilities of the correct chains' tokens. Shape (B, T⁺).
        rejected_logps: Log-probabilities of the wrong chains' tokens. Shape (B, T⁻).
        chosen_mask: Completion tokens of the correct chains. (B, T⁺), bool.
        rejected_mask: Completion tokens of the wrong chains. (B, T⁻), bool.
        chosen_key_mask: Key tokens of the correct chains. (B, T⁺), bool.
        rejected_key_mask: Key tokens of the wrong chains. (B, T⁻), bool.
        paired: False for a correct chain alone, which has nothing to be compared with. Shape (B,), bool.

    Returns:
        `logps/rejected_*` (mean over tokens); `key_accuracy`, the share of pairs whose correct key tokens are likelier
        per token than the wrong ones, and `margins/key`, over pairs with key tokens on both sides;
        `completion_accuracy` and `margins/completion`, the same over whole chains; `key_fraction`.
    """
    both = (chosen_key_mask.any(-1) & rejected_key_mask.any(-1)).to(chosen_logps.dtype)
    key = masked_mean(chosen_logps, chosen_key_mask) - masked_mean(rejected_logps, rejected_key_mask)
    completion = masked_mean(chosen_logps, chosen_mask) - masked_mean(rejected_logps, rejected_mask)
    rejected_context = rejected_mask & ~rejected_key_mask & paired.unsqueeze(1)
    ratios = {
        "logps/rejected_key": _token_ratio(rejected_logps, rejected_key_mask),
        "logps/rejected_context": _token_ratio(rejected_logps, rejected_context),
        "key_accuracy": ((key > 0) * both, both),
        "margins/key": (key * both, both),
        "completion_accuracy": ((completion > 0) & paired, paired),
        "margins/completion": (completion * paired, paired),
        "key_fraction": (
            chosen_key_mask.sum(-1) + rejected_key_mask.sum(-1),
            (chosen_mask.sum(-1) + rejected_mask.sum(-1)) * paired,
        ),
    }
    return _sums(ratios)


def _sums(ratios: dict[str, Ratio]) -> dict[str, Ratio]:
    return {name: (top.double().sum(), bottom.double().sum()) for name, (top, bottom) in ratios.items()}


def _token_ratio(logps: Tensor, mask: Tensor) -> Ratio:
    return masked_sum(logps, mask), mask


class MetricTotals:
    """Running sums of ratios, kept on the device until they are read."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, ratios: dict[str, Ratio]) -> None:
        """Add the ratios of a batch."""
        for name, ratio in ratios.items():
            pair = torch.stack(ratio)
            self._totals[name] = self._totals[name] + pair if name in self._totals else pair

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the ratios since the last reading, without metrics whose denominator is 0.

        Args:
            reduce: Sums a tensor of shape (metrics, 2) over processes, such as
                `lambda totals: accelerator.reduce(totals, "sum")`.
        """
        if not self._totals:
            return {}
        names = list(self._totals)
        totals = reduce(torch.stack([self._totals[name] for name in names])).tolist()
        self._totals.clear()
        return {n: top / bottom for n, (top, bottom) in zip(names, totals, strict=True) if bottom}

    def state(self) -> dict[str, list[float]]:
        """Return the sums of this process, to be kept in a checkpoint."""
        return {name: pair.tolist() for name, pair in self._totals.items()}

    def restore(self, state: dict[str, list[float]], device: torch.device) -> None:
        """Continue from what `state` returned."""
        self._totals = {name: torch.tensor(pair, dtype=torch.float64, device=device) for name, pair in state.items()}


class BatchLoss(NamedTuple):
    """The loss of a batch, on the device, and where it was computed."""

    loss: Tensor
    rows: Tensor
    step: int
    training: bool


def check_losses(batches: Sequence[BatchLoss], row_ids: Mapping[int, str | None]) -> None:
    """Check the losses of batches, in one reading from the device.

    Args:
        batches: The batches.
        row_ids: The ids of training rows, for the message.

    Raises:
        FloatingPointError: A loss is not finite; the message names the rows of its batch.
    """
    values = torch.stack([batch.loss for batch in batches]).float().tolist() if batches else []
    for batch, value in zip(batches, values, strict=True):
        if math.isfinite(value):
            continue
        ids = row_ids if batch.training else {}
        rows = ", ".join(f"{row} ({ids[row]})" if ids.get(row) else str(row) for row in batch.rows.tolist())
        raise FloatingPointError(
            f"the loss is {value} at step {batch.step}, rows {rows}. Lower `learning_rate` or "
            "`rejected_key_weight`, use `rejected_penalty: unlikelihood`, or look at these rows; with "
            "`logging_steps: 1` a run stops at once"
        )
