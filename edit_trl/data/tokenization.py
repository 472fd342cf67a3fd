"""A row -> token ids and key-step masks.

Prompt and completion are split as in TRL 1.16's `DPOTrainer`, so that any preference baseline sees the same
tokens: prompt and prompt + chain are tokenized, and the completion starts where the two differ. Plain rows
get the EOS token; conversational rows get what the chat template puts at the end of a turn.

Some templates end the generation prompt with what they do not put before a given answer, such as the `<think>` of
reasoning models. TRL cuts it off, so that such a model would answer after a prompt it was not trained on. Here the
prompt stays whole, and the chain comes after it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from edit_trl.common.alignment import common_prefix
from edit_trl.common.errors import InputError
from edit_trl.data.row import chain_text, is_conversational
from edit_trl.key_steps import SIDES, Chain, KeyStepMethod, KeySteps, mark
from edit_trl.models.chat_templates import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "§"


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
) -> tuple[TokenizedDualCoT, dict[str, list[tuple[int, int]] | None]]:
    """Tokenize as `tokenize_dual_cot`, and return the tokens' [start, end) characters in each chain.

    Returns:
        The pair, and `chosen` and `rejected` -> a span per token, empty for tokens outside the text (EOS,
        template); None where the tokenizer has no offsets.
    """
    prompt, prompt_ids = _encode_prompt(row, tokenizer)
    chains = {side: _encode_chain(row, side, tokenizer, prompt, prompt_ids) for side in SIDES}
    start = min(common_prefix(prompt_ids, chain.ids) for chain in chains.values())
    if start == 0:
        raise InputError(
            f"the tokenized prompt {chain_text(row['prompt'])[:40]!r} shares no token with prompt + "
            "chain, so the first token of the completion cannot be predicted; use a tokenizer that "
            "adds a BOS token, or put a space or newline at the end of the prompt"
        )
    chosen, rejected = (
        replace(chain, ids=chain.ids[start:], offsets=chain.offsets and chain.offsets[start:])
        for chain in chains.values()
    )
    steps = _mark(chosen, rejected, key_step_method, key_step_seed)
    output: TokenizedDualCoT = {
        "prompt_ids": prompt_ids[:start],
        "chosen_ids": chosen.ids,
        "rejected_ids": rejected.ids,
        "chosen_key_mask": steps.chosen,
        "rejected_key_mask": steps.rejected,
        "chosen_fork_mask": steps.chosen_fork,
        "rejected_fork_mask": steps.rejected_fork,
        # A correct chain alone is paired with itself and has no fork; its last token stands in for it.
        "fork": min(common_prefix(chosen.ids, rejected.ids), len(chosen.ids) - 1),
    }
    return output, {"chosen": chosen.offsets, "rejected": rejected.offsets}


def generation_prompt_note(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Say how a row's prompt in training differs from what TRL makes of it, or from what a model is prompted with.

    Returns:
        A sentence for the user; None for a plain row, and with most chat templates.
    """
    if not is_conversational(row):
        return None
    prompt, prompt_ids = _encode_prompt(row, tokenizer)
    used = tokenize_dual_cot(row, tokenizer, key_step_method="edit")["prompt_ids"]
    if len(used) < len(prompt_ids):
        return (
            f"the end of the generation prompt, {tokenizer.decode(prompt_ids[len(used) :])!r}, is one token with the "
            "beginning of a chain, so the prompts of training end before it; those of a generation do not"
        )
    whole = render(tokenizer, [*row["prompt"], *row["chosen"]])
    lost = prompt[common_prefix(prompt, whole) :]
    return (
        f"the generation prompt ends with {lost!r}, which the chat template does not put before a given answer; the "
        "chains are trained after it, as they will be generated"
        if lost
        else None
    )


