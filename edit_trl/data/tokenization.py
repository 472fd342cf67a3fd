"""A row -> token ids and key-step masks (L1).

Prompt and completion are split as TRL 1.16's `DPOTrainer` does it, so that any preference baseline
sees the same tokens: prompt and prompt + chain are tokenized, and the completion starts where they
part. Plain rows get the EOS token; conversational ones what the chat template ends a turn with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from edit_trl.common.errors import InputError
from edit_trl.data.row import chain_text, is_conversational
from edit_trl.key_steps import (
    COUNTED_METHOD,
    TOKEN_METHODS,
    KeyStepMethod,
    fork_scope,
    key_spans,
    key_step_masks,
    masks_from_spans,
    random_masks,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizedDualCoT(TypedDict):
    """One pair as token ids. `*_ids` are completions, EOS included; masks are theirs."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_key_mask: list[bool]
    rejected_key_mask: list[bool]
    chosen_fork_mask: list[bool]
    rejected_fork_mask: list[bool]
    fork: int


@dataclass
class Completion:
    """A tokenized chain after its prompt.

    Attributes:
        ids: Token ids of prompt and completion.
        offsets: Per token, its [start, end) characters in the chain's text; empty for tokens outside
            it (prompt, EOS, template). None where the tokenizer has no offsets.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None


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
        tokenizer: Any tokenizer; the methods that mark text need a fast one, for its offsets.
        key_step_method: How key steps are found (see `edit_trl.key_steps`).
        key_step_seed: Of the positions that the method `random` draws.

    Returns:
        Ids, key masks, the masks limited to the step in which the chains part (`*_fork_mask`) and
        the index of the first completion token in which they differ (`fork`).

    Raises:
        InputError: The tokenizer lacks what the row or the method needs (a chat template, an EOS
            token, offsets), or prompt and completion cannot be told apart as tokens.
    """
    return tokenize_with_offsets(
        row, tokenizer, key_step_method=key_step_method, key_step_seed=key_step_seed
    )[0]


def tokenize_with_offsets(
    row: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key_step_method: KeyStepMethod = "words",
    key_step_seed: int = 0,
) -> tuple[TokenizedDualCoT, dict[str, list[tuple[int, int]] | None]]:
    """As `tokenize_dual_cot`, and for each side the tokens' [start, end) characters in the chain.

    Returns:
        The pair, and `chosen` and `rejected` -> a span per token, empty for tokens outside the text (EOS,
        template); None where the tokenizer has no offsets.
    """
    prompt_ids = _encode_prompt(row, tokenizer)
    sides = {side: _encode_chain(row, side, tokenizer) for side in ("chosen", "rejected")}
    start = min(_common_prefix(prompt_ids, side.ids) for side in sides.values())
    if start == 0:
        raise InputError(
            f"the tokenized prompt {chain_text(row['prompt'])[:40]!r} shares no token with prompt + "
            "chain, so the first token of the completion cannot be predicted; use a tokenizer that "
            "adds a BOS token, or put a space or newline at the end of the prompt"
        )
    ids = {name: side.ids[start:] for name, side in sides.items()}
    offsets = {name: None if side.offsets is None else side.offsets[start:] for name, side in sides.items()}
    # What `random` draws is as many as another method marks.
    counted = COUNTED_METHOD if key_step_method == "random" else key_step_method
    key_masks = _key_masks(row, ids, offsets, counted)
    # A correct chain alone is paired with itself and has no fork; its last token stands in for it.
    fork = min(_common_prefix(*ids.values()), len(ids["chosen"]) - 1)
    output: TokenizedDualCoT = {"prompt_ids": prompt_ids[:start], "fork": fork}
    for name in sides:
        output[f"{name}_ids"] = ids[name]
        output[f"{name}_key_mask"] = key_masks[name]
        output[f"{name}_fork_mask"] = _fork_mask(row, name, key_masks[name], offsets[name])
        if key_step_method == "random":
            masks = (output[f"{name}_key_mask"], output[f"{name}_fork_mask"])
            chains = f"{chain_text(row['chosen'])} {chain_text(row['rejected'])}"
            drawn = random_masks(masks, offsets[name], f"{key_step_seed} {name} {chains}")
            output[f"{name}_key_mask"], output[f"{name}_fork_mask"] = drawn
    return output, offsets


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


