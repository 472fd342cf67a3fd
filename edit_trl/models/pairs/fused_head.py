"""The LM head under TRL's fused head, which multiplies with its weight and bias and does not call it.

TRL refuses a head with an adapter layer. Read in TRL 1.16, `add_fused_lm_head`, and PEFT 0.21, `peft.utils.other`.
"""

from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel

from edit_trl.common.errors import InputError


def settle_head(base: PreTrainedModel) -> None:
    """Make the LM head one that TRL's fused head can multiply with.

    Raises:
        InputError: It has trainable tokens and is trained whole.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, TrainableTokensWrapper):
        return
    if isinstance(head.original_module, ModulesToSaveWrapper):
        raise InputError(
            "the adapter has `trainable_token_indices` and the LM head in `modules_to_save`, and the head of "
            f"{type(base).__name__} shares its weights with the embeddings: PEFT 0.21 cannot run such a head. Use one "
            "of them"
        )
    vars(head)["bias"] = getattr(head.original_module, "bias", None)  # the wrapper has the weight alone
