"""Evaluation of a student.

The names below are imported on first use, so that comparing two runs does not import torch.
"""

from importlib import import_module

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
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
