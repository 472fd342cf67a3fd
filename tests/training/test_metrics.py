import math

import pytest
import torch

from edit_trl.losses import DualCoTLoss
from edit_trl.training.metrics import MetricTotals, chosen_metrics, pair_metrics

# Two pairs. The first: correct tokens with p = 1/2, 1/4 (key), wrong ones 1/2, 1/8 (key). The second has one
# correct token (key, p = 1/16), a padded position, and two wrong tokens (the first key, p = 1/4).
CHOSEN = torch.tensor([[0.5, 0.25], [1 / 16, 1.0]]).log()
REJECTED = torch.tensor([[0.5, 0.125], [0.25, 0.5]]).log()
CHOSEN_MASK = torch.tensor([[True, True], [True, False]])
REJECTED_MASK = torch.tensor([[True, True], [True, True]])
CHOSEN_KEY = torch.tensor([[False, True], [True, False]])
REJECTED_KEY = torch.tensor([[False, True], [True, False]])
LN2 = math.log(2)


def ratios(metrics):
    return {name: (top / bottom).item() for name, (top, bottom) in metrics.items() if bottom}


PAIRED = torch.tensor([True, True])


def test_pair_metrics_by_hand():
    masks = (CHOSEN_MASK, REJECTED_MASK, CHOSEN_KEY, REJECTED_KEY)
    assert ratios(pair_metrics(CHOSEN, REJECTED, *masks, PAIRED)) == pytest.approx(
        {
            "logps/rejected_key": (-3 - 2) / 2 * LN2,
            "logps/rejected_context": (-1 - 1) / 2 * LN2,
            "key_accuracy": 0.5,  # -2 over -3, and -4 under -2
            "margins/key": (1 - 2) / 2 * LN2,
            "completion_accuracy": 0.5,  # -1.5 over -2, and -4 under -1.5
            "margins/completion": (0.5 - 2.5) / 2 * LN2,
            "key_fraction": 4 / 7,
        },
        rel=1e-5,
    )


def test_chosen_metrics_by_hand():
    parts = [torch.tensor(values) for values in ([3.0, 5.0], [2.0, 2.0], [0.0, 1.0], [1.0, 2.0])]
    fork = torch.tensor([0, 0])
    assert ratios(chosen_metrics(DualCoTLoss(*parts), CHOSEN, CHOSEN_MASK, CHOSEN_KEY, fork, PAIRED)) == pytest.approx(
        {
            "loss/chosen": 2.0,
            "loss/rejected": 0.5,
            "loss/preference": 1.5,
            "logps/chosen": (-1 - 2 - 4) / 3 * LN2,
            "logps/chosen_key": (-2 - 4) / 2 * LN2,
            "logps/chosen_context": -1 * LN2,
            "fork/confidence": (1 / 2 + 1 / 16) / 2,
            "fork/solved": 0.0,
        },
        rel=1e-5,
    )


def test_a_pair_without_key_tokens_on_one_side_does_not_count():
    none = torch.zeros_like(REJECTED_KEY[:1])
    masks = (CHOSEN_MASK[:1], REJECTED_MASK[:1], CHOSEN_KEY[:1], none)
    metrics = pair_metrics(CHOSEN[:1], REJECTED[:1], *masks, PAIRED[:1])
    assert "key_accuracy" not in ratios(metrics)
    assert "completion_accuracy" in ratios(metrics)


def test_a_correct_chain_alone_counts_for_itself():
    """The second pair is a correct chain and itself: it has likelihoods, and no fork and no margin."""
    paired = torch.tensor([True, False])
    rejected, masks = (REJECTED.clone(), [m.clone() for m in (CHOSEN_MASK, REJECTED_MASK, CHOSEN_KEY, REJECTED_KEY)])
    masks[2][1] = masks[3][1] = False
    seen = ratios(pair_metrics(CHOSEN, rejected, *masks, paired))
    only = ratios(pair_metrics(CHOSEN[:1], rejected[:1], *(m[:1] for m in masks), paired[:1]))
    assert seen == pytest.approx(only)
    parts = DualCoTLoss(*torch.ones(4, 2))
    fork = torch.tensor([0, 0])
    chosen = ratios(chosen_metrics(parts, CHOSEN, masks[0], masks[2], fork, paired))
    assert chosen["fork/confidence"] == pytest.approx(1 / 2)
    assert chosen["logps/chosen"] == pytest.approx((-1 - 2 - 4) / 3 * LN2)


def test_totals_combine_batches_of_any_size():
    totals, one, two = MetricTotals(), torch.tensor(1.0), torch.tensor(2.0)
    totals.add({"a": (one, two)})
    totals.add({"a": (two, two), "b": (one, one), "never": (one - one, one - one)})
    assert totals.read(lambda tensor: tensor) == {"a": 0.75, "b": 1.0}
    assert totals.read(lambda tensor: tensor) == {}


def test_totals_over_processes():
    totals, one = MetricTotals(), torch.tensor(1.0)
    totals.add({"a": (one, one)})
    # Another process has seen 1 of 3.
    assert totals.read(lambda tensor: tensor + torch.tensor([[1.0, 3.0]])) == {"a": 0.5}
