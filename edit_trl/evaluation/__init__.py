"""Evaluation of a student.

The names below are imported on first use, so that comparing two runs does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_MODULE_OF = {
    "AccuracyResult": "accuracy.answering",
    "AnswerAccuracy": "accuracy.metric",
    "Comparison": "compare.comparison",
    "Score": "accuracy.answering",
    "SuiteCallback": "suite.callback",
    "SuiteResult": "suite.evaluate_suite",
    "compare_runs": "compare.comparison",
    "evaluate_accuracy": "accuracy.answering",
    "evaluate_suite": "suite.evaluate_suite",
    "format_table": "accuracy.answering",
}

__all__ = [
    "AccuracyResult",
    "AnswerAccuracy",
    "Comparison",
    "Score",
    "SuiteCallback",
    "SuiteResult",
    "compare_runs",
    "evaluate_accuracy",
    "evaluate_suite",
    "format_table",
]

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.answering import AccuracyResult, Score, evaluate_accuracy, format_table
    from edit_trl.evaluation.accuracy.metric import AnswerAccuracy
    from edit_trl.evaluation.compare.comparison import Comparison, compare_runs
    from edit_trl.evaluation.suite.callback import SuiteCallback
    from edit_trl.evaluation.suite.evaluate_suite import SuiteResult, evaluate_suite


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
