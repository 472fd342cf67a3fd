"""A row -> token ids and key-step masks.

Prompt and completion are split as in TRL 1.16's `DPOTrainer`, so that any preference baseline sees the same
tokens: prompt and prompt + chain are tokenized, and the completion starts where the two differ. Plain rows
get the EOS token; conversational rows get what the chat template puts at the end of a turn.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from edit_trl.common.alignment import common_prefix
from edit_trl.common.errors import InputError
from edit_trl.data.row import chain_text, is_conversational
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
    prompt_ids = _encode_prompt(row, tokenizer)
    chains = {side: _encode_chain(row, side, tokenizer) for side in SIDES}
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


def _encode_prompt(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if not is_conversational(row):
        return tokenizer(row["prompt"])["input_ids"]
    if tokenizer.chat_template is None:
        raise InputError(
            f"the rows are conversational but the tokenizer ({tokenizer.name_or_path}) has no chat "
            "template; use an instruct model, set `chat_template_path`, or give plain strings"
        )
    text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _encode_chain(row: Mapping[str, Any], side: str, tokenizer: "PreTrainedTokenizerBase") -> Chain:
    """Encode a chain with its prompt, whose tokens have empty offsets."""
    chain, spans = chain_text(row[side]), row.get(f"{side}_key_spans")
    if is_conversational(row):
        text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
        begin, special = _chain_start(text, row, side, tokenizer), False
    else:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer ({tokenizer.name_or_path}) has no EOS token, so the student could "
                "not learn to stop; set `eos_token`"
            )
        eos = "" if chain.endswith(tokenizer.eos_token) else tokenizer.eos_token
        text, begin, special = row["prompt"] + chain + eos, len(row["prompt"]), True
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast)
    end, offsets = begin + len(chain), None
    if tokenizer.is_fast:
        offsets = [
            (max(a, begin) - begin, min(b, end) - begin) if a < end and b > begin else (0, 0)
            for a, b in encoded["offset_mapping"]
        ]
    return Chain(chain, encoded["input_ids"], offsets, spans)


def _chain_start(text: str, row: Mapping[str, Any], side: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return where the assistant's text begins in the rendered conversation."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False)
    chain = chain_text(row[side])
    # Templates may strip the text and may render the prompt alone differently. The search starts where both
    # still agree, so that a chain repeated in the prompt is not taken for the answer.
    start = text.find(chain.strip(), common_prefix(prompt, text))
    if start < 0:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} rewrites the assistant's text "
            f"({side}: {chain[:40]!r}), so key steps cannot be placed on its tokens; use another "
            "template (`chat_template_path`) or plain strings"
        )
    return start - (len(chain) - len(chain.lstrip()))


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
