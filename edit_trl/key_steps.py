r"""Where the two chains of a dual CoT really differ: alignment -> key-step masks and spans (L1).

Both chains are aligned by minimum edit distance (insert, delete, replace: 1 each); what is deleted or
replaced on a side is key there. Methods:

- `edit`: over token ids, with the common prefix and suffix taken off first.
- `words`: over words and numbers, mapped to tokens by character offsets, so that half a number is
  never key alone.
- `fork`: of the key words, those from the first divergence to the end of that step (sentence or line).
- `forks`: these, and of every later step the first key word: where it parts, not what follows from it.
- `spans`: given, as character offsets.
- `reference`: over token ids with the tie-breaking of the authors' code, for replication.
- `random`: as many tokens as `words` marks, anywhere in the chain: a control, which shows what of a gain is
  due to where the key tokens are.

The chains "2 + 3 = 5." and "2 * 3 = 6." have, over words, the masks

    chosen      2  [+]  3  =  [5]  .
    rejected    2  [*]  3  =  [6]  .
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import index
from random import Random
from typing import TYPE_CHECKING, Literal, get_args

from edit_trl.common.alignment import common_prefix, edit_masks, reference_mask
from edit_trl.common.errors import InputError
from edit_trl.common.steps import WORD, step_end, visible_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KeyStepMethod = Literal["edit", "words", "fork", "forks", "spans", "reference", "random"]

TOKEN_METHODS: tuple[KeyStepMethod, ...] = ("edit", "reference")
"""The methods that align token ids; the others, but `random`, mark characters of the text."""

COUNTED_METHOD: KeyStepMethod = "words"
"""The method whose key tokens `random` counts."""

SIDES = ("chosen", "rejected")

Span = tuple[int, int]
"""[start, end) character offsets."""


@dataclass(frozen=True)
class KeySteps:
    """The key tokens of a dual CoT.

    Attributes:
        chosen: One bool per token of the correct chain, true where the token is key. All false where
            the wrong chain only adds something.
        rejected: The same for the wrong chain.
        chosen_spans: The key steps as characters of the correct chain, sorted, adjacent key tokens of
            one line merged. None where no text was given.
        rejected_spans: The same for the wrong chain.
    """

    chosen: list[bool]
    rejected: list[bool]
    chosen_spans: list[Span] | None = None
    rejected_spans: list[Span] | None = None

    @property
    def key_fraction(self) -> float:
        """Share of key tokens over both chains; 0 for two empty ones."""
        tokens = len(self.chosen) + len(self.rejected)
        return (sum(self.chosen) + sum(self.rejected)) / tokens if tokens else 0.0


def key_step_masks(
    chosen_ids: Sequence[int], rejected_ids: Sequence[int], method: KeyStepMethod = "edit"
) -> KeySteps:
    """Mark the key tokens of two unpadded sequences of token ids.

    Padding must stay out: a difference in length would be repaid in pad tokens, and a tail that both
    chains share would be marked as key.

    Args:
        chosen_ids: Token ids of the correct chain: a list, or a 1-d array or tensor of integers.
        rejected_ids: The same for the wrong chain.
        method: `edit` or `reference`.

    Returns:
        Masks as long as the ids, without spans.

    Raises:
        InputError: The method needs text, or the ids are not integers.
    """
    _check_method(method)
    if method not in TOKEN_METHODS:
        raise InputError(
            f"method {method!r} needs the chains' text, and token ids were given; use "
            f"locate_key_steps, or method {' or '.join(map(repr, TOKEN_METHODS))}"
        )
    chosen, rejected = _integers(chosen_ids, "chosen_ids"), _integers(rejected_ids, "rejected_ids")
    if method == "reference":
        return KeySteps(reference_mask(chosen, rejected), reference_mask(rejected, chosen))
    return KeySteps(*edit_masks(chosen, rejected))


def locate_key_steps(
    chosen: str,
    rejected: str,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    method: KeyStepMethod = "words",
    *,
    chosen_spans: Sequence[Sequence[int]] | None = None,
    rejected_spans: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> KeySteps:
    """Mark the key tokens of two chains given as text.

    Args:
        chosen: The correct chain.
        rejected: The wrong chain.
        tokenizer: A fast tokenizer; the masks are over its tokens, without special tokens. Without
            one they are over words, and `edit` is the same as `words`.
        method: How key steps are found, see the module.
        chosen_spans: Key steps of the correct chain for `spans`: sorted [start, end) character
            offsets. Other methods do not read them.
        rejected_spans: The same for the wrong chain.
        seed: Of the positions that `random` draws.

    Returns:
        Masks and spans of both chains.

    Raises:
        InputError: Unknown method, a tokenizer without offsets, or spans that are missing, out of
            range, unsorted or overlapping.
    """
    _check_method(method)
    ids, offsets = _tokens((chosen, rejected), tokenizer)
    if method in TOKEN_METHODS:
        steps = key_step_masks(*ids, method=method)
        return replace(
            steps,
            chosen_spans=merged_spans(steps.chosen, offsets[0], chosen),
            rejected_spans=merged_spans(steps.rejected, offsets[1], rejected),
        )
    if method == "random":
        counted = locate_key_steps(chosen, rejected, tokenizer, COUNTED_METHOD)
        masks = [
            random_masks((mask,), of_side, f"{seed} {side} {chosen} {rejected}")[0]
            for side, mask, of_side in zip(SIDES, (counted.chosen, counted.rejected), offsets, strict=True)
        ]
        return KeySteps(*masks, *map(merged_spans, masks, offsets, (chosen, rejected)))
    spans = key_spans(chosen, rejected, method, chosen_spans=chosen_spans, rejected_spans=rejected_spans)
    return KeySteps(*map(masks_from_spans, spans, offsets), *spans)


def key_spans(
    chosen: str,
    rejected: str,
    method: KeyStepMethod = "words",
    *,
    chosen_spans: Sequence[Sequence[int]] | None = None,
    rejected_spans: Sequence[Sequence[int]] | None = None,
) -> tuple[list[Span], list[Span]]:
    """The characters of both chains that are key; `masks_from_spans` turns them into token masks.

    White space alone is never key, except between two key words of the same line.

    Args:
        chosen: The correct chain.
        rejected: The wrong chain.
        method: `words`, `fork`, `forks` or `spans`.
        chosen_spans: See `locate_key_steps`.
        rejected_spans: See `locate_key_steps`.

    Returns:
        Sorted, disjoint [start, end) character offsets for each chain.

    Raises:
        InputError: A method that is unknown, aligns token ids or draws them, or bad spans.
    """
    _check_method(method)
    if method == "random":
        raise InputError("method 'random' draws tokens, and text was given; use locate_key_steps")
    if method in TOKEN_METHODS:
        raise InputError(
            f"method {method!r} aligns token ids, and text was given; use locate_key_steps, or method 'words'"
        )
    if method == "spans":
        return (
            _checked_spans(chosen_spans, chosen, "chosen_spans"),
            _checked_spans(rejected_spans, rejected, "rejected_spans"),
        )
    texts = (chosen, rejected)
    ids, words = _tokens(texts, None)
    masks = edit_masks(*ids)
    if method in ("fork", "forks"):
        limit = _within_step if method == "fork" else _where_steps_part
        fork = common_prefix(*ids)
        masks = [
            limit(mask, side, text, side[fork][0] if fork < len(side) else len(text))
            for mask, side, text in zip(masks, words, texts, strict=True)
        ]
    chosen_found, rejected_found = map(merged_spans, masks, words, texts)
    return chosen_found, rejected_found


def masks_from_spans(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Map characters to tokens: a token is key if at least one of its characters is in a span.

    The several tokens that a byte-level tokenizer makes of one character all carry that character's
    offsets, so they are key together.

    Args:
        spans: Sorted, disjoint [start, end) character offsets, as `key_spans` returns them.
        offsets: [start, end) characters of each token in the same text. Tokens without characters
            (start == end: EOS, template, prompt) are never key.

    Returns:
        One bool per token.
    """
    ends = [end for _, end in spans]
    mask = []
    for start, end in offsets:
        first = bisect_right(ends, start)  # the first span that ends after the token starts
        mask.append(start < end and first < len(spans) and spans[first][0] < end)
    return mask