def _encode_chain(row: Mapping[str, Any], side: str, tokenizer: "PreTrainedTokenizerBase") -> Completion:
    chain = chain_text(row[side])
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
    if not tokenizer.is_fast:
        return Completion(encoded["input_ids"], None)
    end = begin + len(chain)
    offsets = [
        (max(a, begin) - begin, min(b, end) - begin) if a < end and b > begin else (0, 0)
        for a, b in encoded["offset_mapping"]
    ]
    return Completion(encoded["input_ids"], offsets)


def _chain_start(text: str, row: Mapping[str, Any], side: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Where the assistant's text begins in the rendered conversation."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False)
    chain = chain_text(row[side])
    # Templates may strip the text, and may render the prompt alone differently; search from the
    # point where both agree, so that a chain repeated in the prompt is not taken for the answer.
    start = text.find(chain.strip(), _common_prefix(prompt, text))
    if start < 0:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} rewrites the assistant's text "
            f"({side}: {chain[:40]!r}), so key steps cannot be placed on its tokens; use another "
            "template (`chat_template_path`) or plain strings"
        )
    return start - (len(chain) - len(chain.lstrip()))


def _key_masks(
    row: Mapping[str, Any],
    ids: dict[str, list[int]],
    offsets: dict[str, list[tuple[int, int]] | None],
    method: KeyStepMethod,
) -> dict[str, list[bool]]:
    if _is_alone(row):
        masks = {name: [False] * len(of_side) for name, of_side in ids.items()}
        if method == "spans" and row.get("chosen_key_spans"):
            masks["chosen"] = _weighted_alone(row, offsets["chosen"])
        return masks
    if method in TOKEN_METHODS:
        steps = key_step_masks(ids["chosen"], ids["rejected"], method=method)
        masks = {"chosen": steps.chosen, "rejected": steps.rejected}
        # EOS and the template's tokens are no steps, also where an alignment of ids would have it so.
        return {name: _inside_chain(mask, offsets[name]) for name, mask in masks.items()}
    if offsets["chosen"] is None:
        raise _no_offsets(method)
    spans = key_spans(
        chain_text(row["chosen"]),
        chain_text(row["rejected"]),
        method,
        chosen_spans=row.get("chosen_key_spans"),
        rejected_spans=row.get("rejected_key_spans"),
    )
    sides = ("chosen", "rejected")
    return {name: masks_from_spans(s, offsets[name]) for name, s in zip(sides, spans, strict=True)}


def _fork_mask(
    row: Mapping[str, Any], side: str, mask: list[bool], offsets: list[tuple[int, int]] | None
) -> list[bool]:
    if _is_alone(row):
        return [False] * len(mask)
    # Without offsets there are no sentences: the fork is then the run of key tokens it starts.
    return _first_run(mask) if offsets is None else fork_scope(mask, offsets, chain_text(row[side]))


def _weighted_alone(row: Mapping[str, Any], offsets: list[tuple[int, int]] | None) -> list[bool]:
    """The key tokens of a correct chain alone, given by its spans: what a data view weighs otherwise.

    No wrong chain marks what is shared, so the tokens that end the chain (EOS, template) go with its last
    character: a chain that is key as a whole is so with its end, and ends also where context weighs nothing.
    """
    if offsets is None:
        raise _no_offsets("spans")
    chain = chain_text(row["chosen"])
    spans, _ = key_spans(chain, "", "spans", chosen_spans=row["chosen_key_spans"], rejected_spans=[])
    mask = masks_from_spans(spans, offsets)
    if spans[-1][1] >= len(chain.rstrip()):
        last = max(i for i, (start, end) in enumerate(offsets) if start < end)
        mask[last + 1 :] = [True] * (len(mask) - last - 1)
    return mask


def _no_offsets(method: str) -> InputError:
    return InputError(
        f"key_step_method={method!r} places key steps by character offsets, which this slow "
        "tokenizer does not give; use a fast tokenizer or key_step_method='edit'"
    )


def _is_alone(row: Mapping[str, Any]) -> bool:
    """Whether a pair (see `pairs_of`) is a correct chain alone."""
    return chain_text(row["chosen"]) == chain_text(row["rejected"])


def _inside_chain(mask: list[bool], offsets: list[tuple[int, int]] | None) -> list[bool]:
    if offsets is None:
        return [*mask[:-1], False]
    return [key and start < end for key, (start, end) in zip(mask, offsets, strict=True)]


def _first_run(mask: list[bool]) -> list[bool]:
    start = mask.index(True) if True in mask else len(mask)
    end = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
    return [start <= i < end for i in range(len(mask))]


def _common_prefix(first, second) -> int:
    """Number of leading items two sequences share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
