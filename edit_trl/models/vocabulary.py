"""Whether a model has an embedding for every token that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def embeddings_of(model: PreTrainedModel | PeftModel) -> int | None:
    """Return how many tokens a model has an embedding for; None if its configuration does not say."""
    return getattr(model.config.get_text_config(), "vocab_size", None)


def check_vocabulary(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, sequences: Iterable[Iterable[int]]
) -> None:
    """Check token ids that a model will be given.

    The vocabulary of a tokenizer may be larger than the model's, as long as no such token is used: Gemma 3 of 1B has
    its family's token for images.

    Raises:
        InputError: Tokens have no embedding; names them.
    """
    count = embeddings_of(model)
    if count is None or len(tokenizer) <= count:
        return  # most models: the ids need not be read
    unknown = sorted({token for ids in sequences for token in ids if token >= count})
    if unknown:
        names = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(unknown[:5]))
        raise InputError(
            f"the tokenizer ({tokenizer.name_or_path}) uses {len(unknown)} tokens that are not among the model's "
            f"{count}: {names}; take the model's own tokenizer, or resize the model's embeddings and train them"
        )