def fork_scope(
    rejected_mask: Sequence[bool], rejected_offsets: Sequence[Span], rejected_text: str
) -> list[bool]:
    """Keep the key tokens from the first one to the end of its step (sentence or line).

    What follows the first error is mostly valid reasoning from a wrong premise.

    Args:
        rejected_mask: One bool per token of the chain.
        rejected_offsets: [start, end) characters of each token; tokens without characters are dropped.
        rejected_text: The chain.

    Returns:
        One bool per token; all false if no token with characters is key.
    """
    key = (span for span, k in zip(rejected_offsets, rejected_mask, strict=True) if k and span[0] < span[1])
    first = next(key, None)
    if first is None:
        return [False] * len(rejected_mask)
    start = visible_start(first, rejected_text)
    return _within_step(rejected_mask, rejected_offsets, rejected_text, start)


def random_masks(masks: Sequence[Sequence[bool]], offsets: Sequence[Span], seed: str) -> list[list[bool]]:
    """As many tokens as each mask has, drawn from all that have characters.

    Of two masks the smaller is drawn from the larger, as the key tokens at the fork are of all key tokens.

    Args:
        masks: One bool per token each.
        offsets: [start, end) characters of each token; tokens without characters (EOS, template, prompt) are
            never drawn.
        seed: The same text draws the same tokens, in any process.
    """
    drawn = [position for position, (start, end) in enumerate(offsets) if start < end]
    Random(seed).shuffle(drawn)
    taken = [set(drawn[: sum(mask)]) for mask in masks]
    return [[position in of_mask for position in range(len(offsets))] for of_mask in taken]


