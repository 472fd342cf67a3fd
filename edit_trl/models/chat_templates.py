"""Conversations as text, by the chat template of a tokenizer: the one place that runs such a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError, brief, show
from edit_trl.common.hub_ids import is_hub_id
from edit_trl.common.options import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

Messages = Sequence[Mapping[str, Any]]

# What a template can raise, which is a small program: `raise_exception` and its own mistakes are TemplateErrors, and
# an expression in it may fail as in Python.
_EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

# The variables of a template that `render` or the tokenizer itself sets.
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return a conversation as text.

    Args:
        tokenizer: Has a chat template.
        messages: `role` and `content` of each, and other fields that the template may know. A field that is None
            counts as missing, since `datasets` gives every message the fields of all others.
        add_generation_prompt: Whether the text ends where the model begins to write.
        tools: The tools that the model may call, as JSON schemas.
        chat_template: A template to use instead of the tokenizer's own.
        chat_template_kwargs: Values of the template's variables, such as {"enable_thinking": False}.

    Raises:
        InputError: The template is broken, refuses the messages (with its words), leaves all of them out, or has no
            such variable.
    """
    values = {name: value for name, value in (chat_template_kwargs or {}).items() if value is not None}
    check_variables(tokenizer, values, chat_template)
    options = {"add_generation_prompt": add_generation_prompt, "tools": tools, "chat_template": chat_template, **values}
    messages = [
        {name: value for name, value in message.items() if value is not None or name == "content"}
        for message in messages
    ]
    text = _apply(tokenizer, messages, options)
    if not _says(text, messages) and _apply(tokenizer, _other(messages), options) == text:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} leaves out what the messages say: "
            f"{show(messages[-1]['content'])} becomes {show(text)}; use another template (`chat_template_path`)"
        )
    return text


def check_variables(
    tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any] | None, chat_template: str | None = None
) -> None:
    """Check that a chat template has the variables that `chat_template_kwargs` sets.

    Raises:
        InputError: It has not; names the nearest. Or see `check_values`.
    """
    check_values(values)
    template = chat_template or tokenizer.chat_template
    if values and template is None:
        raise InputError(f"`chat_template_kwargs`: {tokenizer.name_or_path} has no chat template; leave them out")
    if not values or not isinstance(template, str):
        return
    known = _variables(template) - {*tokenizer.special_tokens_map, *_RESERVED}
    for name in values:
        if name not in known:
            raise InputError(
                f"`chat_template_kwargs`: the chat template of {tokenizer.name_or_path} has no variable {name!r}"
                f"{nearest(name, known)}; it has: {', '.join(sorted(known)) or 'none'}"
            )


def check_values(values: Mapping[str, Any] | None) -> None:
    """Check that no value of a chat template's variables is a boolean as text, which a template does not read as one.

    Raises:
        InputError: One is; says how to write it.
    """
    for name, value in (values or {}).items():
        if isinstance(value, str) and value.lower() in ("true", "false"):
            raise InputError(
                f"`chat_template_kwargs`: {name!r} is the text {value!r}, which a chat template does not take for a "
                f"boolean; write {value.lower()} without quotation marks"
            )


@lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str]:
    """Return the variables that a template reads from outside, those for which it has a default included."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import loopcontrols
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Without the tags that mark what the assistant says, in templates for training.
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(plain)
    except TemplateSyntaxError:  # rendering names the line
        return frozenset()
    assigned = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    with_default = set(re.findall(r"(?<![\w.])(\w+)\s*(?:is\s+(?:not\s+)?defined|\|\s*default)", plain))
    return frozenset(find_undeclared_variables(tree) - (assigned - with_default))


def training_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the file name and the text of TRL's variant of a tokenizer's chat template for training.

    Such a variant keeps the thoughts of every turn. None where TRL has none, or the template needs none.
    """
    # TRL is slow to import, and few templates need it.
    from importlib import resources

    from jinja2 import TemplateError
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except (TemplateError, *_EXPRESSION_ERRORS):  # ValueError: a template that TRL does not know
        return None
    files = resources.files("trl").joinpath("chat_templates").iterdir()
    names = [file.name for file in files if file.name.endswith(".jinja") and file.read_text("utf-8") == template]
    return (names[0] if names else "template for training", template) if template else None


def _says(text: str, messages: Messages) -> bool:
    """Whether a text has the content of at least one message, if there is any."""
    contents = [content for message in messages if (content := (message.get("content") or "").strip())]
    return not contents or any(content in text for content in contents)


def _other(messages: Messages) -> Messages:
    """Return messages of the same roles that say something else."""
    return [{**message, "content": f"{message['content']} And?"} for message in messages]


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        text.encode()  # a lone surrogate is no text: it has no tokens
    except TemplateSyntaxError as error:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} is broken in line {error.lineno}: {brief(error)}"
        ) from error
    except (TemplateError, *_EXPRESSION_ERRORS) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses the messages ({roles}): {brief(error)}"
            f"{arguments_hint(messages) or '; change them'}, or use another template (`chat_template_path`)"
        ) from error
    return text


def arguments_hint(messages: Messages) -> str:
    """Return what to write instead of the JSON text that some endpoints give as arguments of tool calls; "" if none is.

    Some templates need a mapping there, and others would write the text in quotation marks.
    """
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    is_text = any(isinstance((call.get("function") or call).get("arguments"), str) for call in calls)
    return "; give the `arguments` of tool calls as a mapping instead of JSON text" if is_text else ""


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


def is_chat_model(model: str) -> bool:
    """Return whether a model has a chat template, as far as files on this machine tell, or else its name.

    Nothing is downloaded.

    Args:
        model: A path or Hub id.
    """
    files = [file for name in ("chat_template.jinja", "tokenizer_config.json") if (file := _local_file(model, name))]
    if files:
        return any(
            file.suffix == ".jinja" or '"chat_template"' in file.read_text(encoding="utf-8", errors="replace")
            for file in files
        )
    return re.search(r"(instruct|chat|[-_]it)\b", Path(model).name, flags=re.IGNORECASE) is not None


def _local_file(model: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = Path(model).expanduser() / name
    if path.is_file() or not is_hub_id(model):
        return path if path.is_file() else None
    cached = try_to_load_from_cache(model, name)
    return Path(cached) if isinstance(cached, str) else None
