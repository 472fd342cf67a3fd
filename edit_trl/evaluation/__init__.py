"""Measuring a student (L3)."""

from edit_trl.evaluation.accuracy import AccuracyResult, Item, Score, evaluate_accuracy, format_table
from edit_trl.evaluation.answer_accuracy import AnswerAccuracy

__all__ = ["AccuracyResult", "AnswerAccuracy", "Item", "Score", "evaluate_accuracy", "format_table"]
