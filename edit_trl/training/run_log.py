"""RunLog: the metrics, tokens and losses of a training run between two logs."""

from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import TrainerState, TrainingArguments
from transformers.utils import logging

from edit_trl.key_steps import SIDES
from edit_trl.losses import DualCoTLoss
from edit_trl.models.pairs.scoring import PairLogps
from edit_trl.training.metrics import BatchLoss, MetricTotals, check_losses, chosen_metrics, pair_metrics

logger = logging.get_logger(__name__)


def is_logged(args: TrainingArguments, state: TrainerState) -> bool:
    """Return whether the step that is running will be logged."""
    if args.logging_strategy != "steps" or (args.logging_first_step and state.global_step == 0):
        return True
    return (state.global_step + 1) % state.logging_steps == 0


class RunLog:
    """Metrics, tokens and losses of a run; they stay on the device until they are read.

    Args:
        displacement_warning: The fall of the correct chains' mean log-probability, in nats per token, above
            which a warning is logged; None for no warning.
    """

    def __init__(self, displacement_warning: float | None):
        self._displacement_warning = displacement_warning
        self._totals = {"train": MetricTotals(), "eval": MetricTotals()}
        self._losses: list[BatchLoss] = []
        self._tokens = 0

    def add(
        self,
        loss: Tensor,
        parts: DualCoTLoss,
        logps: PairLogps,
        batch: dict[str, Any],
        own: int | None,
        step: int,
        mode: str,
    ) -> None:
        """Add the metrics, tokens and loss of a batch.

        Args:
            loss: The loss of the batch, a scalar.
            parts: The objective's parts, each of shape (B,).
            logps: Log-probabilities of both chains, or of the correct ones alone.
            batch: As `edit_trl.models.pairs.collation` describes it.
            own: Number of pairs that count, the first ones; None for all.
            step: The optimizer step.
            mode: `train` or `eval`.
        """
        self._losses.append(BatchLoss(loss.detach(), batch["row"], step, mode == "train"))
        totals = self._totals[mode]
        # Also for a process with no pair of its own: all processes must add up the same metrics.
        parts = DualCoTLoss(*(getattr(parts, field.name)[:own] for field in fields(parts)))
        masks = [batch[f"{side}_{name}"][:own] for name in ("mask", "key_mask") for side in SIDES]
        forks = [batch[f"{side}_fork_mask"][:own].any(-1) for side in SIDES]
        paired = forks[0] | forks[1]
        chosen, fork = logps.chosen[:own], batch["fork"][:own]
        totals.add(chosen_metrics(parts, chosen, masks[0], masks[2], fork, paired))
        if logps.rejected is not None:
            totals.add(pair_metrics(chosen, logps.rejected[:own], *masks, paired))
        if mode == "train" and own != 0:
            self._tokens += logps.tokens

    def read(
        self, mode: str, accelerator: Accelerator, log_history: list[dict[str, float]]
    ) -> tuple[dict[str, float], int]:
        """Return the metrics and the training tokens since the last reading, over all processes.

        Args:
            mode: `train` or `eval`.
            accelerator: The accelerator, which sums over processes.
            log_history: Earlier logs, for the drift of the correct chains.
        """
        metrics = self._totals[mode].read(lambda totals: accelerator.reduce(totals, "sum"))
        tokens = 0
        if mode == "train" and metrics:
            run = torch.tensor(self._tokens, device=accelerator.device)
            tokens, self._tokens = int(accelerator.reduce(run, "sum")), 0
        if "logps/chosen" in metrics:
            metrics["drift/chosen"] = self._drift(mode, metrics["logps/chosen"], log_history)
        return metrics, tokens

    def check_finite(self, train_dataset: Dataset | None) -> None:
        """Raise FloatingPointError for a loss that is not finite, with the rows of its batch."""
        rows = () if train_dataset is None else zip(train_dataset["row"], train_dataset["row_id"], strict=True)
        losses, self._losses = self._losses, []
        check_losses(losses, dict(rows))

    def state(self) -> dict[str, Any]:
        """Return this process's running sums as JSON; a checkpoint keeps them."""
        totals = {mode: totals.state() for mode, totals in self._totals.items()}
        return {"tokens_run": self._tokens, "totals": totals}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from what `state` returned."""
        self._tokens = state["tokens_run"]
        for mode, totals in self._totals.items():
            totals.restore(state["totals"][mode], device)

    def _drift(self, mode: str, logp: float, log_history: list[dict[str, float]]) -> float:
        """Return the change of the correct chains' mean log-probability since the first log.

        The start is read from the log history, which checkpoints keep.
        """
        key = "eval_logps/chosen" if mode == "eval" else "logps/chosen"
        start = next((entry[key] for entry in log_history if key in entry), logp)
        drift, limit = logp - start, self._displacement_warning
        if limit is not None and drift < -limit:
            logger.warning_once(
                f"likelihood displacement: the correct chains' mean log-probability has fallen by "
                f"more than {limit} nats per token since the start. Lower `rejected_key_weight`, "
                "`preference_weight` or `learning_rate`, or raise `chosen_context_weight`"
            )
        return drift
