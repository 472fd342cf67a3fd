"""The objective of a run: which tokens of a batch enter which term of the loss, as its options say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from edit_trl.key_steps import SIDES
from edit_trl.losses import DualCoTLoss, chain_score, dual_cot_loss
from edit_trl.models.pairs.scoring import PairLogps
from edit_trl.training.config import DualCoTConfig


class StepShare(NamedTuple):
    """The share of a batch in its optimizer step.

    Attributes:
        factor: The factor of the summed loss of the batch's pairs.
        mean_lengths: Mean number of completion tokens of (correct, wrong) chains over the step; None where
            the batch is the whole step.
    """

    factor: float | Tensor
    mean_lengths: tuple[Tensor, Tensor] | None


def share_of_step(
    examples: Sequence[dict[str, Any]], own: int | None, num_items: Tensor | None, accelerator: Accelerator
) -> StepShare:
    """Return the share of a batch in the mean over the pairs of its optimizer step.

    Args:
        examples: The examples of the batch.
        own: Number of examples that count, the first ones; None for all.
        num_items: Pairs, tokens of correct chains and tokens of wrong chains of the step over all processes,
            shape (3,); None in evaluation, where the batch is a step by itself.
        accelerator: The accelerator, with the number of processes and the device.
    """
    if num_items is not None:
        pairs = num_items[0]
        # Data-parallel training averages gradients over processes; `pairs` counts all of them.
        chosen, rejected = (num_items[1:] / pairs).clamp(min=1)
        return StepShare(accelerator.num_processes / pairs, (chosen, rejected))
    factor = 1 / max(len(examples[:own]), 1)
    if not own:
        return StepShare(factor, None)
    tokens = [sum(len(example[f"{side}_ids"]) for example in examples[:own]) * factor for side in SIDES]
    chosen, rejected = torch.tensor(tokens, device=accelerator.device).clamp(min=1)
    return StepShare(factor, (chosen, rejected))


@dataclass(frozen=True)
class Objective:
    """`edit_trl.losses.dual_cot_loss` with the weights, penalties and scopes of a config."""

    config: DualCoTConfig

    @property
    def needs_rejected(self) -> bool:
        """Whether a term depends on the wrong chains."""
        return bool(self.config.rejected_key_weight or self.config.preference_weight)

    def scores(self, logps: PairLogps, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return s⁺ and s⁻ of the preference term, without a reference, both of shape (B,).

        Args:
            logps: Log-probabilities of both chains.
            batch: See `DualCoTCollator`.
        """
        reduction = self.config.preference_reduction
        chosen, rejected = self._scopes(batch)
        assert logps.rejected is not None  # see `logps`
        return chain_score(logps.chosen, chosen, reduction), chain_score(logps.rejected, rejected, reduction)

    def loss(
        self,
        logps: PairLogps,
        batch: dict[str, Tensor],
        reference_scores: tuple[Tensor, Tensor] | None = None,
        step_means: tuple[Tensor, Tensor] | None = None,
    ) -> DualCoTLoss:
        """Return the loss of each pair and its parts.

        Args:
            logps: Log-probabilities; those of the wrong chains may be None where no term needs them.
            batch: See `DualCoTCollator`.
            reference_scores: The `scores` of the reference model.
            step_means: Mean number of completion tokens of (correct, wrong) chains over the optimizer step.
        """
        config = self.config
        chosen_scope, rejected_scope = self._scopes(batch)
        penalised = {"all": "key_mask", "completion": "mask"}.get(config.rejected_key_scope, "fork_mask")
        return dual_cot_loss(
            logps.chosen,
            logps.rejected,
            batch["chosen_mask"],
            batch["rejected_mask"],
            batch["chosen_key_mask"],
            batch[f"rejected_{penalised}"],
            chosen_loss=config.chosen_loss,
            chosen_key_weight=config.chosen_key_weight,
            chosen_context_weight=config.chosen_context_weight,
            rejected_key_weight=config.rejected_key_weight,
            rejected_penalty=config.rejected_penalty,
            normalization=config.normalization,
            step_means=step_means,
            preference_weight=config.preference_weight,
            preference_loss=config.preference_loss,
            preference_reduction=config.preference_reduction,
            preference_beta=config.preference_beta,
            preference_margin=config.preference_margin,
            dpop_lambda=config.dpop_lambda,
            chosen_scope_mask=chosen_scope,
            rejected_scope_mask=rejected_scope,
            reference_scores=reference_scores,
        )

    def _scopes(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the masks of the tokens that the preference term scores."""
        names: dict[Any, str] = {"key_steps": "key_mask", "completion": "mask"}
        scope = names.get(self.config.preference_scope, "fork_mask")
        return batch[f"chosen_{scope}"], batch[f"rejected_{scope}"]
