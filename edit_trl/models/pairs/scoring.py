"""Per-token log-probabilities of a batch, in one forward pass through TRL's fused LM head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils import logging

from edit_trl.common.errors import InputError
from edit_trl.models.pairs.collation import BatchLayout, DualCoTCollator, Stretch
from edit_trl.models.pairs.fused_head import head_tiles, settle_head
from edit_trl.models.pairs.tree_attention import TreeAttention, base_model, tree_obstacle

logger = logging.get_logger(__name__)

Layout = Literal["auto", "tree", "padded"]

# How far the log-probabilities of the two layouts may differ, in nats. In float32 the limit is for each
# token; in half precision, where single tokens vary more, it is for the mean over either chain. Measured with
# SmolLM2-135M in bfloat16, between layouts that agree to the last bit in float32: up to 0.05 on average where
# the processor computes in bfloat16 (AMX; as far as padded bfloat16 is from float32), 8e-4 where it does not.
LOGP_TOLERANCE = 1e-3
HALF_PRECISION_MEAN_LOGP_TOLERANCE = 0.1

# How many logits are held at once where they are needed: 128 MiB.
_LOGITS = 2**25


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of the completion tokens of B pairs.

    Attributes:
        chosen: Log-probabilities of the correct chains, 0 at padding. Shape (B, T⁺), float32.
        rejected: Log-probabilities of the wrong chains, shape (B, T⁻); None where they were not run.
        aux_loss: The load-balancing loss of a mixture of experts that returns one; else None.
        tokens: Number of tokens that were run, without padding.
        chosen_best: The likeliest token at each position of the correct chains, shape (B, T⁺); None unless requested.
    """

    chosen: Tensor
    rejected: Tensor | None
    aux_loss: Tensor | None
    tokens: int
    chosen_best: Tensor | None = None


@dataclass(frozen=True)
class TreeCheck:
    """The check of the tree layout against the padded layout, made at the first batch in the tree layout.

    Attributes:
        example: The pair that is scored in both layouts; the longest of the dataset, so that every sliding
            window takes part.
        exact: Whether the model computes in float32.
        required: Whether a disagreement is an error; otherwise the padded layout is used.
    """

    example: dict[str, Any]
    exact: bool
    required: bool = False