def _encode_prompt(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[int]]:
    """Return what a model is prompted with, as text and as token ids."""
    if not is_conversational(row):
        return row["prompt"], tokenizer(row["prompt"])["input_ids"]
    if tokenizer.chat_template is None:
        raise InputError(
            f"the rows are conversational but the tokenizer ({tokenizer.name_or_path}) has no chat "
            "template; use an instruct model, set `chat_template_path`, or give plain strings"
        )
    text = render(tokenizer, row["prompt"], add_generation_prompt=True)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def _encode_chain(
    row: Mapping[str, Any], side: str, tokenizer: "PreTrainedTokenizerBase", prompt: str, prompt_ids: list[int]
) -> Chain:
    """Encode a chain with its prompt, whose tokens have empty offsets."""
    chain, spans = chain_text(row[side]), row.get(f"{side}_key_spans")
    conversational = is_conversational(row)
    if conversational:
        text, begin, is_joined = _conversation(row, side, tokenizer, prompt)
    else:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer ({tokenizer.name_or_path}) has no EOS token, so the student could "
                "not learn to stop; set `eos_token`"
            )
        eos = "" if chain.endswith(tokenizer.eos_token) else tokenizer.eos_token
        text, begin, is_joined = prompt + chain + eos, len(prompt), False
    ids, places = _encode(text, tokenizer, special=not conversational)
    if (is_joined or begin > len(prompt)) and ids[: len(prompt_ids)] != prompt_ids:
        # What the template put between them forms a token with the end of the prompt: the prompt stays whole.
        ids, places = _encode(text[len(prompt) :], tokenizer, special=False)
        ids = prompt_ids + ids
        places = places and [(0, 0)] * len(prompt_ids) + [(a + len(prompt), b + len(prompt)) for a, b in places]
    # Templates may strip the end of the text, too.
    stop = begin + len(chain.rstrip())
    end = stop + common_prefix(text[stop:], chain[len(chain.rstrip()) :])
    offsets = places and [
        (max(a, begin) - begin, min(b, end) - begin) if a < end and b > begin else (0, 0) for a, b in places
    ]
    return Chain(chain, ids, offsets, spans)


def _encode(
    text: str, tokenizer: "PreTrainedTokenizerBase", *, special: bool
) -> tuple[list[int], list[tuple[int, int]] | None]:
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast)
    return encoded["input_ids"], encoded["offset_mapping"] if tokenizer.is_fast else None


def _conversation(
    row: Mapping[str, Any], side: str, tokenizer: "PreTrainedTokenizerBase", prompt: str
) -> tuple[str, int, bool]:
    """Return the text of a conversation, which begins with its prompt where the template allows it.

    Returns:
        The text, the place in it where the chain begins, and whether the text was joined here, of the prompt and
        what the template makes of the chain.
    """
    text = render(tokenizer, [*row["prompt"], *row[side]])
    bare, chain = render(tokenizer, row["prompt"]), chain_text(row[side])
    stripped = chain.strip()  # templates may strip the text
    indent = len(chain) - len(chain.lstrip())
    # Templates may render the prompt alone differently. The search starts where both still agree, so that a chain
    # repeated in the prompt is not taken for the answer.
    start = text.find(stripped, common_prefix(bare, text))
    if text.startswith(prompt) and start >= 0:
        return text, start - indent, False
    # Any other answer shows what the template puts before and after one.
    probe = render(tokenizer, [*row["prompt"], {"role": "assistant", "content": _PROBE}])
    shared = min(common_prefix(prompt, text), common_prefix(prompt, probe))
    opening = prompt[shared:].strip()
    if opening and stripped.startswith(opening):  # the chain begins with the end of the prompt, such as <think>
        rest = stripped[len(opening) :]
        rest = rest.removeprefix(prompt[len(prompt.rstrip()) :])
        begin = len(prompt) + len(rest) - len(stripped) - indent
        return prompt + rest + probe[probe.rindex(_PROBE) + len(_PROBE) :], begin, True
    if start < 0:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} rewrites the assistant's text "
            f"({side}: {chain[:40]!r}), so key steps cannot be placed on its tokens; use another "
            "template (`chat_template_path`) or plain strings"
        )
    cut = min(shared, start)
    return prompt + text[cut:], len(prompt) + start - cut - indent, True


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
    if chain.key_spans[-1][1] >= len(chain.text.rstrip()):
        last = max(i for i, (start, end) in enumerate(chain.offsets) if start < end)
        mask[last + 1 :] = [True] * (len(mask) - last - 1)
    return mask


def is_alone(row: Mapping[str, Any]) -> bool:
    """Return whether a pair (see `edit_trl.data.row.pairs_of`) is a correct chain alone."""
    return chain_text(row["chosen"]) == chain_text(row["rejected"])
