"""Conversations as text, by the chat template of a tokenizer: the one place that runs such a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError, brief, show

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

Messages = Sequence[Mapping[str, str]]

# What a template can raise, which is a small program: `raise_exception` and its own mistakes are TemplateErrors, and
# an expression in it may fail as in Python.
_EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    """Return a conversation as text.

    Args:
        tokenizer: Has a chat template.
        messages: `role` and `content`, a text, of each.
        add_generation_prompt: Whether the text ends where the model begins to write.

    Raises:
        InputError: The template is broken, refuses the messages (with its words), or leaves all of them out.
    """
    text = _apply(tokenizer, messages, add_generation_prompt)
    if not _says(text, messages) and _apply(tokenizer, _other(messages), add_generation_prompt) == text:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} leaves out what the messages say: "
            f"{show(messages[-1]['content'])} becomes {show(text)}; use another template (`chat_template_path`)"
        )
    return text


def _says(text: str, messages: Messages) -> bool:
    """Whether a text has the content of at least one message, if there is any."""
    contents = [content for message in messages if (content := message["content"].strip())]
    return not contents or any(content in text for content in contents)


def _other(messages: Messages) -> Messages:
    """Return messages of the same roles that say something else."""
    return [{**message, "content": f"{message['content']} And?"} for message in messages]


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, object]], generation: bool) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=generation, tokenize=False)
        text.encode()  # a lone surrogate is no text: it has no tokens
    except TemplateSyntaxError as error:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} is broken in line {error.lineno}: {brief(error)}"
        ) from error
    except (TemplateError, *_EXPRESSION_ERRORS) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses the messages ({roles}): {brief(error)}; change "
            "them, or use another template (`chat_template_path`)"
        ) from error
    return text


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the chat template of a tokenizer, if it has one, can be read.

    Raises:
        InputError: It is broken; names the line.
    """
    from jinja2 import TemplateSyntaxError

    if tokenizer.chat_template is None:
        return
    try:
        render(tokenizer, [{"role": "user", "content": "Hello."}], add_generation_prompt=True)
    except InputError as error:  # it may refuse these messages and take others
        if isinstance(error.__cause__, TemplateSyntaxError | UnicodeError):
            raise


def share_template(processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a processor, with the processor's chat template, which the two may not share.

    A processor with a template of its own renders with it, in TRL as in vLLM; one without takes its tokenizer's.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if getattr(processing_class, "chat_template", None) is not None:
        tokenizer.chat_template = processing_class.chat_template
    return tokenizer
