"""Responses as token ids -> text, where tokens may mark the thoughts of a reasoning model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edit_trl.common.thoughts import answer_part, join_thoughts, opens_thoughts, split_thoughts, thoughts_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
