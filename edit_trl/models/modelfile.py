"""The Modelfile of a model for Ollama: its chat template as a template of Go, and its EOS tokens.

Ollama does not run the Jinja template of a tokenizer. Here the tokenizer renders conversations whose contents are
known, and the texts between the contents become the Go template. Most templates (ChatML, those of Llama, Gemma, Phi
and others) write the same text between two messages wherever they stand, and only such templates are translated.

The syntax: docs/modelfile.md and docs/template.md of ollama/ollama, and its parser/parser.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError
from edit_trl.models.chat_templates import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE = "Modelfile"
GGUF_FILE = "model.gguf"
"""The name of the GGUF file, in the same folder, that a Modelfile names."""

_CONVERSATIONS = [["user", "assistant"] * turns + ["user"] for turns in range(3)]

Literals = dict[tuple[str, str], str]
"""The text between a message of one role and the next, by their roles; "" is before the first and after the last."""


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile.

    Attributes:
        text: Its content.
        notes: What a user should know of it, one sentence each.
    """

    text: str
    notes: tuple[str, ...] = ()


def ollama_modelfile(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Iterable[int] = ()) -> Modelfile:
    """Return the Modelfile of a model that is converted to `model.gguf` beside it.

    Args:
        tokenizer: The model's tokenizer. Without a chat template, Ollama sends the text of the user as it is.
        eos_token_ids: The tokens that end a response, besides the tokenizer's EOS token.
    """
    template, notes = _go_template(tokenizer)
    lines = [f"FROM ./{GGUF_FILE}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    ids = [token_id for token_id in dict.fromkeys([*eos_token_ids, tokenizer.eos_token_id]) if token_id is not None]
    tokens = [token for token in map(tokenizer.convert_ids_to_tokens, ids) if isinstance(token, str)]
    # The GGUF file names its EOS token too, so a token that cannot stand in a Modelfile ends responses all the same.
    lines += [f'PARAMETER stop "{token}"' for token in tokens if token and token.isprintable() and '"' not in token]
    return Modelfile("\n".join(lines) + "\n", tuple(notes))


def _go_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, list[str]]:
    """Return the chat template for Ollama, None if it cannot be expressed there, and notes for the user."""
    if tokenizer.chat_template is None:
        return "{{ .Prompt }}", ["the model has no chat template, so Ollama lets it complete the text of the user"]
    notes = []
    literals = _literals(tokenizer, [*_CONVERSATIONS, *(["system", *roles] for roles in _CONVERSATIONS)])
    if literals is None:
        literals = _literals(tokenizer, _CONVERSATIONS)
        notes.append("system messages are left out, since the chat template has no fixed place for them")
    if literals is None:
        return None, [
            "the chat template cannot be written as a TEMPLATE of Ollama, which then takes the one that it knows for "
            "the template in the GGUF file or, if it knows none, the bare text of the user; llama.cpp and vLLM run "
            "the chat template itself"
        ]
    if "strftime_now" in str(tokenizer.chat_template):
        notes.append("the chat template tells the date; the Modelfile keeps that of today")
    return _written(literals), notes


def _literals(tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Sequence[str]]) -> Literals | None:
    """Return the texts between messages; None if they depend on more than the two roles, or a role is refused.

    Args:
        tokenizer: Has a chat template.
        conversations: The roles of the messages of each conversation to render.
    """
    literals: Literals = {}
    for roles in conversations:
        contents = [f"Words {number} of the {role}." for number, role in enumerate(roles)]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            rest = render(tokenizer, messages, add_generation_prompt=True)
        except InputError:
            return None
        if tokenizer.bos_token and _adds_bos(tokenizer):
            rest = rest.removeprefix(tokenizer.bos_token)  # Ollama adds it, as the tokenizer does
        between = []
        for content in contents:
            text, found, rest = rest.partition(content)
            if not found:
                return None
            between.append(text)
        for pair, text in zip(pairwise(["", *roles, ""]), [*between, rest], strict=True):
            if literals.setdefault(pair, text) != text:
                return None
    return literals


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer("Words").input_ids[:1] == [tokenizer.bos_token_id]


def _written(literals: Literals) -> str:
    """Return the template of Go that writes a conversation with these texts between its messages."""
    before = {pair: _escaped(text) for pair, text in literals.items()}
    user = _if('eq $last "assistant"', before["assistant", "user"], before["", "user"])
    parts = ['{{ $last := "" }}{{ range .Messages }}']
    if ("", "system") in before:
        user = _if('eq $last "system"', before["system", "user"], user)
        parts.append(_message("system", before["", "system"]))
    parts += [_message("user", user), _message("assistant", before["user", "assistant"]), "{{ end }}"]
    # A conversation that ends with the assistant is continued.
    return "".join([*parts, _if('ne $last "assistant"', before["user", ""])])


def _message(role: str, before: str) -> str:
    return _if(f'eq .Role "{role}"', before + "{{ .Content }}{{ $last = .Role }}")


def _if(condition: str, text: str, otherwise: str = "") -> str:
    return f"{{{{ if {condition} }}}}{text}" + (f"{{{{ else }}}}{otherwise}" if otherwise else "") + "{{ end }}"


def _escaped(text: str) -> str:
    """Return a text as it stands in a template of Go within a Modelfile: read there, it is the same text."""
    # Braces and quotation marks are syntax there, and Ollama's parser drops characters that cannot be printed.
    if not re.search(r'[{}"]', text) and text.replace("\n", "").isprintable():
        return text
    characters = (c if c.isprintable() and c not in '"\\{}' else f"\\U{ord(c):08x}" for c in text)
    return f'{{{{ "{"".join(characters)}" }}}}'
