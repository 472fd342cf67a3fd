"""Answer accuracy as an `evaluate` metric.

    from edit_trl import AnswerAccuracy
    AnswerAccuracy().compute(predictions=["So the answer is 4."], references=["4"])

or, without a download, `evaluate.load` with the path of this file.
"""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

from edit_trl.data.answers import AnswerType, Verdict, check_answer

DESCRIPTION = "Share of responses whose final answer is the known answer; a response without an answer is not correct."


class AnswerAccuracy(evaluate.Metric):
    """The accuracy of the final answers of responses (`predictions`), given known answers (`references`)."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="Responses and known answers, as texts; `answer_type` for all of them.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        answer_type: AnswerType | None = None,
        lenient: bool = False,
    ) -> dict[str, float]:
        """Check each response.

        Args:
            predictions: The responses.
            references: The known answers.
            answer_type: The type of all answers; if None, it is inferred from each known answer.
            lenient: As in `edit_trl.data.answers.extract_answer`.

        Returns:
            `accuracy` and the shares `wrong` and `unparsed`; they add up to 1.
        """
        verdicts = Counter(
            check_answer(response, answer, answer_type, lenient=lenient).verdict
            for response, answer in zip(predictions, references, strict=True)
        )
        names: dict[str, Verdict] = {"accuracy": "correct", "wrong": "wrong", "unparsed": "unparsed"}
        return {name: verdicts[verdict] / len(predictions) for name, verdict in names.items()}
