"""A row -> token ids and key-step masks.

Prompt and completion are split as in TRL 1.16's `DPOTrainer`, so that any preference baseline sees the same
tokens: prompt and prompt + chain are tokenized, and the completion starts where the two differ. Plain rows
get the EOS token; conversational rows get what the chat template puts at the end of a turn.

Some templates end the generation prompt with what they do not put before a given answer, such as the `<think>` of
reasoning models. TRL cuts it off, so that such a model would answer after a prompt it was not trained on. Here the
prompt stays whole, and the chain comes after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from edit_trl.common.alignment import common_prefix
from edit_trl.common.errors import InputError
from edit_trl.common.spans import Span
from edit_trl.data.chains import Place
from edit_trl.data.conversation import Conversation, Opening, RenderedChain
from edit_trl.data.row import chain_text, is_conversational, template_options
from edit_trl.key_steps import SIDES, Chain, KeyStepMethod, KeySteps, mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizedDualCoT(TypedDict):
    """One pair as token ids: `*_ids` are completions with EOS, masks have one bool per completion token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_key_mask: list[bool]
    rejected_key_mask: list[bool]
    chosen_fork_mask: list[bool]
    rejected_fork_mask: list[bool]
    fork: int


TokenizedRow = tuple[TokenizedDualCoT, dict[str, Sequence[Span] | None], list[str]]
"""A tokenized pair, its offsets and notes: see `tokenize_with_notes`."""
Encoding = tuple[list[int], list[Span] | None]
"""Token ids, and the [start, end) characters of each token if the tokenizer gives them."""
_Result = TypeVar("_Result")


def tokenize_dual_cot(
    row: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key_step_method: KeyStepMethod = "words",
    key_step_seed: int = 0,
) -> TokenizedDualCoT:
    """Tokenize a dual CoT and mark its key steps.

    Args:
        row: A dual CoT, plain or conversational (see `edit_trl.data.dual_cots`).
        tokenizer: Any tokenizer; the methods that mark text need the offsets of a fast one.
        key_step_method: How key steps are found (see `edit_trl.key_steps`).
        key_step_seed: Seed of the positions that the method `random` draws.

    Returns:
        Ids, key masks, the masks limited to the step in which the chains part (`*_fork_mask`) and
        the index of the first completion token in which they differ (`fork`).

    Raises:
        InputError: The tokenizer lacks what the row or the method needs (a chat template, an EOS
            token, offsets), or prompt and completion cannot be told apart as tokens.
    """
    return tokenize_with_offsets(row, tokenizer, key_step_method=key_step_method, key_step_seed=key_step_seed)[0]


def tokenize_with_offsets(
    row: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key_step_method: KeyStepMethod = "words",
    key_step_seed: int = 0,
) -> tuple[TokenizedDualCoT, dict[str, Sequence[Span] | None]]:
    """Tokenize as `tokenize_dual_cot`, and return the tokens' [start, end) characters in each chain.

    Returns:
        The pair, and `chosen` and `rejected` -> a span per token, empty for tokens outside the text (EOS,
        template); None where the tokenizer has no offsets.
    """
    output, offsets, _ = tokenize_with_notes(
        row, tokenizer, key_step_method=key_step_method, key_step_seed=key_step_seed
    )
    return output, offsets


def tokenize_with_notes(
    row: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key_step_method: KeyStepMethod = "words",
    key_step_seed: int = 0,
) -> TokenizedRow:
    """Tokenize as `tokenize_with_offsets`, and say how the text of a conversation differs from TRL's.

    Returns:
        Also sentences for the user: what the text of training has otherwise than TRL's, or than what a model is
        prompted with. There are none for plain rows, and with most chat templates.
    """
    [tokenized] = tokenize_rows([row], tokenizer, key_step_method=key_step_method, key_step_seed=key_step_seed)
    if isinstance(tokenized, InputError):
        raise tokenized
    return tokenized


def tokenize_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key_step_method: KeyStepMethod = "words",
    key_step_seed: int = 0,
) -> Iterator[TokenizedRow | InputError]:
    """Tokenize rows as `tokenize_with_notes`, the texts of all of them in one call, which is faster.

    Yields:
        For each row what `tokenize_with_notes` returns, or the error that it raises.
    """
    rendered = [_or_error(_render_pair, row, tokenizer) for row in rows]
    texts: dict[bool, list[str]] = {True: [], False: []}
    for row, pair in zip(rows, rendered, strict=True):
        if not isinstance(pair, InputError):
            texts[is_conversational(row)] += [pair[0].prompt, pair[0].text, pair[1].text]
    encodings = {chat: _encode(of_kind, tokenizer, special=not chat) for chat, of_kind in texts.items()}
    for row, pair in zip(rows, rendered, strict=True):
        if isinstance(pair, InputError):
            yield pair
        else:
            encoded = encodings[is_conversational(row)]
            yield _or_error(_tokenize_pair, row, tokenizer, pair, encoded, key_step_method, key_step_seed)