def _check_method(method: str) -> None:
    if method not in get_args(KeyStepMethod):
        raise InputError(
            f"unknown key-step method {method!r}; choose one of {', '.join(get_args(KeyStepMethod))}"
        )


def _integers(ids: Sequence[int], name: str) -> list[int]:
    try:
        return [index(token) for token in ids]
    except TypeError as error:
        raise InputError(
            f"{name} must be a flat sequence of integer token ids ({error}), got "
            f"{type(ids).__name__}; pass the ids of one chain, and text to locate_key_steps"
        ) from None


def _checked_spans(spans: Sequence[Sequence[int]] | None, text: str, name: str) -> list[Span]:
    if spans is None:
        raise InputError(
            f"method 'spans' needs {name}, got None; give [start, end) offsets ([] where nothing is "
            "key), or use another method"
        )
    previous = 0
    for start, end in spans:
        if not previous <= start < end <= len(text):
            raise InputError(
                f"{name}: [{start}, {end}] is empty, out of range (the chain has {len(text)} "
                f"characters), or begins before the end of the span before it ({previous}); give "
                "sorted, disjoint [start, end) offsets"
            )
        previous = end
    return [(start, end) for start, end in spans]


def _tokens(
    texts: tuple[str, str], tokenizer: "PreTrainedTokenizerBase | None"
) -> tuple[list[list[int]], list[list[Span]]]:
    """Ids and character offsets of both texts; words get ids that are equal for equal words."""
    if tokenizer is None:
        words = [list(WORD.finditer(text)) for text in texts]
        ids: defaultdict[str, int] = defaultdict(count().__next__)
        return [[ids[m[0]] for m in side] for side in words], [[m.span() for m in side] for side in words]
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer ({tokenizer.name_or_path}) is a slow one and gives no character offsets; "
            "use a fast tokenizer, or key_step_masks on token ids"
        )
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def merged_spans(mask: Sequence[bool], offsets: Sequence[Span], text: str) -> list[Span]:
    """The characters of the key tokens; runs of them are one span as long as they share a line.

    Args:
        mask: One bool per token.
        offsets: [start, end) characters of each token; tokens without characters are passed over.
        text: The chain.
    """
    spans: list[Span] = []
    in_run = False
    for (start, end), key in zip(offsets, mask, strict=True):
        if start == end:
            continue
        if key and in_run and "\n" not in text[spans[-1][1] : start]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        elif key:
            spans.append((start, end))
        in_run = key
    return spans


def _within_step(mask: Sequence[bool], offsets: Sequence[Span], text: str, start: int) -> list[bool]:
    """The part of a mask from the character `start` to the end of the step it lies in."""
    end = step_end(text, start)
    return [
        key and span[0] < span[1] and start <= visible_start(span, text) < end
        for key, span in zip(mask, offsets, strict=True)
    ]


def _where_steps_part(mask: Sequence[bool], offsets: Sequence[Span], text: str, start: int) -> list[bool]:
    """The part of a mask of words that is in the step of the character `start`, or first in a later step."""
    end = step = step_end(text, start)
    kept = [False] * len(mask)
    for number, (key, (word, _)) in enumerate(zip(mask, offsets, strict=True)):
        if not key:
            continue
        kept[number] = word < end or word >= step
        if kept[number] and word >= end:
            step = step_end(text, word)
    return kept
