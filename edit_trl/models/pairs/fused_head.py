"""The LM head under TRL's fused head, which multiplies with its weight and bias and does not call it.

TRL refuses a head with an adapter layer. Read in TRL 1.16, `add_fused_lm_head`, and PEFT 0.21, `peft.utils.other`.
"""

from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
import trl.trainer.utils as trl_utils
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel

from edit_trl.common.errors import InputError

CPU_TILE = 2048
"""How much of the vocabulary a CPU multiplies with at once. TRL's 32,768 suit a GPU; on a CPU each of a dozen
operations on such a tile of logits fetches memory anew, which takes a fifth of a small student's step."""


def head_tiles(device: torch.device) -> AbstractContextManager:
    """Give TRL's fused head tiles of logits that suit a device, in the forward passes of this context.

    A private name of `trl.trainer.utils`, read in TRL 1.16. The backward pass has tiles of the same size.
    """
    if device.type != "cpu":
        return nullcontext()
    return patch.object(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", CPU_TILE)


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
