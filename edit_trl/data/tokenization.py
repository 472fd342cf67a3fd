"""A row -> token ids and key-step masks (L1).

Prompt and completion are split as TRL 1.16's `DPOTrainer` does it, so that any preference baseline
sees the same tokens: prompt and prompt + chain are tokenized, and the completion starts where they
part. Plain rows get the EOS token; conversational ones what the chat template ends a turn with.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import edit_trl.common.steps
import edit_trl.data.row
import edit_trl.key_steps
from edit_trl.common.errors import InputError
from edit_trl.data.row import chain_text, is_conversational, pairs_of
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
    from datasets import Dataset
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


@dataclass
class PreparationReport:
    """What became of the pairs of a dataset.

    Attributes:
        rows: Pairs before; a row with several wrong chains is several.
        kept: Pairs after.
        dropped: Why the others went, with their numbers: `too long`, `no key token`, `key fraction`.
        truncated: Pairs cut to `max_length`.
        truncated_key_tokens: Key tokens that were cut off with them.
        key_fraction: Mean share of key tokens in the kept pairs' completions.
    """

    rows: int
    kept: int
    dropped: dict[str, int]
    truncated: int = 0
    truncated_key_tokens: int = 0
    key_fraction: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.kept} of {self.rows} pairs kept"]
        parts += [f"{count} dropped: {reason}" for reason, count in self.dropped.items()]
        if self.truncated:
            parts.append(f"{self.truncated} truncated, {self.truncated_key_tokens} key tokens cut off")
        parts.append(f"key fraction {self.key_fraction:.2f}")
        return "; ".join(parts)


@dataclass(frozen=True)
class RowPreparation:
    """How rows are tokenized, cut and judged; the function that `Dataset.map` applies.

    Attributes:
        tokenizer: The student's.
        key_step_method: See `tokenize_dual_cot`.
        max_length: Most tokens of prompt and longer chain; None for no limit.
        truncate_long: Cut longer rows instead of dropping them.
        max_key_fraction: Drop pairs with a larger share of key tokens.
        key_step_seed: See `tokenize_dual_cot`.
    """

    tokenizer: "PreTrainedTokenizerBase"
    key_step_method: KeyStepMethod = "words"
    max_length: int | None = None
    truncate_long: bool = False
    max_key_fraction: float = 1.0
    key_step_seed: int = 0

    def __call__(self, rows: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """Prepare some rows, given as columns; a row with several wrong chains becomes several."""
        pairs = [
            self._prepare(pair, index)
            for index, *values in zip(indices, *rows.values(), strict=True)
            for pair in pairs_of(dict(zip(rows, values, strict=True)))
        ]
        return {column: [pair[column] for pair in pairs] for column in pairs[0]}

    def fingerprint(self, dataset: "Dataset") -> str:
        """What the outcome depends on: the rows, the settings, the tokenizer and this code.

        `datasets` would hash the tokenizer as an object, which changes as it is used.
        """
        from datasets.fingerprint import Hasher

        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        settings["tokenizer"] = _tokenizer_state(self.tokenizer)
        code = [Path(source).read_bytes() for source in _SOURCES]
        return Hasher.hash((dataset._fingerprint, settings, code))

    def _prepare(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        output: dict[str, Any] = tokenize_dual_cot(
            row, self.tokenizer, key_step_method=self.key_step_method, key_step_seed=self.key_step_seed
        )
        output |= {"row": index + 1, "row_id": row.get("id"), "truncated_key_tokens": -1}
        prompt = len(output["prompt_ids"])
        room = None if self.max_length is None else self.max_length - prompt
        longest = max(len(output["chosen_ids"]), len(output["rejected_ids"]))
        too_long = room is not None and longest > room
        if too_long and self.truncate_long and room > 0:
            output["truncated_key_tokens"] = _truncate(output, room)
        chains = [output["chosen_ids"], output["rejected_ids"]]
        # The name that transformers' length-grouping sampler reads.
        output["length"] = prompt + max(map(len, chains))
        output["prompt_length"] = prompt
        output["unique_length"] = prompt + sum(map(len, chains)) - _common_prefix(*chains)
        output["key_fraction"] = _key_fraction(output)
        output["problem"] = self._problem(output, room, too_long, _is_alone(row))
        return output

    def _problem(self, output: dict[str, Any], room: int | None, too_long: bool, alone: bool) -> str:
        if room is not None and room <= 0:
            return "prompt too long"
        if too_long and not self.truncate_long:
            return f"longer than max_length={self.max_length}"
        if output["key_fraction"] == 0 and not alone:
            return "no key token"
        if output["key_fraction"] > self.max_key_fraction:
            return f"key fraction over {self.max_key_fraction}"
        return ""


# The modules that decide what a prepared pair is: rows prepared by other code are not taken from the cache.
_SOURCES = (
    __file__,
    edit_trl.key_steps.__file__,
    edit_trl.common.steps.__file__,
    edit_trl.data.row.__file__,
)


def _tokenizer_state(tokenizer: "PreTrainedTokenizerBase") -> tuple:
    """All of a tokenizer that decides about ids, and nothing that changes with its use."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return type(tokenizer).__name__, state, special, tokenizer.chat_template


