"""Whether a student's chat template holds the thoughts of chains, in the form in which rows have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import join_thoughts, split_thoughts
from edit_trl.data.conversation import Conversation, Opening
from edit_trl.models.chat_templates import check_variables, render
from edit_trl.teachers.chain_text import ThoughtsForm, message_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT = [{"role": "user", "content": "What is 2 + 2?"}]
_PROBE = join_thoughts("Two and two.", "The answer is 4.")


def check_thoughts_form(
    tokenizer: PreTrainedTokenizerBase, form: ThoughtsForm, chat_template_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Check that a chat template writes the thoughts of a message, or that training finds another way to give them.

    Raises:
        InputError: It leaves them out, and holds them in another form, which is named, or in none; or it has no such
            variable.
    """
    check_variables(tokenizer, chat_template_kwargs)
    if tokenizer.chat_template is None or _holds(tokenizer, form):
        return
    if others := [other for other in get_args(ThoughtsForm) if _holds(tokenizer, other)]:
        raise InputError(
            f"`thoughts_as: {form}`: the chat template of {tokenizer.name_or_path} leaves thoughts in this form out; "
            f"write `thoughts_as: {others[0]}`"
        )
    try:
        Conversation(Opening({"prompt": _PROMPT, "chosen": [message_of(_PROBE, form)]}, tokenizer), "chosen").text()
    except InputError as error:
        raise InputError(
            f"`thoughts: keep`: the chat template of {tokenizer.name_or_path} leaves thoughts out in every form; write "
            "`thoughts: drop` or `only`, or `conversational: false`"
        ) from error


def _holds(tokenizer: PreTrainedTokenizerBase, form: ThoughtsForm) -> bool:
    try:
        text = render(tokenizer, [*_PROMPT, message_of(_PROBE, form)])
    except InputError:
        return False
    return all(part in text for part in split_thoughts(_PROBE) if part is not None)