class PairScorer:
    """Scores the completion tokens of batches from a dual-CoT collator.

    TRL's fused head returns log-probabilities without building logits, but without a GPU it runs every
    position of the input through the LM head, which is a third of a small model. A hook on the backbone
    leaves it only the positions that predict a completion token. Another hook gives the backbone the tree.

    Where the tree layout does not work (see `TreeCheck`, or an error in a forward pass), batches are collated
    again in the padded layout, and the collator makes padded batches from then on.

    Args:
        model: The student or a PEFT model of it, after `trl.trainer.utils.add_fused_lm_head` unless `with_best`.
        collator: The collator that makes the batches.
        tree: How the model attends along a tree; None where it cannot.
        check: How the first batch in the tree layout is checked; None for no check.
        with_best: Also return the likeliest tokens. The fused head does not know them, so the model's own
            logits are computed, for some of the scored positions at a time. Not for training.

    Attributes:
        tree: None once the padded layout is used.
        given_up: Why the tree layout was left for the padded one; None where it was not.
    """

    def __init__(
        self,
        model: nn.Module,
        collator: DualCoTCollator,
        tree: TreeAttention | None = None,
        check: TreeCheck | None = None,
        with_best: bool = False,
    ):
        self.tree = tree
        self._given_tree = tree
        self.given_up: str | None = None
        self._collator = collator
        self._check = check
        self._with_best = with_best
        self._scored: Tensor | None = None
        self._piece: Tensor | None = None
        self._positions: Tensor | None = None
        self._width = 0
        self._stretches: Sequence[Stretch] | None = None
        self._attention_mask: Tensor | None = None
        self._backbone_inputs: dict[str, Any] = {}
        self._base = base = base_model(model)
        if not with_best:
            settle_head(base)
        self._piece_size = max(1, _LOGITS // base.config.get_text_config().vocab_size)
        self._hooks = [
            base.base_model.register_forward_pre_hook(self._give_tree, with_kwargs=True),
            base.base_model.register_forward_hook(self._keep_scored_positions),
        ]

    def remove(self) -> None:
        """Remove the hooks from the model; the scorer cannot be used afterwards."""
        for hook in self._hooks:
            hook.remove()
        if self._given_tree is not None:
            self._given_tree.remove()

    def __call__(self, model: nn.Module, batch: dict[str, Any], with_rejected: bool = True) -> PairLogps:
        """Return the log-probabilities of the chains of a batch.

        Args:
            model: The student; it may be wrapped for distributed training.
            batch: See `DualCoTCollator`.
            with_rejected: Whether to run the wrong chains too.

        Raises:
            InputError: `layout: tree` is set, and the two layouts disagree.
        """
        if batch["layout"].stretches is None:
            return self._score(model, batch, with_rejected)
        if self._check is not None and self.tree is not None:
            self._compare_layouts(model, self._check, batch["input_ids"].device)
        if self.tree is not None:
            try:
                return self._score(model, batch, with_rejected)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler may raise anything; what is wrong with the batch is raised again
                reason = " ".join(str(error).strip().split("\n\n")[0].split())  # compilers add pages of advice
                self._fall_back(f"the tree layout failed ({type(error).__name__}: {shorten(reason, 300)})")
        return self._score(model, self._padded(batch["layout"], batch["input_ids"].device), with_rejected)

    def chain_lengths(self) -> Tensor | None:
        """Return the length of the chain of each token in the input that is being scored; None outside of a call.

        The shape is that of the input, (rows, 1) in the padded layout. A token that chains share counts to the first of
        them, a correct one.
        """
        if self._attention_mask is not None:
            return self._attention_mask.sum(1, keepdim=True)
        if self._stretches is None or self._positions is None:
            return None
        sizes = [stop - start for start, stop, _ in self._stretches]
        before = [sum(stop - start for start, stop in ancestors) for _, _, ancestors in self._stretches]
        lengths = torch.tensor(before) + torch.tensor(sizes)
        return lengths.repeat_interleave(torch.tensor(sizes))[None].to(self._positions.device)

    def _padded(self, layout: BatchLayout, device: torch.device) -> dict[str, Any]:
        return send_to_device(replace(self._collator, layout="padded")(layout.examples), device)

    def _fall_back(self, reason: str) -> None:
        assert self.tree is not None  # it is what fails
        attention = self.tree.replace_failed()
        self.tree, self.given_up = None, reason
        self._collator.layout = "padded"
        instead = f", with {attention} instead of flex_attention" if attention else ""
        logger.warning(f"layout: padded from here on{instead}, since {reason}")

    @torch.no_grad()
    def _compare_layouts(self, model: nn.Module, check: TreeCheck, device: torch.device) -> None:
        """Score one pair in both layouts; use the padded one where they disagree."""
        self._check = None
        modes = [(module, module.training) for module in model.modules()]
        model.eval()  # no dropout
        try:
            batch = send_to_device(replace(self._collator, layout="tree")([check.example]), device)
            tree = self(model, batch)
            if self.tree is None:
                return  # it failed; a warning was logged
            padded = self._score(model, self._padded(batch["layout"], device), with_rejected=True)
        finally:
            for module, training in modes:
                module.training = training
        assert tree.rejected is not None  # both were scored with the wrong chain
        assert padded.rejected is not None
        differences = [(tree.chosen - padded.chosen).abs(), (tree.rejected - padded.rejected).abs()]
        if check.exact and self._base.dtype == torch.float32:  # an evaluation may have cast the model
            tolerance, kind = LOGP_TOLERANCE, "by up to"
            difference = max(chain.max().item() for chain in differences)
        else:
            tolerance, kind = HALF_PRECISION_MEAN_LOGP_TOLERANCE, "on average by"
            difference = max(chain.mean().item() for chain in differences)
        if difference <= tolerance:
            logger.info(f"layout: tree; log-probabilities differ {kind} {difference:.1e} from the padded one's")
            return
        reason = (
            f"a pair's log-probabilities differ {kind} {difference:.2g} nats per token from the padded "
            f"layout's, more than {tolerance:.2g}"
        )
        if check.required:
            raise InputError(f"`layout: tree`: {reason}; set `layout: auto` or `layout: padded`")
        self._fall_back(reason)

    def _score(self, model: nn.Module, batch: dict[str, Any], with_rejected: bool) -> PairLogps:
        layout: BatchLayout = batch["layout"]
        rows = width = scored = None
        if not with_rejected:
            rows, width, scored = layout.chosen_rows, layout.chosen_width, layout.chosen_scored
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: batch[name][:rows, :width] for name in names if name in batch}
        tree: dict[str, Any] = {}
        stretches = layout.stretches
        if stretches is not None:
            assert self.tree is not None  # without it, batches are padded
            stretches = stretches if with_rejected else stretches[: layout.chosen_stretches]
            tree = self.tree.inputs(stretches, inputs["position_ids"])
        self._stretches, self._attention_mask = stretches, inputs.get("attention_mask")
        best = aux_loss = None
        with self._scoring(batch["scored_positions"][:scored], inputs["input_ids"].size(1), tree):
            labels = batch["scored_labels"][:scored]
            if self._with_best:
                logps, best = self._read_logits(model, inputs, labels)
            else:
                with head_tiles(labels.device):
                    outputs = model(**inputs, shift_labels=labels[None], use_cache=False, fused_lm_head=True)
                logps, aux_loss = outputs.log_probs[0].float(), outputs.aux_loss
        return PairLogps(
            chosen=_of_side(batch, "chosen", logps),
            rejected=_of_side(batch, "rejected", logps) if with_rejected else None,
            aux_loss=aux_loss,
            tokens=layout.tokens[with_rejected],
            chosen_best=None if best is None else best[batch["chosen_index"]],
        )

    @torch.no_grad()
    def _read_logits(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the labels and the likeliest tokens, both of shape (S,).

        The head, with whatever the model does to its logits, is part of the model's own forward. So the
        first piece of the scored positions takes the forward pass of the batch; each further piece takes the
        forward pass of a single token, whose hidden state it replaces.
        """
        logps, best = [], []
        for start in range(0, len(labels), self._piece_size):
            if start:
                assert self._scored is not None  # kept in the pass of the first piece
                self._piece = self._scored[start : start + self._piece_size]
                self._backbone_inputs = {}
                inputs = {"input_ids": inputs["input_ids"][:1, :1]}
            logits = model(**inputs, use_cache=False).logits[0].float()
            piece_labels = labels[start : start + self._piece_size, None]
            logps.append(logits.gather(1, piece_labels).squeeze(1) - logits.logsumexp(1))
            best.append(logits.argmax(1))
        return torch.cat(logps), torch.cat(best)

    @contextmanager
    def _scoring(self, positions: Tensor, width: int, backbone_inputs: dict[str, Any]) -> Iterator[None]:
        self._positions, self._width, self._backbone_inputs = positions, width, backbone_inputs
        try:
            yield
        finally:
            # Forward passes of others must not change.
            self._positions = self._scored = self._piece = self._stretches = self._attention_mask = None
            self._backbone_inputs = {}

    def _give_tree(self, backbone: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # Not as inputs of the whole model: the fused head reads a 2D mask for itself.
        return args, kwargs | self._backbone_inputs

    def _keep_scored_positions(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        if self._piece is not None:
            output.last_hidden_state = self._piece.unsqueeze(0)
        elif self._positions is not None:
            # Prompt-learning adapters put virtual tokens first; the real tokens come last.
            hidden = output.last_hidden_state[:, -self._width :].flatten(0, 1)[self._positions]
            if self._with_best:
                self._scored, hidden = hidden, hidden[: self._piece_size]
            output.last_hidden_state = hidden.unsqueeze(0)
        return output


def _of_side(batch: dict[str, Any], side: str, logps: Tensor) -> Tensor:
    return logps[batch[f"{side}_index"]].masked_fill(~batch[f"{side}_mask"], 0.0)


def make_pair_scorer(
    model: nn.Module,
    collator: DualCoTCollator,
    layout: Layout,
    *,
    check_example: dict[str, Any] | None,
    half_precision: bool = False,
    obstacle: str | None = None,
    with_best: bool = False,
) -> PairScorer:
    """Choose the layout for a model and make its scorer; log where `auto` cannot use the tree.

    Args:
        model: The student, as for `PairScorer`.
        collator: The collator that will make the batches; its layout is set.
        layout: `tree`, `padded`, or `auto`: the tree where the model can take one.
        check_example: See `TreeCheck`; None for no check, where an earlier scorer has made it.
        half_precision: Whether the forward pass runs in bf16 or fp16, whatever the dtype of the weights.
        obstacle: Why the run cannot use the tree, for a reason other than the model.
        with_best: See `PairScorer`.

    Raises:
        InputError: `layout` is `tree` and the model cannot take one.
    """
    if layout != "padded":
        obstacle = obstacle or tree_obstacle(model)
        if obstacle and layout == "tree":
            raise InputError(
                f"`layout: tree`: {type(model).__name__} cannot take a tree, since {obstacle}; set "
                "`layout: auto` or `layout: padded`"
            )
        if not obstacle:
            exact = not half_precision and model.dtype == torch.float32
            exact = exact and getattr(model, "quantization_method", None) is None
            check = TreeCheck(check_example, exact, required=layout == "tree") if check_example else None
            collator.layout = "tree"
            return PairScorer(model, collator, TreeAttention(model), check, with_best)
        logger.warning(f"layout: padded, since {type(model).__name__} cannot take a tree: {obstacle}")
    collator.layout = "padded"
    return PairScorer(model, collator, with_best=with_best)