def _or_error(function: Callable[..., _Result], *arguments: Any) -> _Result | InputError:
    """Return the result of a function, or the InputError that it raises."""
    try:
        return function(*arguments)
    except InputError as error:
        return error


def _tokenize_pair(
    row: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    rendered: tuple[RenderedChain, RenderedChain],
    encoded: Mapping[str, Encoding],
    method: KeyStepMethod,
    seed: int,
) -> TokenizedRow:
    """Mark the key steps of a pair and split its prompt from its completions, given the tokens of its texts."""
    prompt_ids, _ = encoded[rendered[0].prompt]
    chains = [
        _encode_chain(row, side, tokenizer, text, prompt_ids, encoded[text.text])
        for side, text in zip(SIDES, rendered, strict=True)
    ]
    start = min(common_prefix(prompt_ids, chain.ids) for chain in chains)
    if start == 0:
        raise InputError(
            f"the tokenized prompt {rendered[0].prompt[:40]!r} shares no token with prompt + "
            "chain, so the first token of the completion cannot be predicted; use a tokenizer that "
            "adds a BOS token, or put a space or newline at the end of the prompt"
        )
    chosen, rejected = (
        replace(chain, ids=chain.ids[start:], offsets=chain.offsets and chain.offsets[start:]) for chain in chains
    )
    steps = _mark(chosen, rejected, method, seed)
    output: TokenizedDualCoT = {
        "prompt_ids": prompt_ids[:start],
        "chosen_ids": list(chosen.ids),
        "rejected_ids": list(rejected.ids),
        "chosen_key_mask": steps.chosen,
        "rejected_key_mask": steps.rejected,
        "chosen_fork_mask": steps.chosen_fork,
        "rejected_fork_mask": steps.rejected_fork,
        # A correct chain alone is paired with itself and has no fork; its last token stands in for it.
        "fork": min(common_prefix(chosen.ids, rejected.ids), len(chosen.ids) - 1),
    }
    offsets = {"chosen": chosen.offsets, "rejected": rejected.offsets}
    lost = str(tokenizer.decode(prompt_ids[start:])) if start < len(prompt_ids) else ""
    return output, offsets, _notes(row, rendered, lost)


def _notes(row: Mapping[str, Any], rendered: Sequence[RenderedChain], lost: str) -> list[str]:
    """Return the notes of both texts; `lost` is the end of the prompt that is no part of the training text."""
    notes = list(dict.fromkeys(text.note for text in rendered if text.note))
    if is_conversational(row) and _has_null(template_options(row)["tools"]):
        notes.append(
            "`tools` holds null values, which a chat template writes into the prompt; where a dataset filled them in, "
            "give the tools as JSON text"
        )
    if lost and is_conversational(row) and all(text.text.startswith(text.prompt) for text in rendered):
        notes.append(
            f"the end of the prompt, {lost!r}, is one token with the beginning of a chain, so the prompts of training "
            "end before it; those of a generation do not"
        )
    return notes


def _has_null(value: Any) -> bool:
    """Whether a mapping in a nested value has a value of None."""
    if isinstance(value, Mapping):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _render_pair(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> tuple[RenderedChain, RenderedChain]:
    """Return both chains of a pair with their prompt."""
    prefix = row.get("prefix") or ""
    # A prefix stands before both chains, or is the beginning of both.
    is_before = not all(chain_text(row[side]).startswith(prefix) for side in SIDES)
    if not is_conversational(row):
        given = row["prompt"] + (prefix if is_before else "")
        prompt = row["prompt"] + prefix
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer ({tokenizer.name_or_path}) has no EOS token, so the student could "
                "not learn to stop; set `eos_token`"
            )
        eos = tokenizer.eos_token
        return _plain_text(given, prompt, row["chosen"], eos), _plain_text(given, prompt, row["rejected"], eos)
    if tokenizer.chat_template is None:
        raise InputError(
            f"the rows are conversational but the tokenizer ({tokenizer.name_or_path}) has no chat "
            "template; use an instruct model, set `chat_template_path`, or give plain strings"
        )
    opening = Opening(row, tokenizer)
    chosen, rejected = (Conversation(opening, side, prefix if is_before else "").text() for side in SIDES)
    if prefix:
        chosen, rejected = (_after_prefix(text, len(prefix), is_before) for text in (chosen, rejected))
    return chosen, rejected


