r"""Key steps: the parts of a dual CoT in which its two chains differ.

Both chains are aligned by minimum edit distance (insert, delete, replace: cost 1 each); a token that is
deleted or replaced on its side is a key token. The methods:

- `edit`: align token ids; the common prefix and suffix are stripped first.
- `words`: align words and numbers, then map them to tokens by character offsets, so that half a number is
  never key alone.
- `fork`: of the key words, those from the first divergence to the end of that step (sentence or line).
- `forks`: `fork`, and of every later step its first key word: where the chains part again, not what follows.
- `step`: from the first divergence to the end of that step, every word, key or not (Step-DPO, arXiv 2406.18629).
- `spans`: key steps given as character offsets.
- `reference`: align token ids with the tie-breaking of the authors' code, for replication.
- `random`: as many tokens as `words` marks, anywhere in the chain. This control shows how much of a gain
  depends on which tokens are marked.

The chains "2 + 3 = 5." and "2 * 3 = 6." have, over words, the masks

    chosen      2  [+]  3  =  [5]  .
    rejected    2  [*]  3  =  [6]  .
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import index
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from edit_trl.common.alignment import Stretch, authors_mask, edited_stretches, stretch_mask
from edit_trl.common.errors import InputError
from edit_trl.common.spans import Span, masks_from_spans, merged_spans
from edit_trl.common.steps import line_spans, step_end, visible_start, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KeyStepMethod = Literal["edit", "words", "fork", "forks", "step", "spans", "reference", "random"]

TOKEN_METHODS: tuple[KeyStepMethod, ...] = ("edit", "reference")
"""The methods that align token ids; all others but `random` mark characters of the text."""

WORD_METHODS: tuple[KeyStepMethod, ...] = ("words", "fork", "forks", "step")
"""The methods that align words."""

COUNTED_METHOD: KeyStepMethod = "words"
"""The method whose key tokens `random` counts."""

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Chain:
    """A chain of thought as text and as tokens.

    Attributes:
        text: The chain; empty where only its token ids are known.
        ids: Its token ids; EOS and tokens of the chat template may follow the text.
        offsets: For each token its [start, end) characters in `text`, empty (start == end) for tokens outside
            it. None where the tokenizer has no offsets.
        key_spans: Its key steps as sorted [start, end) characters; the method `spans` needs them.
    """

    text: str
    ids: Sequence[int]
    offsets: Sequence[Span] | None = None
    key_spans: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class KeySteps:
    """The key tokens of a dual CoT.

    Attributes:
        chosen: One bool per token of the correct chain, True where the token is key. All False where the
            wrong chain only adds tokens.
        rejected: One bool per token of the wrong chain.
        chosen_spans: The key steps as characters of the correct chain, sorted; adjacent key tokens of one
            line are merged. None where only token ids were given.
        rejected_spans: The key steps as characters of the wrong chain.
        chosen_fork: The key tokens of the correct chain in the step in which the chains first part.
        rejected_fork: The key tokens of the wrong chain in that step.
    """

    chosen: list[bool]
    rejected: list[bool]
    chosen_spans: list[Span] | None = None
    rejected_spans: list[Span] | None = None
    chosen_fork: list[bool] = field(default_factory=list)
    rejected_fork: list[bool] = field(default_factory=list)

    @property
    def key_fraction(self) -> float:
        """Share of key tokens over both chains; 0 for two empty chains."""
        tokens = len(self.chosen) + len(self.rejected)
        return (sum(self.chosen) + sum(self.rejected)) / tokens if tokens else 0.0


def mark(chosen: Chain, rejected: Chain, method: KeyStepMethod = "words", *, seed: int = 0) -> KeySteps:
    """Mark the key tokens of a pair of chains.

    Args:
        chosen: The correct chain.
        rejected: The wrong chain.
        method: The method, see the module's docstring.
        seed: Seed of the positions that `random` draws.

    Returns:
        Masks of both chains; spans too where the chains have offsets. Tokens without characters (EOS, chat
        template) are never key there.

    Raises:
        InputError: Unknown method, a method that needs offsets for chains without them, or key spans that are
            missing, out of range, unsorted or overlapping.
    """
    check_method(method)
    chains = (chosen, rejected)
    if method == "random":
        return _draw(chains, mark(chosen, rejected, COUNTED_METHOD), seed)
    offsets = [chain.offsets for chain in chains if chain.offsets is not None]
    spans: list[list[Span]] | None = None
    if method not in TOKEN_METHODS:
        if len(offsets) < len(chains):
            raise InputError(
                f"key_step_method={method!r} places key steps by character offsets, which this slow "
                "tokenizer does not give; use a fast tokenizer or key_step_method='edit'"
            )
        if method == "spans":
            spans = _given_spans(chains)
        else:
            spans = [side.spans for side in key_words(chosen.text, rejected.text, method)]
        masks = [masks_from_spans(s, places) for s, places in zip(spans, offsets, strict=True)]
    else:
        if method == "reference":
            masks = [authors_mask(chosen.ids, rejected.ids), authors_mask(rejected.ids, chosen.ids)]
        else:
            edits = edited_stretches(chosen.ids, rejected.ids)
            masks = [stretch_mask(side, len(chain.ids)) for side, chain in zip(edits, chains, strict=True)]
        if len(offsets) == len(chains):
            # EOS and the template's tokens are never key, even where an alignment of ids marks them.
            masks = [
                [key and start < end for key, (start, end) in zip(mask, places, strict=True)]
                for mask, places in zip(masks, offsets, strict=True)
            ]
            spans = [merged_spans(m, o, c.text) for m, o, c in zip(masks, offsets, chains, strict=True)]
    return _key_steps(masks, spans, [_fork_mask(m, chain) for m, chain in zip(masks, chains, strict=True)])


def _key_steps(masks: list[list[bool]], spans: list[list[Span]] | None, forks: list[list[bool]]) -> KeySteps:
    """Return key steps, given a value per side of everything."""
    chosen_spans, rejected_spans = spans or (None, None)
    return KeySteps(masks[0], masks[1], chosen_spans, rejected_spans, forks[0], forks[1])


def key_step_masks(chosen_ids: Sequence[int], rejected_ids: Sequence[int], method: KeyStepMethod = "edit") -> KeySteps:
    """Mark the key tokens of two unpadded sequences of token ids.

    Leave padding out: pad tokens would be aligned with tokens of the longer chain, and a tail that both chains
    share would be marked as key.

    Args:
        chosen_ids: Token ids of the correct chain: a list, or a 1-d array or tensor of integers.
        rejected_ids: Token ids of the wrong chain.
        method: `edit` or `reference`.

    Returns:
        Masks as long as the ids, without spans.

    Raises:
        InputError: The method needs text, or the ids are not integers.
    """
    check_method(method)
    if method not in TOKEN_METHODS:
        raise InputError(
            f"method {method!r} needs the chains' text, and token ids were given; use "
            f"locate_key_steps, or method {' or '.join(map(repr, TOKEN_METHODS))}"
        )
    chosen, rejected = _integers(chosen_ids, "chosen_ids"), _integers(rejected_ids, "rejected_ids")
    return mark(Chain("", chosen), Chain("", rejected), method)


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
        tokenizer: A fast tokenizer; the masks are over its tokens, without special tokens. Without a
            tokenizer the masks are over words, and `edit` is the same as `words`.
        method: The method, see the module's docstring.
        chosen_spans: Key steps of the correct chain for the method `spans`: sorted [start, end) character
            offsets. Other methods do not read them.
        rejected_spans: Key steps of the wrong chain for the method `spans`.
        seed: Seed of the positions that `random` draws.

    Returns:
        Masks and spans of both chains.

    Raises:
        InputError: Unknown method, a tokenizer without offsets, or spans that are missing, out of range,
            unsorted or overlapping.
    """
    if tokenizer is None and method in WORD_METHODS:
        return _mark_words(chosen, rejected, method)
    ids, offsets = _tokenize((chosen, rejected), tokenizer)
    correct = Chain(chosen, ids[0], offsets[0], chosen_spans)
    wrong = Chain(rejected, ids[1], offsets[1], rejected_spans)
    return mark(correct, wrong, method, seed=seed)