def _truncate(output: dict[str, Any], room: int) -> int:
    """Cut both completions to `room` tokens in place; return how many key tokens went."""
    lost = 0
    for side in ("chosen", "rejected"):
        lost += sum(output[f"{side}_key_mask"][room:])
        for name in ("ids", "key_mask", "fork_mask"):
            output[f"{side}_{name}"] = output[f"{side}_{name}"][:room]
    output["fork"] = min(output["fork"], len(output["chosen_ids"]) - 1)
    return lost


def _key_fraction(output: Mapping[str, Any]) -> float:
    masks = output["chosen_key_mask"] + output["rejected_key_mask"]
    return sum(masks) / len(masks)


def prepare_dual_cots(
    dataset: "Dataset",
    preparation: RowPreparation,
    *,
    name: str = "train",
    num_proc: int | None = None,
) -> tuple["Dataset", PreparationReport]:
    """Tokenize a dataset and drop the pairs that cannot teach.

    The result is cached by `datasets`, also for rows in memory, so that a second run with the same rows and
    settings does nothing.

    Args:
        dataset: Validated dual CoTs.
        preparation: What is done to each row.
        name: The dataset's name in progress bars and messages.
        num_proc: Processes to use.

    Returns:
        The prepared dataset, a pair a row (columns of `TokenizedDualCoT`, `row`, `row_id`, lengths), and what
        became of the pairs.

    Raises:
        InputError: Prompts that alone fill `max_length` (rows named), or no row left.
    """
    prepared = _map(dataset, preparation, f"Tokenizing {name} dataset", num_proc)
    problems = prepared["problem"][:]
    prompts = [row for row, problem in zip(prepared["row"], problems, strict=True) if "prompt" in problem]
    if prompts:
        raise InputError(
            f"{name} dataset: the prompt alone fills max_length={preparation.max_length} in "
            f"{len(prompts)} of {len(problems)} pairs ({name_rows(prompts)}), so nothing of the chains would "
            "be left; raise `max_length` or remove these rows"
        )
    kept = prepared.select([i for i, problem in enumerate(problems) if not problem])
    report = _report(kept, problems)
    if not len(kept):
        raise InputError(f"{name} dataset: no pair is left to train on ({report})")
    return kept.remove_columns(["problem", "key_fraction", "truncated_key_tokens"]), report


def name_rows(rows: Iterable[int], most: int = 10) -> str:
    """Row numbers for a message: "rows 3, 7, ..."."""
    numbers = sorted(set(rows))
    listed = ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
    return f"{'rows' if len(numbers) > 1 else 'row'} {listed}"


def _map(dataset: "Dataset", preparation: RowPreparation, desc: str, num_proc: int | None) -> "Dataset":
    import datasets

    fingerprint = preparation.fingerprint(dataset)
    cache_file = None
    if datasets.is_caching_enabled():
        # A dataset in memory has no folder of its own; its fingerprint is that of its content.
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "edit_trl"
        if dataset.cache_files:
            folder = Path(dataset.cache_files[0]["filename"]).parent
        folder.mkdir(parents=True, exist_ok=True)
        cache_file = str(folder / f"dual-cots-{fingerprint}.arrow")
    return dataset.map(
        preparation,
        with_indices=True,
        batched=True,
        batch_size=100,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        cache_file_name=cache_file,
        new_fingerprint=fingerprint,
        desc=desc,
    )


def _report(kept: "Dataset", problems: list[str]) -> PreparationReport:
    fractions = kept["key_fraction"][:]
    cut = [lost for lost in kept["truncated_key_tokens"] if lost >= 0]
    return PreparationReport(
        rows=len(problems),
        kept=len(kept),
        dropped=dict(Counter(filter(None, problems))),
        truncated=len(cut),
        truncated_key_tokens=sum(cut),
        key_fraction=sum(fractions) / max(len(fractions), 1),
    )
