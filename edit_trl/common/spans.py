"""Characters and tokens of a text: masks over tokens to spans of characters, and back."""

from bisect import bisect_right
from collections.abc import Sequence

Span = tuple[int, int]
"""[start, end) character offsets."""


def masks_from_spans(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Map characters to tokens: a token is key if at least one of its characters is in a span.

    The tokens that a byte-level tokenizer makes of one character all carry that character's offsets, so they
    are key together.

    Args:
        spans: Sorted, disjoint [start, end) character offsets.
        offsets: [start, end) characters of each token in the same text. Tokens without characters
            (start == end: EOS, template, prompt) are never key.

    Returns:
        One bool per token.
    """
    if not spans:
        return [False] * len(offsets)
    ends = [span_end for _, span_end in spans]
    # Of the spans, the first that ends after a token starts may hold it; most tokens are before or after all spans.
    begin, stop = spans[0][0], spans[-1][1]
    return [
        begin < end and start < stop and start < end and spans[bisect_right(ends, start)][0] < end
        for start, end in offsets
    ]


def merged_spans(mask: Sequence[bool], offsets: Sequence[Span], text: str) -> list[Span]:
    """Return the characters of the key tokens; neighbouring key tokens of one line become one span.

    White space alone is never a span, but the space between two key words of one line belongs to theirs.

    Args:
        mask: One bool per token.
        offsets: [start, end) characters of each token; tokens without characters are ignored.
        text: The chain.
    """
    spans: list[Span] = []
    previous_is_key = False
    for (start, end), key in zip(offsets, mask, strict=True):
        if start == end:
            continue
        if key and previous_is_key and "\n" not in text[spans[-1][1] : start]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        elif key:
            spans.append((start, end))
        previous_is_key = key
    return spans
