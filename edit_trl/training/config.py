"""DualCoTConfig: the options of `DualCoTTrainer`, and their checks."""

from dataclasses import dataclass, field
from typing import Literal

from transformers.utils import is_torch_bf16_gpu_available, logging
from trl import SFTConfig

from edit_trl.common.errors import InputError
from edit_trl.key_steps import KeyStepMethod
from edit_trl.losses import ChosenLoss, Normalization, PreferenceLoss, PreferenceReduction, RejectedPenalty
from edit_trl.models.pairs.scoring import Layout
from edit_trl.training.option_checks import as_mapping, option_problems, schedule_problems

logger = logging.get_logger(__name__)

KeyStepScope = Literal["all", "fork", "completion"]
PreferenceScope = Literal["key_steps", "fork", "completion"]
Reference = Literal["none", "adapter_off", "precomputed"]

REFERENCE_BASED_PREFERENCES = ("ipo", "dpop", "apo_zero", "apo_down")
REFERENCE_FREE_PREFERENCES = ("orpo", "simpo")


@dataclass
class DualCoTConfig(SFTConfig):
    """Configuration of `DualCoTTrainer`: every option of `trl.SFTConfig`, and those below.

    The defaults are gentle: SFT on the correct chains with their key tokens counted twice, and a
    bounded contrast of small weight where the two chains part. The paper's setting is a recipe,
    `recipes/Llama-2-7b/edit/config_paper.yaml`. `edit_trl.losses` explains the symbols; the meaning of
    each field is in its `metadata["help"]`, which `edit-trl train --help` prints.

    Raises:
        InputError: Options that are out of range or contradict each other; the message names all of them.
    """

    # Key steps
    key_step_method: KeyStepMethod = field(
        default="words",
        metadata={
            "help": "How key steps are found. 'edit': minimum edit distance over token ids (the paper). 'words': over "
            "words and numbers. 'fork': 'words' in the step in which the chains part. 'forks': that, and the first "
            "word of later steps. 'step': that whole step. 'spans': the row's. 'reference': the authors' 'edit'. "
            "'random': as many tokens as 'words', anywhere; a control."
        },
    )
    key_step_seed: int = field(
        default=0, metadata={"help": "Seed of the positions that `key_step_method: random` draws."}
    )
    max_key_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Drop pairs in which more than this share of the completion tokens is key, since such chains are "
            "worded differently. Between 0 and 1."
        },
    )
    max_fork_confidence: float | None = field(
        default=None,
        metadata={
            "help": "Drop pairs whose fork the student already decides rightly with more than this probability. One "
            "cached pass before training; its histogram is logged. Between 0 and 1; off by default."
        },
    )
    hardest_forks: float | None = field(
        default=None,
        metadata={
            "help": "Keep only this share of the pairs (of those that max_fork_confidence leaves): those to whose "
            "right token at the fork the student gives the lowest probabilities. Off by default."
        },
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Values of the chat template's variables, as JSON or YAML, for rows that do not set them in a "
            "column of this name: '{\"enable_thinking\": false}'."
        },
    )
    truncate_long: bool = field(
        default=False,
        metadata={
            "help": "Cut pairs longer than max_length instead of dropping them; the log says how "
            "many key tokens were cut off."
        },
    )

    # The objective
    chosen_key_weight: float = field(default=2.0, metadata={"help": "Alpha: weight of the correct chain's key tokens."})
    chosen_context_weight: float = field(
        default=1.0, metadata={"help": "Gamma: weight of the correct chain's other tokens (0 in the paper)."}
    )
    rejected_key_weight: float = field(
        default=0.0,
        metadata={
            "help": "Beta: weight of the penalty on the wrong chain's key tokens (0.025 in the "
            "paper). Larger values make the student unlearn."
        },
    )
    rejected_key_scope: KeyStepScope = field(
        default="fork",
        metadata={
            "help": "Which tokens of the wrong chain are penalised. 'all': every key token (the paper). 'fork': "
            "those from the first difference to the end of that step. 'completion': the whole chain, key or not "
            "(REDI)."
        },
    )
    rejected_penalty: RejectedPenalty = field(
        default="unlikelihood",
        metadata={
            "help": "How a wrong key token is penalised. 'likelihood': log p (the paper), "
            "unbounded. 'unlikelihood': -log(1 - p)."
        },
    )
    normalization: Normalization = field(
        default="completion",
        metadata={
            "help": "What a chain's weighted token losses are divided by: its tokens ('completion'), its key tokens "
            "('key_tokens'), or the mean length in the optimizer step ('step': each token counts the same, as in TRL's "
            "SFT)."
        },
    )

    chosen_loss: ChosenLoss = field(
        default="nll",
        metadata={
            "help": "The loss of the correct chain's tokens. 'nll': -log p. 'dft': the same weighted by p (Dynamic "
            "Fine-Tuning), an SFT baseline."
        },
    )

    # The preference term
    preference_weight: float = field(
        default=0.1, metadata={"help": "Lambda: weight of the contrastive preference term; 0 switches it off."}
    )
    preference_loss: PreferenceLoss = field(
        default="sigmoid",
        metadata={
            "help": "The preference term: sigmoid (DPO), ipo, hinge (SLiC), orpo, simpo, dpop, apo_zero or "
            "apo_down. See edit_trl.losses.preference_term for the equations."
        },
    )
    preference_scope: PreferenceScope | None = field(
        default=None,
        metadata={
            "help": "Which tokens the preference compares. 'fork': the key tokens of the step in "
            "which the chains part (default). 'key_steps': all key tokens. 'completion': the whole "
            "chains."
        },
    )
    preference_reduction: PreferenceReduction = field(
        default="mean",
        metadata={"help": "Whether a chain's score is the mean or the sum over its tokens."},
    )
    preference_beta: float = field(
        default=1.0, metadata={"help": "b, the inverse temperature of the preference term (beta in DPO)."}
    )
    preference_margin: float = field(
        default=0.0, metadata={"help": "By how much the correct chain's scaled score should lead."}
    )
    dpop_lambda: float = field(
        default=50.0,
        metadata={"help": "With preference_loss dpop: the weight of the correct chain's fall below the reference."},
    )
    reference: Reference = field(
        default="none",
        metadata={
            "help": "Whose scores are subtracted in the preference term. 'none': nobody's. "
            "'adapter_off': the model without its adapter. 'precomputed': the student as it is "
            "before training, computed once and cached."
        },
    )

    # Batches
    layout: Layout = field(
        default="auto",
        metadata={
            "help": "How the two chains of a pair are run. 'tree': every token they share once. 'padded': each chain "
            "in a row of its own. 'auto': the tree where the model can take it and the first batch agrees."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Fill each training batch of a device up to this many tokens, instead of with "
            "per_device_train_batch_size pairs. Tokens that chains share count once (layout tree)."
        },
    )

    # Watching the run
    displacement_warning: float | None = field(
        default=0.25,
        metadata={
            "help": "Warn once when the mean log-probability of the correct chains has fallen by "
            "more than this many nats per token since the start (likelihood displacement)."
        },
    )

    lr_decay_per_epoch: float | None = field(
        default=None,
        metadata={"help": "Multiply a constant learning rate by this after each epoch (0.95 in the paper)."},
    )

    # This filter reads the loss from the device at every batch; ours is checked at each log and checkpoint.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Not needed: a loss that is not finite stops the run and names the rows."}
    )

    # transformers' default pushes at every save.
    hub_strategy: str = field(
        default="end", metadata={"help": "When a run with `push_to_hub` pushes: the finished model, at the end."}
    )

    # TRL's default is bf16, which fails on a machine without it.
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Use bf16 mixed precision; if not set, where a GPU has it and fp16 is not set."},
    )

    def __post_init__(self):
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = as_mapping(self.chat_template_kwargs)
        problems = [*option_problems(type(self), vars(self)), *self._objective_problems()]
        problems += [*self._preference_problems()]
        has_bf16 = is_torch_bf16_gpu_available()
        if self.bf16 and not has_bf16 and not self.use_cpu:
            problems.append(
                "`bf16: true`, but this machine has no GPU with bfloat16 (NVIDIA Ampere or newer); "
                "set `bf16: false`, or `use_cpu: true` to train in bf16 on the CPU"
            )
        if problems:
            raise InputError(problems)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and has_bf16
        if self.preference_scope is None and self.preference_weight:
            self.preference_scope = "fork"
        if self.preference_weight and self.preference_loss == "simpo" and not self.preference_margin:
            logger.warning_once(
                "`preference_loss: simpo` without a margin equals `sigmoid` without a reference, on mean scores; set "
                "`preference_margin` (the paper's gamma), such as 0.5"
            )
        super().__post_init__()
        problems = [*schedule_problems(self)]
        if problems:
            raise InputError(problems)

    def _objective_problems(self):
        names = ("chosen_key_weight", "chosen_context_weight", "rejected_key_weight", "preference_weight")
        if not any(getattr(self, name) for name in names):
            yield f"all weights of the objective are 0 ({', '.join(names)}), nothing would be learnt"
        if self.lr_decay_per_epoch is not None and self.lr_scheduler_type != "constant":
            yield "`lr_decay_per_epoch` needs `lr_scheduler_type: constant`; two schedules cannot both hold"

    def _preference_problems(self):
        default = type(self).__dataclass_fields__["dpop_lambda"].default
        if self.dpop_lambda != default and not (self.preference_weight and self.preference_loss == "dpop"):
            yield f"`dpop_lambda: {self.dpop_lambda}` is for `preference_loss: dpop`; set that, or remove it"
        if not self.preference_weight:
            if self.preference_scope is not None:
                yield (
                    f"`preference_scope: {self.preference_scope}` is set but `preference_weight` is "
                    "0, so there is no preference term; set a weight (0.1, say) or remove the scope"
                )
            if self.reference != "none":
                yield (
                    f"`reference: {self.reference}` is set but `preference_weight` is 0 and nothing "
                    "else uses a reference; set a weight or `reference: none`"
                )
            return
        kind = self.preference_loss
        if kind in REFERENCE_BASED_PREFERENCES and self.reference == "none":
            yield (
                f"`preference_loss: {kind}` compares with a reference model, but `reference` is "
                "'none'; set `reference: adapter_off` (LoRA) or `reference: precomputed`"
            )
        if kind in REFERENCE_FREE_PREFERENCES:
            if self.reference != "none":
                yield (
                    f"`preference_loss: {kind}` has no reference model, but `reference` is "
                    f"{self.reference!r}; set `reference: none` or `preference_loss: sigmoid`"
                )
            if self.preference_reduction != "mean":
                yield (
                    f"`preference_loss: {kind}` is defined on mean log-probabilities; set `preference_reduction: mean`"
                )