def fork_scope(mask: Sequence[bool], offsets: Sequence[Span], text: str) -> list[bool]:
    """Keep the key tokens from the first one to the end of its step (sentence or line).

    What follows the first error is mostly valid reasoning from a wrong premise.

    Args:
        mask: One bool per token of the chain.
        offsets: [start, end) characters of each token; tokens without characters are dropped.
        text: The chain.

    Returns:
        One bool per token; all False if no token with characters is key.
    """
    key_spans = (span for span, key in zip(offsets, mask, strict=True) if key and span[0] < span[1])
    first = next(key_spans, None)
    if first is None:
        return [False] * len(mask)
    return _within_step(mask, offsets, text, visible_start(first, text))


def check_method(method: str) -> None:
    """Raise InputError for an unknown key-step method."""
    if method not in get_args(KeyStepMethod):
        raise InputError(f"unknown key-step method {method!r}; choose one of {', '.join(get_args(KeyStepMethod))}")


class Words(NamedTuple):
    """A text and its words; `starts` are their first characters and the length of the text."""

    text: str
    words: Sequence[str]
    starts: Sequence[int]

    @classmethod
    def of(cls, text: str) -> "Words":
        return cls(text, *words_of(text))

    def end_of_step(self, word: int) -> int:
        """Return the first word after the step that holds a word."""
        return bisect_left(self.starts, step_end(self.text, self.starts[word]), hi=len(self.words))

    def each(self) -> list[Span]:
        """Return the characters of each word."""
        return [(start, start + len(word)) for word, start in zip(self.words, self.starts, strict=False)]

    def spans(self, stretches: Sequence[Stretch]) -> list[Span]:
        """Return the characters of stretches of words; those on several lines are a span per line."""
        spans = [(self.starts[i], self.starts[j - 1] + len(self.words[j - 1])) for i, j in stretches]
        if "\n" in self.text:
            spans = [line for span in spans for line in line_spans(self.text, *span)]
        return spans


