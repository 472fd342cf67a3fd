"""Responses as token ids -> text, where tokens may mark the thoughts of a reasoning model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import answer_part, join_thoughts, opens_thoughts, split_thoughts, thoughts_part
from edit_trl.models.decoding import Generated

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from edit_trl.models.decoding import Decoding

# The tokens of a prompt that can hold the marker at its end, with which some templates open the thoughts.
_TAIL = 16


def response_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int]) -> str:
    """Return a response as text, with its thoughts in the form of `edit_trl.common.thoughts`.

    Markers of thoughts may be special tokens, and the prompt may have opened the thoughts. All other special tokens are
    left out.

    Args:
        tokenizer: The tokenizer of the model.
        prompt: Token ids of the prompt.
        response: Token ids of the response, without EOS.
    """
    marked = opened_by(tokenizer, prompt) + str(tokenizer.decode([*response]))
    if thoughts_part(marked) is None:
        return str(tokenizer.decode([*response], skip_special_tokens=True)).strip()
    return text_with_thoughts(tokenizer, marked)


def opened_by(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """Return the marker of thoughts that a prompt has opened, as the beginning of its response; "" if it has not."""
    return "<think>\n" if opens_thoughts(str(tokenizer.decode([*prompt[-_TAIL:]]))) else ""


def text_with_thoughts(tokenizer: PreTrainedTokenizerBase, marked: str) -> str:
    """Return a response that was decoded with its special tokens in the form of `edit_trl.common.thoughts`."""

    def plain(text: str) -> str:
        for token in (*(token.content for token in added if token.special), *tokenizer.all_special_tokens):
            text = text.replace(token, "")
        return text

    added = tokenizer.added_tokens_decoder.values()
    if thoughts_part(marked) is None:
        return plain(marked)
    thoughts, answer = split_thoughts(marked)
    return join_thoughts(plain(thoughts).strip(), answer and plain(answer).strip())


def is_thinking(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int]) -> bool:
    """Return whether the thoughts of a response have begun, in it or at the end of its prompt, and have not ended."""
    return answer_part(opened_by(tokenizer, prompt) + str(tokenizer.decode([*response]))) is None


def cut_thoughts(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int], limit: int | None
) -> list[int] | None:
    """Return the first `limit` tokens of a response if it still thinks there; None for any other response."""
    if limit is None or len(response) < limit:
        return None
    beginning = list(response[:limit])
    return beginning if is_thinking(tokenizer, prompt, beginning) else None


class ResponseReader:
    """Reads the responses that a model has drawn.

    Args:
        tokenizer: The tokenizer of the model.
        eos_ids: Every token that ends a response: the model's own, and the tokenizer's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]):
        self.tokenizer, self.eos_ids = tokenizer, eos_ids

    def split_at_eos(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Return the ids of a response before its first EOS token, and whether there is one."""
        end = next((place for place, token in enumerate(ids) if token in self.eos_ids), None)
        return list(ids[:end]), end is not None

    def response_of(self, prompt: Sequence[int], ids: Sequence[int], decoding: Decoding) -> tuple[list[int], bool]:
        """Return the ids of a response, and whether it was finished.

        Args:
            prompt: Token ids of the prompt.
            ids: The new token ids, as the engine returned them.
            decoding: How they were drawn. A response that still thinks after `max_thinking_tokens` is cut there.

        Returns:
            The ids before the first EOS token, and whether there is one after a response that was not cut.
        """
        response, ended = self.split_at_eos(ids)
        cut = cut_thoughts(self.tokenizer, prompt, response, decoding.max_thinking_tokens)
        return (response, ended) if cut is None else (cut, False)

    def text_of(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """Return a response as text; see `response_text`."""
        return response_text(self.tokenizer, prompt, response)

    def generated(self, prompt: Sequence[int], ids: Sequence[int], decoding: Decoding) -> Generated:
        """Return a response of an evaluation; see `response_of`."""
        response, ended = self.response_of(prompt, ids, decoding)
        count = len(response) + ended
        return Generated(self.text_of(prompt, response), count, not ended, ids=list(ids[:count]))


def eos_ids_of(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a response: the model's own, and the tokenizer's.

    Raises:
        InputError: There is none.
    """
    own = settings.eos_token_id
    ids = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    if not all(isinstance(token, int) for token in ids):
        raise InputError(f"`eos_token_id: {own}` in the model's generation_config.json is no token id")
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError("neither the model nor the tokenizer has an EOS token, so no response would end")
    return ids
