"""A chain with its prompt as text, by the chat template of the student: what is trained, and where the chain stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edit_trl.common.alignment import common_prefix
from edit_trl.common.errors import InputError
from edit_trl.common.thoughts import (
    FIELDS,
    ends_with_no_thoughts,
    join_thoughts,
    opens_thoughts,
    split_thoughts,
    thoughts_of,
    thoughts_part,
)
from edit_trl.data.chains import Messages, Place, arguments_texts, find_places, messages_text, pieces_of
from edit_trl.data.row import template_options
from edit_trl.models.chat_templates import arguments_hint, render, training_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "§"
LOSES_THOUGHTS = "would lose the thoughts of the chains"
"""In the notes about chains that are given to a chat template in another way than as they are."""


@dataclass(frozen=True)
class RenderedChain:
    """A prompt with a chain, as text.

    Attributes:
        text: The whole text, which begins with the prompt.
        prompt: What the student is given.
        places: The characters of the text that are the chain's.
        is_joined: Whether the text is the prompt and what the template makes of the chain, joined here.
        note: How the text differs from what the tokenizer's own template makes of the row, if it does.
    """

    text: str
    prompt: str
    places: Sequence[Place]
    is_joined: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Opening:
    """The prompt of a conversational row, which both of its chains share, and the tokenizer that renders it.

    Attributes:
        row: The row.
        tokenizer: Has a chat template.
    """

    row: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def prompt(self) -> str:
        """What a model is prompted with."""
        return self.render([], add_generation_prompt=True)

    @cached_property
    def bare(self) -> str:
        """The messages of the prompt alone."""
        return self.render([])

    @cached_property
    def training(self) -> tuple[str, str] | None:
        """TRL's variant of the chat template for training: its name and its text; see `training_template`."""
        return training_template(self.tokenizer)

    @cached_property
    def _training_prompt(self) -> str:
        assert self.training is not None  # read only where an answer is rendered by the variant
        return self.render([], self.training[1], add_generation_prompt=True)

    def with_answer(self, answer: Messages, template: str | None) -> str:
        """Return the conversation with an answer, by the tokenizer's own chat template or its variant for training.

        The variant keeps the thoughts of earlier turns, which a model is not prompted with: it renders the answer, and
        the prompt stays as it is.
        """
        text = self.render(answer, template)
        if template is None or self._training_prompt == self.prompt:
            return text
        shared = common_prefix(self._training_prompt, text)
        lost = len(self._training_prompt) - shared
        if not self.prompt.endswith(self._training_prompt[shared:]):
            return text
        return self.prompt[: len(self.prompt) - lost] + text[shared:]

    def render(self, answer: Messages, template: str | None = None, *, add_generation_prompt: bool = False) -> str:
        """Return the conversation with an answer, by the tokenizer's own chat template or another one."""
        return render(
            self.tokenizer,
            [*self.row["prompt"], *answer],
            add_generation_prompt=add_generation_prompt,
            chat_template=template,
            **template_options(self.row),
        )