class KeyWords(NamedTuple):
    """The words of a chain, and the stretches of them that are key."""

    text: Words
    stretches: Sequence[Stretch]

    @property
    def spans(self) -> list[Span]:
        """The key steps as characters of the chain."""
        return self.text.spans(self.stretches)


def key_words(chosen: str, rejected: str, method: KeyStepMethod) -> tuple[KeyWords, KeyWords]:
    """Find the key words of two texts by one of `WORD_METHODS`."""
    texts = Words.of(chosen), Words.of(rejected)
    keys: Sequence[list[Stretch]] = edited_stretches(texts[0].words, texts[1].words)
    # The common prefix is left out of the alignment, so the word after it is key on one side.
    fork = min((key[0][0] for key in keys if key), default=len(texts[0].words))
    if method == "fork":
        keys = [_before(text.end_of_step(fork), key) for text, key in zip(texts, keys, strict=True)]
    elif method == "forks":
        keys = [_where_steps_part(key, text, fork) for text, key in zip(texts, keys, strict=True)]
    elif method == "step":
        keys = [[(fork, text.end_of_step(fork))] if fork < len(text.words) else [] for text in texts]
    return KeyWords(texts[0], keys[0]), KeyWords(texts[1], keys[1])


def _mark_words(chosen: str, rejected: str, method: KeyStepMethod) -> KeySteps:
    """Mark the key words of two texts by a method that aligns words; the masks are over words."""
    sides = key_words(chosen, rejected, method)
    masks, forks = [], []
    for text, key in sides:
        masks.append(stretch_mask(key, len(text.words)))
        forks.append(stretch_mask(_before(text.end_of_step(key[0][0]), key) if key else [], len(text.words)))
    return _key_steps(masks, [side.spans for side in sides], forks)


def _before(end: int, stretches: Sequence[Stretch]) -> list[Stretch]:
    """Return what of stretches comes before an item."""
    return [(i, min(j, end)) for i, j in stretches if i < end]


