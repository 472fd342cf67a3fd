from pathlib import Path

import evaluate
import pytest

import edit_trl.evaluation.accuracy.metric
from edit_trl import AnswerAccuracy
from edit_trl.common.errors import InputError

RESPONSES = ["2 + 2 = 4. So the answer is 4.", "The answer is 5.", "Who knows?", "The answer is (B)."]
ANSWERS = ["4", "4", "4", "(B)"]
EXPECTED = {"accuracy": 0.5, "wrong": 0.25, "unparsed": 0.25}


def test_as_a_class():
    assert AnswerAccuracy().compute(predictions=RESPONSES, references=ANSWERS) == EXPECTED


def test_loaded_by_evaluate_without_a_network(monkeypatch, tmp_path):
    path = Path(edit_trl.evaluation.accuracy.metric.__file__)
    metric = evaluate.load(str(path), cache_dir=str(tmp_path))
    assert metric.compute(predictions=RESPONSES, references=ANSWERS) == EXPECTED


def test_combines_batches():
    metric = AnswerAccuracy()
    metric.add_batch(predictions=RESPONSES[:1], references=ANSWERS[:1])
    metric.add_batch(predictions=RESPONSES[1:], references=ANSWERS[1:])
    assert metric.compute() == EXPECTED


def test_lenient_is_asked_for():
    responses = ["I get 4"]
    assert AnswerAccuracy().compute(predictions=responses, references=["4"])["unparsed"] == 1.0
    assert AnswerAccuracy().compute(predictions=responses, references=["4"], lenient=True)["accuracy"] == 1.0


def test_answer_of_another_type():
    with pytest.raises(InputError, match="'maybe' is not of type 'number'"):
        AnswerAccuracy().compute(predictions=["The answer is 1."], references=["maybe"], answer_type="number")