@dataclass(frozen=True)
class Conversation:
    """One side of a conversational row.

    Attributes:
        opening: The row and its prompt.
        side: `chosen` or `rejected`.
        prefix: Stands before the chain, in the same message.
    """

    opening: Opening
    side: str
    prefix: str = ""

    @cached_property
    def chain(self) -> Messages:
        """The messages of the chain, the first with the prefix."""
        first, *others = self.opening.row[self.side]
        return (
            [{**first, "content": self.prefix + (first["content"] or "")}, *others] if self.prefix else [first, *others]
        )

    @property
    def _template_name(self) -> str:
        return f"the chat template of {self.opening.tokenizer.name_or_path}"

    def text(self) -> RenderedChain:
        """Return the conversation as text.

        The messages are rendered as they are, as TRL renders them. Only where the template would lose the thoughts are
        they given in another way, of which the first that keeps them is taken (see `_forms`).

        Raises:
            InputError: The template refuses the messages, or leaves out or rewrites a part of the chain.
        """
        refusal: InputError | None = None
        for messages, template, note in self._forms():
            try:
                text = self._place(messages, template)
            except InputError as error:
                refusal = refusal or error
                continue
            if text is not None:
                return replace(text, note=note or text.note or self._quotation_note(text.text))
        if refusal is not None:
            raise refusal
        if continued := self._continued():
            return continued
        what = "thoughts or tool calls" if any(piece.parts for piece in pieces_of(self.chain)) else "text"
        raise InputError(
            f"{self._template_name} leaves out or rewrites the assistant's {what} "
            f"({self.side}: {messages_text(self.chain)[:40]!r}), so key steps cannot be placed on its tokens"
            f"{arguments_hint(self.chain)}; use another template (`chat_template_path`) or plain strings"
        )

    def _forms(self) -> Iterator[tuple[Messages, str | None, str | None]]:
        """Yield ways to give the chain to a template: messages, a template of TRL's, and a note for the user."""
        yield self.chain, None, None
        if not any(split_thoughts(messages_text([m])).thoughts for m in self.chain if m["role"] == "assistant"):
            return
        lost = f"{self._template_name} {LOSES_THOUGHTS}, so they are"
        own = next((name for name in FIELDS if any(message.get(name) for message in self.chain)), None)
        other_fields = [
            (_with_field(self.chain, name), None, f"{lost} given to it in `{name}`") for name in FIELDS if name != own
        ]
        name, training = self.opening.training or (None, None)
        if own:
            yield from other_fields
        if training:
            yield self.chain, training, f"{lost} rendered by TRL's {name}"
        if own:
            yield _as_text(self.chain), None, f"{lost} given to it as `<think>` text"
            if training:
                yield _as_text(self.chain), training, f"{lost} given as `<think>` text to TRL's {name}"
        else:
            yield from other_fields

    def _place(self, messages: Messages, template: str | None) -> RenderedChain | None:
        """Return the conversation as text; None where it lacks a part of the chain or its thoughts."""
        prompt, bare = self.opening.prompt, self.opening.bare
        text = self.opening.with_answer(messages, template)
        # Templates may render the prompt alone differently. The search starts where both still agree, so that a chain
        # repeated in the prompt is not taken for the answer.
        places = find_places(pieces_of(self.chain), text, common_prefix(bare, text))
        has_thoughts = bool(split_thoughts(messages_text(self.chain)).thoughts)
        # Thoughts after empty ones, which a template that knows them as a field alone has written, are an answer.
        if not places or (has_thoughts and ends_with_no_thoughts(text[: places[0].start])):
            return None
        if text.startswith(prompt):
            return RenderedChain(text, prompt, places)
        lost = prompt[common_prefix(prompt, text) :]
        if common_prefix(prompt, text) < common_prefix(prompt, bare):
            note = (
                "the chat template renders turns of the prompt in another way once a chain follows, such as without "
                "their thoughts; these turns are trained on as part of the chains, as in TRL"
            )
            return RenderedChain(text, prompt, places, note=note)
        if thoughts_part(lost) and not opens_thoughts(prompt) and has_thoughts:
            note = (
                f"the chains have thoughts, and the generation prompt ends with {lost!r}, as if they had none, so that "
                "this end is left out of training, as in TRL; `chat_template_kwargs` may switch thoughts on"
            )
            return RenderedChain(text, prompt, places, note=note)
        if continued := self._continued(template):
            return continued
        shared = common_prefix(prompt, text)
        cut = min(shared, common_prefix(prompt, self._probe(template)), places[0].start)
        if places[0].start < shared and opens_thoughts(text[:shared]):  # the prompt has opened the chain's thoughts
            cut = shared
        # Thoughts that the prompt opens and the chain does not have end before it begins.
        closing = "\n</think>\n\n" if opens_thoughts(prompt) and "</think>" not in text[cut:] else ""
        moved = len(prompt) + len(closing) - cut
        places = [Place(max(p.start, cut) + moved, p.end + moved, p.of_chain + max(0, cut - p.start)) for p in places]
        ended = ", and their thoughts end at once, since they have none" if closing else ""
        note = (
            f"the generation prompt ends with {prompt[cut:]!r}, which the chat template does not put before a given "
            f"answer; the chains are trained after it, as they will be generated{ended}"
        )
        return RenderedChain(prompt + closing + text[cut:], prompt, places, is_joined=True, note=note)

    def _continued(self, template: str | None = None) -> RenderedChain | None:
        """Return the text of a chain that begins as its prompt ends, such as with <think>, or that goes on from there.

        None for any other chain.
        """
        prompt, probe, chain = self.opening.prompt, self._probe(template), messages_text(self.chain)
        opening, stripped = prompt[common_prefix(prompt, probe) :].strip(), chain.strip()
        if not opening or len(self.chain) > 1:
            return None
        thoughts = thoughts_part(stripped)
        if stripped.startswith(opening):
            rest = stripped[len(opening) :].removeprefix(prompt[len(prompt.rstrip()) :])
        elif thoughts and not thoughts[0] and opens_thoughts(prompt):  # thoughts that have their closing tag alone
            rest = stripped
        else:
            return None
        place = Place(len(prompt), len(prompt) + len(rest), chain.index(stripped) + len(stripped) - len(rest))
        return RenderedChain(
            prompt + rest + probe[probe.rindex(_PROBE) + len(_PROBE) :], prompt, [place], is_joined=True
        )

    def _quotation_note(self, text: str) -> str | None:
        """Return a note where the template writes arguments that are JSON text in quotation marks."""
        if all(arguments in text for arguments in arguments_texts(self.chain)):
            return None
        return (
            f"{self._template_name} writes the `arguments` of tool calls, which are JSON text, as a string in "
            f"quotation marks, as with TRL{arguments_hint(self.chain)}"
        )

    def _probe(self, template: str | None) -> str:
        """Return the conversation with any other answer, which shows what the template puts before and after one."""
        return self.opening.with_answer([{"role": "assistant", "content": _PROBE}], template)


def _without_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in FIELDS}


def _with_field(messages: Messages, name: str) -> Messages:
    """Return messages whose thoughts stand in a field."""
    changed = []
    for message in messages:
        said = messages_text([{**message, "tool_calls": None}]) if message["role"] == "assistant" else ""
        parts = split_thoughts(said)
        fields = {"content": parts.answer or "", name: parts.thoughts} if parts.thoughts else {}
        changed.append(_without_fields(message) | fields)
    return changed


def _as_text(messages: Messages) -> Messages:
    """Return messages whose thoughts stand in their content."""
    return [
        _without_fields(message) | {"content": join_thoughts(thoughts_of(message), message.get("content") or "")}
        if thoughts_of(message)
        else message
        for message in messages
    ]
