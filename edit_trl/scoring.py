"""A batch -> per-token log-probabilities (L1): one forward through TRL's fused LM head."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate.utils import is_peft_model
from torch import Tensor, cat, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from edit_trl.collation import SIDES


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of the completion tokens of B pairs.

    Attributes:
        chosen: Of the correct chains, 0 at padding. Shape (B, T⁺), float32.
        rejected: Of the wrong chains. Shape (B, T⁻); None where they were not run.
        aux_loss: The load-balancing loss of a mixture of experts that returns one.
        tokens: Tokens that were run, padding not counted. A scalar on the device.
    """

    chosen: Tensor
    rejected: Tensor | None
    aux_loss: Tensor | None
    tokens: Tensor


class PairScorer:
    """Scores the completion tokens of batches from a dual-CoT collator.

    TRL's fused head returns log-probabilities without building logits, but off a GPU it takes every
    position of the input through the LM head, which is a third of a small model. A hook on the backbone
    leaves it only the positions that predict a completion token.

    Args:
        model: The student, after `trl.trainer.utils.add_fused_lm_head`; a PEFT model of one also.
    """

    def __init__(self, model: nn.Module):
        self._positions: Tensor | None = None
        self._width = 0
        base: PreTrainedModel = model.get_base_model() if is_peft_model(model) else model
        base.base_model.register_forward_hook(self._keep_scored_positions)

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], with_rejected: bool = True) -> PairLogps:
        """Run the chains of a batch.

        Args:
            model: The student, wrapped for distributed training or not.
            batch: As `edit_trl.collation` describes it.
            with_rejected: Whether to run the wrong chains too.
        """
        sides = SIDES if with_rejected else SIDES[:1]
        rows = None if with_rejected else len(batch["fork"])  # the correct chains come first
        inputs = {name: batch[name][:rows] for name in ("input_ids", "attention_mask")}
        labels = cat([batch[f"{side}_labels"] for side in sides])
        positions = cat([batch[f"{side}_positions"] for side in sides])
        with self._scoring(positions, inputs["input_ids"].size(1)):
            outputs = model(**inputs, shift_labels=labels.unsqueeze(0), use_cache=False, fused_lm_head=True)
        parts = outputs.log_probs[0].float().split([len(batch[f"{side}_labels"]) for side in sides])
        # Positions go pair after pair, which is the order of a mask's true entries.
        logps = [
            part.new_zeros(batch[f"{side}_mask"].shape).masked_scatter(batch[f"{side}_mask"], part)
            for side, part in zip(sides, parts, strict=True)
        ]
        tokens = inputs["attention_mask"].sum()
        return PairLogps(logps[0], logps[1] if with_rejected else None, outputs.aux_loss, tokens)

    @contextmanager
    def _scoring(self, positions: Tensor, width: int) -> Iterator[None]:
        self._positions, self._width = positions, width
        try:
            yield
        finally:
            self._positions = None  # generation and other forwards are not ours to change

    def _keep_scored_positions(self, backbone: nn.Module, args: Any, output: ModelOutput) -> ModelOutput:
        if self._positions is not None:
            # Prompt-learning adapters put virtual tokens first; the real ones are last.
            hidden = output.last_hidden_state[:, -self._width :].flatten(0, 1)
            output.last_hidden_state = hidden[self._positions].unsqueeze(0)
        return output
