"""Final answers: where a response states its answer, what the answer is, and whether it is the known one.

The answer of a chain stands in its last statement of one, such as "Therefore, the answer is 42.". A response
without an answer is `unparsed`, which is neither correct nor wrong. Lenient extraction also accepts the last
expression of the answer's type; the strict and the lenient score are never mixed.
"""

from edit_trl.data.answers.checking import (
    VERIFIER_VERSION,
    AnswerCheck,
    Verdict,
    check_answer,
    check_answer_type,
    extract_answer,
    infer_answer_type,
)
from edit_trl.data.answers.reading import AnswerType, Extraction

__all__ = [
    "VERIFIER_VERSION",
    "AnswerCheck",
    "AnswerType",
    "Extraction",
    "Verdict",
    "check_answer",
    "check_answer_type",
    "extract_answer",
    "infer_answer_type",
]