def _where_steps_part(key: Sequence[Stretch], text: Words, fork: int) -> list[Stretch]:
    """Keep the key words in the step of the word `fork`, and the first key word of each later step."""
    step = text.end_of_step(fork)
    forks = _before(step, key)
    for i, j in key:
        while (word := max(i, step)) < j:
            # The first key word of a step may follow the key words of the step before.
            begin = forks.pop()[0] if forks and forks[-1][1] == word else word
            forks.append((begin, word + 1))
            step = text.end_of_step(word)
    return forks


def _given_spans(chains: Sequence[Chain]) -> list[list[Span]]:
    checked = []
    for name, chain in zip(SIDES, chains, strict=True):
        if chain.key_spans is None:
            raise InputError(
                f"method 'spans' needs {name}_spans, got None; give [start, end) offsets, of rows in the column "
                f"`{name}_key_spans` ([] where nothing is key), or use another method, such as 'words'"
            )
        previous = 0
        for start, end in chain.key_spans:
            if not previous <= start < end <= len(chain.text):
                raise InputError(
                    f"{name}_spans: [{start}, {end}] is empty, out of range (the chain has "
                    f"{len(chain.text)} characters), or begins before the end of the span before it "
                    f"({previous}); give sorted, disjoint [start, end) offsets"
                )
            previous = end
        checked.append([(start, end) for start, end in chain.key_spans])
    return checked


def _draw(chains: Sequence[Chain], counted: KeySteps, seed: int) -> KeySteps:
    """Draw as many tokens as `counted` marks; those at the fork are drawn from the drawn key tokens."""
    masks: list[list[bool]] = []
    forks: list[list[bool]] = []
    spans = []
    for side, chain in zip(SIDES, chains, strict=True):
        assert chain.offsets is not None  # the counted method refuses chains without
        positions = [position for position, (start, end) in enumerate(chain.offsets) if start < end]
        # Seeded by text, so that a pair draws the same tokens in any process.
        Random(" ".join([f"{seed} {side}", *(c.text for c in chains)])).shuffle(positions)
        for drawn, mask in ((masks, getattr(counted, side)), (forks, getattr(counted, f"{side}_fork"))):
            key = set(positions[: sum(mask)])
            drawn.append([position in key for position in range(len(mask))])
        spans.append(merged_spans(masks[-1], chain.offsets, chain.text))
    return _key_steps(masks, spans, forks)


def _fork_mask(mask: list[bool], chain: Chain) -> list[bool]:
    if chain.offsets is not None:
        return fork_scope(mask, chain.offsets, chain.text)
    # Without offsets there are no sentences: the fork is the first run of key tokens.
    start = mask.index(True) if True in mask else len(mask)
    end = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
    return [start <= i < end for i in range(len(mask))]


def _within_step(mask: Sequence[bool], offsets: Sequence[Span], text: str, start: int) -> list[bool]:
    """Keep the marked tokens from the character `start` to the end of the step that holds it."""
    end = step_end(text, start)
    return [
        key and span[0] < span[1] and span[0] < end and start <= visible_start(span, text) < end
        for key, span in zip(mask, offsets, strict=True)
    ]


def _tokenize(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None"
) -> tuple[list[list[int]], list[list[Span]]]:
    """Return ids and character offsets of both texts; without a tokenizer, those of words."""
    if tokenizer is None:
        sides = [Words.of(text) for text in texts]
        ids: defaultdict[str, int] = defaultdict(count().__next__)  # equal words get equal ids
        return [[*map(ids.__getitem__, side.words)] for side in sides], [side.each() for side in sides]
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer ({tokenizer.name_or_path}) is a slow one and gives no character offsets; "
            "use a fast tokenizer, or key_step_masks on token ids"
        )
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _integers(ids: Sequence[int], name: str) -> list[int]:
    try:
        return [index(token) for token in ids]
    except TypeError as error:
        raise InputError(
            f"{name} must be a flat sequence of integer token ids ({error}), got "
            f"{type(ids).__name__}; pass the ids of one chain, and text to locate_key_steps"
        ) from None
