"""PLACEHOLDER while the real module is being written; replace freely."""
import re
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

KeyStepMethod = Literal["edit", "words", "fork", "spans", "reference"]


@dataclass(frozen=True)
class KeySteps:
    chosen: list
    rejected: list
    chosen_spans: list | None = None
    rejected_spans: list | None = None


def key_step_masks(chosen_ids, rejected_ids, method="edit"):
    n = 0
    while n < min(len(chosen_ids), len(rejected_ids)) and chosen_ids[n] == rejected_ids[n]:
        n += 1
    m = 0
    while m < min(len(chosen_ids), len(rejected_ids)) - n and chosen_ids[-1 - m] == rejected_ids[-1 - m]:
        m += 1
    a, b = chosen_ids[n : len(chosen_ids) - m], rejected_ids[n : len(rejected_ids) - m]
    ca, cb = [False] * len(chosen_ids), [False] * len(rejected_ids)
    for op in Levenshtein.opcodes(a, b):
        if op.tag != "equal":
            for i in range(op.src_start, op.src_end):
                ca[n + i] = True
            for i in range(op.dest_start, op.dest_end):
                cb[n + i] = True
    return KeySteps(ca, cb)


WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_a-zA-Z]|\w+|[^\w\s]")


def locate_key_steps(chosen, rejected, tokenizer=None, method="words", *, chosen_spans=None, rejected_spans=None):
    wa, wb = list(WORD.finditer(chosen)), list(WORD.finditer(rejected))
    s = key_step_masks([hash(m.group()) for m in wa], [hash(m.group()) for m in wb])
    sa = [m.span() for m, k in zip(wa, s.chosen) if k]
    sb = [m.span() for m, k in zip(wb, s.rejected) if k]
    if method == "spans":
        sa, sb = chosen_spans, rejected_spans
    return KeySteps(s.chosen, s.rejected, sa, sb)


def masks_from_spans(spans, offsets):
    return [any(a < e and b > s for s, e in spans) and a < b for a, b in offsets]


def fork_scope(mask, offsets, text):
    if True not in mask:
        return list(mask)
    start = offsets[mask.index(True)][0]
    m = re.compile(r"\n|[.!?](?=\s|$)").search(text, start)
    end = m.end() if m else len(text)
    return [k and o[0] < end for k, o in zip(mask, offsets)]
