"""What people are shown of metrics and scores: short names, formats and meanings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class MetricName(NamedTuple):
    """How a metric is shown.

    Attributes:
        label: Its name in a line.
        form: The format of its value, as in `format`.
        meaning: What it is.
    """

    label: str
    form: str
    meaning: str


SCORE_LABELS = {
    "accuracy": ("Accuracy", "share of right answers, strict extraction"),
    "lenient_accuracy": ("Accuracy, lenient", "share of right answers, lenient extraction"),
    "unparsed": ("Unparsed", "share of items without an answer"),
    "cut_off": ("Cut off", "share of responses that ran into the length limit"),
    "majority_accuracy": ("Accuracy, majority", "share of right answers if every response has the same weight"),
    "weight_auc": (
        "AUC of weights",
        "how likely a right response has more weight than a wrong one to the same question",
    ),
    "no_weight": ("No weight", "share of items where no answer has weight, so that the majority decided"),
    "generated_tokens": ("Tokens", "generated per item"),
    "weight_tokens": ("Tokens of weights", "run per item to find the weights of its responses"),
    "preference": ("Preference", "share of pairs whose correct chain is likelier per token"),
    "margin": ("Margin", "nats per token by which the correct chain is likelier"),
    "key_preference": ("Key preference", "share of pairs whose correct key steps are likelier per token"),
    "key_margin": ("Key margin", "nats per token by which the correct key steps are likelier"),
    "no_wrong_turn": ("No wrong turn", "share of correct chains that greedy decoding would generate"),
    "right_branch": ("Right branch", "share of pairs where greedy decoding continues like the correct chain"),
    "wrong_branch": ("Wrong branch", "share of pairs where greedy decoding continues like the wrong chain"),
    "greedy_accuracy": ("Greedy accuracy", "share of right answers after the prefix that both chains share"),
}
"""What tables and charts call the scores of `evaluate` and `suite`, and what they are."""

METRICS = {
    "loss": MetricName("loss", ".3f", "what training minimizes, mean since the line before"),
    "key_accuracy": MetricName(
        "key accuracy", ".0%", "share of pairs whose correct key steps are likelier per token than the wrong ones"
    ),
    "fork/confidence": MetricName(
        "fork", ".2f", "the student's probability of the right token where the two chains part (fork confidence)"
    ),
    "rewards/accuracies": MetricName(
        "reward accuracy", ".0%", "share of pairs whose correct chain has the higher reward"
    ),
    "rewards/margins": MetricName("reward margin", ".3f", "reward of the correct chain minus that of the wrong one"),
} | {
    f"suite/{name}": MetricName(
        label.lower(), ".3f" if name.endswith("margin") else ".0f" if name.endswith("tokens") else ".0%", meaning
    )
    for name, (label, meaning) in SCORE_LABELS.items()
}
"""Metrics by their names in the log, in the order in which they are shown. An evaluation's begin with `eval_`."""

MEANINGS = {name: metric.meaning for name, metric in METRICS.items()} | {
    "logps/chosen_key": "mean log-probability of the key tokens of the correct chains",
    "logps/chosen_context": "mean log-probability of the other tokens of the correct chains",
    "logps/rejected_key": "mean log-probability of the key tokens of the wrong chains",
    "logps/rejected_context": "mean log-probability of the other tokens of the wrong chains",
    "completion_accuracy": "share of pairs whose correct chain is likelier per token than the wrong one",
    "fork/solved": "share of pairs whose right token at the fork has a probability above 0.9",
}
"""What metrics in the log are, also those that lines do not show."""

# Metrics of an evaluation that are not shown: times, counts, and details for the log.
DETAILS = frozenset(
    {
        *("runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time", "num_tokens"),
        *("num_input_tokens_seen", "completion_accuracy", "key_fraction", "entropy", "mean_token_accuracy", "nll_loss"),
        *("log_odds_ratio", "log_odds_chosen", "aux_loss"),
    }
)


def explained(logged: Iterable[str]) -> list[tuple[str, str]]:
    """Return the label and the meaning of each metric that lines show, of those that were logged."""
    names = {name.removeprefix("eval_") for name in logged}
    return [(metric.label, metric.meaning) for name, metric in METRICS.items() if name in names]
