"""The text of a chain in a response, of a model that may think before it answers.

A prompt that asks a question alone is answered with thoughts about the question: they are part of the chain. A prompt
that also shows a chain or a hint is answered with thoughts about that prompt, which no chain should have. There the
model is asked to write the thoughts of the chain, too; its own are left out.
"""

from __future__ import annotations

import re
from typing import Literal

from rapidfuzz.distance import Levenshtein

from edit_trl.common.thoughts import Thoughts, join_thoughts, second_thoughts, split_thoughts
from edit_trl.data.answers import AnswerType
from edit_trl.teachers.prompts import read_chain, without_conclusion

ThoughtsForm = Literal["text", "reasoning_content", "thinking"]
"""Where a message has its thoughts: in its text, between tags, or in a field."""

_ABOUT_THE_PROMPT = re.compile(
    r"\bhint(?:s|ed)?\b|\b(?:the|a) (?:user|prompt|task)\b|\b(?:wrong|right|given|original|mended) reasoning\b"
    r"|\b(?:introduce|insert|plant|make|mend|fix|correct) (?:a|an|one|the|some)\b[^.\n]{0,40}\b(?:mistake|error)",
    re.IGNORECASE,
)


def chain_text(
    response: str, thoughts: Thoughts, answer_type: AnswerType, like: str | None = None, *, has_thoughts: bool = True
) -> tuple[str, bool]:
    """Return the chain in a response, and whether it has thoughts.

    Args:
        response: What a model wrote.
        thoughts: Whether the chain has the thoughts before the answer (`keep`), not (`drop`), or consists of them
            (`only`); in that case it ends with the sentences of the answer that state the result, since a chain is
            graded by its end.
        answer_type: The type of the result.
        like: The chain that the prompt is about, which the response rewrites or replaces; None where there is none.
        has_thoughts: Whether that chain has thoughts. If it has none, neither has the response's.

    Returns:
        An empty text if the thoughts never end.
    """
    answer, own = read_chain(response), split_thoughts(response).thoughts
    if thoughts == "drop" or not answer or not own or not has_thoughts:
        return answer, False
    if like is not None:
        written = second_thoughts(response)
        if written is not None:
            own = split_thoughts(written).thoughts
        elif _ABOUT_THE_PROMPT.search(own):
            return answer, False
    if thoughts == "keep":
        return join_thoughts(own, answer), True
    conclusion = answer[len(without_conclusion(answer, answer_type)) :].strip()
    chain = f"{own}\n\n{conclusion}"
    # A model that is shown a chain without tags may write the other chain as its answer.
    if like is not None and Levenshtein.distance(answer, like) < Levenshtein.distance(chain, like):
        return answer, False
    return chain, True


def message_of(chain: str, form: ThoughtsForm) -> dict[str, str]:
    """Return a chain as a message of the assistant, with its thoughts in the given form."""
    parts = split_thoughts(chain)
    if form == "text" or not parts.thoughts:
        return {"role": "assistant", "content": chain}
    return {"role": "assistant", "content": parts.answer or "", form: parts.thoughts}