def _plain_text(given: str, prompt: str, chain: str, eos: str) -> RenderedChain:
    text = given + chain + ("" if chain.endswith(eos) else eos)
    return RenderedChain(text, prompt, [Place(len(given), len(given) + len(chain), 0)])


def _after_prefix(text: RenderedChain, length: int, is_before: bool) -> RenderedChain:
    """Return a text whose prompt goes on to the end of a prefix of the chain.

    Args:
        text: The text of the chain, its prefix included.
        length: The number of characters of the prefix.
        is_before: Whether the prefix stands before the chain of the row, rather than at its beginning.
    """
    inside = (p for p in text.places if p.of_chain + p.end - p.start > length)
    first = next(inside, text.places[-1])
    cut = first.start + max(0, length - first.of_chain)
    places = [
        Place(max(p.start, cut), p.end, p.of_chain + max(0, cut - p.start) - (length if is_before else 0))
        for p in text.places
        if p.end > cut
    ]
    return replace(text, prompt=text.text[:cut], places=places)


def _encode_chain(
    row: Mapping[str, Any],
    side: str,
    tokenizer: "PreTrainedTokenizerBase",
    text: RenderedChain,
    prompt_ids: list[int],
    encoding: Encoding,
) -> Chain:
    """Return a chain with its prompt, whose tokens have empty offsets, given the tokens of their text."""
    ids, places = encoding
    is_apart = text.is_joined or text.places[0].start > len(text.prompt)
    if is_apart and ids[: len(prompt_ids)] != prompt_ids:
        # What the template put between them forms a token with the end of the prompt: the prompt stays whole.
        length = len(text.prompt)
        rest = text.text[length:]
        ids, places = _encode([rest], tokenizer, special=False)[rest]
        ids = prompt_ids + ids
        places = places and [(0, 0)] * len(prompt_ids) + [(a + length, b + length) for a, b in places]
    offsets = places and _offsets(places, text.places)
    return Chain(chain_text(row[side]), ids, offsets, row.get(f"{side}_key_spans"))


def _offsets(tokens: Sequence[tuple[int, int]], places: Sequence[Place]) -> list[tuple[int, int]]:
    """Return the characters of a chain in each token, given their characters in the text; (0, 0) for tokens outside."""
    offsets = [(0, 0)] * len(tokens)
    for place in places:
        begin, stop, shift = place.start, place.end, place.of_chain - place.start
        offsets = [
            ((start if start > begin else begin) + shift, (end if end < stop else stop) + shift)
            if start < stop and end > begin
            else outside
            for (start, end), outside in zip(tokens, offsets, strict=True)
        ]
    return offsets


def _encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, special: bool) -> dict[str, Encoding]:
    """Return the tokens of each text."""
    if not texts:
        return {}
    texts = [*dict.fromkeys(texts)]
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=tokenizer.is_fast,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    offsets = encoded["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    return dict(zip(texts, zip(encoded["input_ids"], offsets, strict=True), strict=True))


def _mark(chosen: Chain, rejected: Chain, method: KeyStepMethod, seed: int) -> KeySteps:
    """Mark a pair, or a correct chain alone, which `pairs_of` pairs with itself."""
    if chosen.text != rejected.text:
        steps = mark(chosen, rejected, method, seed=seed)
        if chosen.offsets is None:  # nothing tells the text from EOS, which ends a completion and is no step
            for mask in (steps.chosen, steps.rejected, steps.chosen_fork, steps.rejected_fork):
                mask[-1] = False
        return steps
    unmarked = [False] * len(chosen.ids)
    weighted = method == "spans" and chosen.key_spans
    marked = _weighted_alone(chosen) if weighted else unmarked
    return KeySteps(chosen=marked, rejected=unmarked, chosen_fork=unmarked, rejected_fork=unmarked)


def _weighted_alone(chain: Chain) -> list[bool]:
    """Mark the tokens of a correct chain alone that a data view weights by `chosen_key_weight`.

    No wrong chain marks what is shared, so the tokens that end the chain (EOS, template) go with its last
    character: a chain that is key as a whole includes its end, also where context weighs nothing.
    """
    mask = mark(chain, replace(chain, key_spans=[]), "spans").chosen
    assert chain.key_spans  # or there would be nothing to weight
    assert chain.offsets is not None  # `mark` refuses chains without
    if chain.key_spans[-1][1] >= len(chain.text.rstrip()):
        last = max(i for i, (start, end) in enumerate(chain.offsets) if start < end)
        mask[last + 1 :] = [True] * (len(mask) - last - 1)
    return mask


def is_alone(row: Mapping[str, Any]) -> bool:
    """Return whether a pair (see `edit_trl.data.row.pairs_of`) is a correct chain alone."""
    return chain_text(row["chosen"]) == chain_text(row["rejected"])
