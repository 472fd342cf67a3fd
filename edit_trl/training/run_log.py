"""RunLog: the metrics, tokens and losses of a training run between two logs; LoggingMixin: the hooks for it."""

from dataclasses import fields
from typing import Any, Literal

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from edit_trl.key_steps import SIDES
from edit_trl.losses import DualCoTLoss
from edit_trl.models.pairs.scoring import PairLogps
from edit_trl.training.metrics import BatchLoss, MetricTotals, check_losses, chosen_metrics, pair_metrics
from edit_trl.training.resuming.resumable import ResumableTrainer

logger = logging.get_logger(__name__)

Mode = Literal["train", "eval"]


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
        self._warned: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Forget what was gathered since the last log, when a run starts or starts again."""
        self._totals: dict[Mode, MetricTotals] = {"train": MetricTotals(), "eval": MetricTotals()}
        self._losses: list[BatchLoss] = []
        self._tokens = 0

    def reset_evaluation(self) -> None:
        """Forget the metrics of an evaluation that nothing has logged, such as those of `Trainer.predict`."""
        self._totals["eval"] = MetricTotals()

    def add(
        self,
        loss: Tensor,
        parts: DualCoTLoss,
        logps: PairLogps,
        batch: dict[str, Any],
        own: int | None,
        step: int,
        mode: Mode,
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
            totals.add(pair_metrics(chosen, logps.rejected[:own], masks[0], masks[1], masks[2], masks[3], paired))
        if mode == "train" and own != 0:
            self._tokens += logps.tokens

    def read(
        self, mode: Mode, prefix: str, accelerator: Accelerator, log_history: list[dict[str, float]]
    ) -> tuple[dict[str, float], int]:
        """Return the metrics and the training tokens since the last reading, over all processes.

        Args:
            mode: `train` or `eval`.
            prefix: What the names of the metrics begin with, such as `eval_`; each evaluation set has its own.
            accelerator: The accelerator, which sums over processes.
            log_history: Earlier logs, for the drift of the correct chains.
        """
        metrics = self._totals[mode].read(lambda totals: accelerator.reduce(totals, "sum"))
        tokens = 0
        if mode == "train" and metrics:
            run = torch.tensor(self._tokens, device=accelerator.device)
            tokens, self._tokens = int(accelerator.reduce(run, "sum")), 0
        if "logps/chosen" in metrics:
            metrics["drift/chosen"] = self._drift(prefix, metrics["logps/chosen"], log_history)
        return {f"{prefix}{name}": value for name, value in metrics.items()}, tokens

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

    def _drift(self, prefix: str, logp: float, log_history: list[dict[str, float]]) -> float:
        """Return the change of the correct chains' mean log-probability since the first log of the same rows.

        The start is read from the log history, which checkpoints keep.
        """
        key = f"{prefix}logps/chosen"
        start = next((entry[key] for entry in log_history if key in entry), logp)
        drift, limit = logp - start, self._displacement_warning
        if limit is not None and drift < -limit and prefix not in self._warned:
            self._warned.add(prefix)
            where = f" (`{prefix}drift/chosen`)" if prefix else ""
            logger.warning(
                f"likelihood displacement: the correct chains' mean log-probability has fallen by "
                f"more than {limit} nats per token since the start{where}. Lower `rejected_key_weight`, "
                "`preference_weight` or `learning_rate`, or raise `chosen_context_weight`"
            )
        return drift


class LoggingMixin(ResumableTrainer):
    """Logs what a `RunLog` gathers, for a `ResumableTrainer` on dual CoTs.

    Metrics of an evaluation have the prefix of its set (`metric_key_prefix`), as its loss has. Overrides hooks of
    `transformers.Trainer`, read in transformers 5.24.
    """

    model: Any
    train_dataset: Any
    _run_log: RunLog
    _eval_prefix = "eval"

    @property
    def _mode(self) -> Mode:
        return "train" if self.model.training else "eval"

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate, as in `transformers.Trainer`; calls itself for each of several sets."""
        outer, self._eval_prefix = self._eval_prefix, metric_key_prefix
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._eval_prefix = outer

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate a set, without what an earlier one has left."""
        self._run_log.reset_evaluation()
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics gathered since the last log, and the drift of the correct chains."""
        self._run_log.check_finite(self.train_dataset)
        mode = self._mode
        prefix = f"{self._eval_prefix}_" if mode == "eval" else ""
        metrics, tokens = self._run_log.read(mode, prefix, self.accelerator, self.state.log_history)
        if mode == "train" and metrics:
            self._total_train_tokens += tokens
            metrics["num_tokens"] = float(self._total_train_tokens)  # as TRL logs it
        logs.update(metrics)
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._run_log.check_finite(self.train_dataset)  # weights after such a loss are not worth keeping
        super()._save_checkpoint(*args, **kwargs)

    def _progress(self) -> dict[str, Any]:
        return super()._progress() | self._run_log.state()

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        super()._restore_progress(progress)
        self._run_log.restore(progress, self.accelerator.device)

    def _reset_progress(self) -> None:
        super()._reset_progress()
        self._run_log.reset()
