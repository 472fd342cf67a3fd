import math
from typing import get_args

import pytest
import torch

from edit_trl.losses import (
    UNLIKELIHOOD_MAX_PROBABILITY,
    DualCoTLoss,
    PreferenceLoss,
    chain_score,
    dual_cot_loss,
    masked_mean,
    masked_sum,
    preference_term,
)

# One pair. Correct chain: 4 tokens with p = 1/2, 1/4, 1/8, 1/2; the middle two are key. Wrong chain:
# 2 tokens with p = 1/4, 1/2 and a padded position; the first is key.
CHOSEN = [0.5, 0.25, 0.125, 0.5]
REJECTED = [0.25, 0.5, 0.9]
LN2 = math.log(2)


def pair(dtype=torch.float64, **overrides):
    tensors = {
        "chosen_logps": torch.tensor([CHOSEN], dtype=dtype).log(),
        "rejected_logps": torch.tensor([REJECTED], dtype=dtype).log(),
        "chosen_mask": torch.tensor([[True, True, True, True]]),
        "rejected_mask": torch.tensor([[True, True, False]]),
        "chosen_key_mask": torch.tensor([[False, True, True, False]]),
        "rejected_key_mask": torch.tensor([[True, False, False]]),
    }
    return tensors | overrides


def value(part="loss", **options) -> float:
    defaults = {"chosen_key_weight": 0.0, "chosen_context_weight": 0.0, "rejected_key_weight": 0.0}
    loss: DualCoTLoss = dual_cot_loss(**pair(), **(defaults | options))
    return getattr(loss, part).item()


def test_chosen_key_tokens_by_hand():
    # -log(1/4) - log(1/8) = 5 ln 2, over 4 completion tokens.
    assert value(chosen_key_weight=1.0) == pytest.approx(5 * LN2 / 4)


def test_chosen_context_tokens_by_hand():
    # Twice -log(1/2) = 2 ln 2, over 4.
    assert value(chosen_context_weight=1.0) == pytest.approx(2 * LN2 / 4)


def test_sft_is_the_point_alpha_1_gamma_1():
    assert value(chosen_key_weight=1.0, chosen_context_weight=1.0) == pytest.approx(7 * LN2 / 4)


def test_normalization_by_key_tokens():
    # Z⁺ = 2 key tokens.
    assert value(chosen_key_weight=1.0, normalization="key_tokens") == pytest.approx(5 * LN2 / 2)
    # Z⁻ = 1 key token: log(1/4).
    assert value(rejected_key_weight=1.0, rejected_penalty="likelihood", normalization="key_tokens") == pytest.approx(
        -2 * LN2
    )


def test_normalization_by_step():
    options = {"chosen_key_weight": 1.0, "normalization": "step"}
    assert value(**options, step_means=(10.0, 10.0)) == pytest.approx(5 * LN2 / 10)
    assert value(**options) == pytest.approx(5 * LN2 / 4)  # without the step's mean: this batch's


def test_dynamic_fine_tuning_by_hand():
    # p (-log p) of 1/2, 1/4, 1/8, 1/2, in units of ln 2, over 4 tokens; p itself has no gradient.
    expected = (1 / 2 + 2 / 4 + 3 / 8 + 1 / 2) * LN2 / 4
    options = {"chosen_key_weight": 1.0, "chosen_context_weight": 1.0, "chosen_loss": "dft"}
    assert value(**options) == pytest.approx(expected)
    logps = torch.tensor([CHOSEN], dtype=torch.float64).log().requires_grad_()
    dual_cot_loss(**pair(chosen_logps=logps), rejected_key_weight=0.0, **options).loss.backward()
    assert logps.grad.tolist() == [pytest.approx([-p / 4 for p in CHOSEN])]


def test_redi_by_hand():
    # -log p⁺ / 4 + 0.8 log p⁻ / 2 with p⁺ = 2^-7 and p⁻ = 2^-3: the whole chains, whatever is key.
    whole = pair(rejected_key_mask=torch.tensor([[True, True, False]]))
    weights = {"chosen_key_weight": 1.0, "chosen_context_weight": 1.0, "rejected_key_weight": 0.8}
    loss = dual_cot_loss(**whole, **weights, rejected_penalty="likelihood")
    assert loss.loss.item() == pytest.approx(7 * LN2 / 4 - 0.8 * 3 * LN2 / 2)


def test_likelihood_penalty_by_hand():
    # log(1/4) over 2 completion tokens, β = 0.5.
    assert value(rejected_key_weight=0.5, rejected_penalty="likelihood") == pytest.approx(-LN2 / 2)


def test_unlikelihood_penalty_by_hand():
    # -log(1 - 1/4) over 2.
    expected = -math.log(0.75) / 2
    assert value(rejected_key_weight=1.0, rejected_penalty="unlikelihood") == pytest.approx(expected)


def test_paper_preset_by_hand():
    # α = 1, β = 0.025, γ = 0, λ = 0: 5 ln 2 / 4 + 0.025 · log(1/4) / 2.
    expected = 5 * LN2 / 4 - 0.025 * LN2
    assert value(chosen_key_weight=1.0, rejected_key_weight=0.025, rejected_penalty="likelihood") == pytest.approx(
        expected
    )
    assert expected == pytest.approx(0.8491053)  # 0.8664340 - 0.0173287


def test_unlikelihood_is_finite_and_flat_at_probability_one():
    logps = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = dual_cot_loss(**pair(rejected_logps=logps), chosen_key_weight=1.0, rejected_key_weight=1.0).rejected
    assert loss.item() == pytest.approx(-math.log(1 - UNLIKELIHOOD_MAX_PROBABILITY) / 2)
    assert torch.autograd.grad(loss.sum(), logps)[0].abs().sum() == 0


def test_padding_may_hold_anything():
    hostile = torch.tensor([[*REJECTED[:2], 1.0]], dtype=torch.float64).log()
    hostile[0, 2] = -math.inf
    assert masked_sum(hostile, pair()["rejected_mask"]).item() == pytest.approx(-3 * LN2)


def test_no_key_token_on_the_wrong_side():
    none = torch.zeros(1, 3, dtype=torch.bool)
    loss = dual_cot_loss(
        **pair(rejected_key_mask=none), rejected_key_weight=1.0, normalization="key_tokens", preference_weight=1.0
    )
    assert loss.rejected.item() == 0
    assert loss.preference.item() == 0  # nothing to compare
    assert torch.isfinite(loss.loss).all()


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_chain_score_by_hand():
    tensors = pair()
    args = tensors["chosen_logps"], tensors["chosen_key_mask"]
    assert chain_score(*args, "sum").item() == pytest.approx(-5 * LN2)
    assert chain_score(*args, "mean").item() == pytest.approx(-2.5 * LN2)


# s⁺ = log(1/2), s⁻ = log(1/8): Δ = 2 ln 2.
S_CHOSEN, S_REJECTED = torch.tensor([0.5]).double().log(), torch.tensor([0.125]).double().log()


@pytest.mark.parametrize(
    ("kind", "beta", "margin", "expected"),
    [
        # σ(2 ln 2) = 4/5, and b = 1/2 gives σ(ln 2) = 2/3.
        ("sigmoid", 1.0, 0.0, -math.log(4 / 5)),
        ("sigmoid", 0.5, 0.0, -math.log(2 / 3)),
        # A margin of 2 ln 2 leaves σ(0).
        ("sigmoid", 1.0, 2 * LN2, LN2),
        ("simpo", 1.0, 2 * LN2, LN2),
        ("hinge", 0.5, 0.0, 1 - LN2),
        ("hinge", 1.0, 0.0, 0.0),
        ("hinge", 0.5, 0.5, 1.5 - LN2),
        # Target 1 / (2 · 0.5) = 1.
        ("ipo", 0.5, 0.0, (2 * LN2 - 1) ** 2),
        # Odds 1 and 1/7: σ(log 7) = 7/8.
        ("orpo", 1.0, 0.0, -math.log(7 / 8)),
        # σ(s⁺) = 1/3, σ(s⁻) = 1/9, σ(Δ) = 4/5.
        ("apo_zero", 1.0, 0.0, 2 / 3 + 1 / 9),
        ("apo_down", 1.0, 0.0, 1 / 3 + 1 / 5),
    ],
)
def test_preference_by_hand(kind, beta, margin, expected):
    result = preference_term(S_CHOSEN, S_REJECTED, kind, beta, margin)
    assert result.item() == pytest.approx(expected, abs=1e-12)


def test_dpop_pays_for_a_correct_chain_below_the_reference():
    # s⁺ = -ln 2 is below it: with λ' = 1, Δ falls from 2 ln 2 to ln 2, and σ(ln 2) = 2/3.
    assert preference_term(S_CHOSEN, S_REJECTED, "dpop", 1.0, 0.0, 1.0).item() == pytest.approx(-math.log(2 / 3))
    above = preference_term(-S_CHOSEN, S_REJECTED, "dpop", 1.0, 0.0, 50.0)
    assert above.item() == pytest.approx(preference_term(-S_CHOSEN, S_REJECTED, "sigmoid", 1.0, 0.0).item())


def test_orpo_is_finite_when_every_token_is_certain():
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    result = preference_term(zero, S_REJECTED, "orpo", 1.0, 0.0)
    assert torch.isfinite(result).all()


def test_sigmoid_on_sums_is_the_bounded_contrast():
    # -log(P⁺ / (P⁺ + P⁻)) with P⁺ = 1/4 · 1/8 = 1/32 and P⁻ = 1/4: 1/9.
    assert value(preference_weight=1.0, preference_reduction="sum", preference_beta=1.0) == pytest.approx(math.log(9))


def test_preference_scopes_and_reference():
    first = {"preference_weight": 2.0, "preference_reduction": "sum"}
    scoped = value(
        **first,
        chosen_scope_mask=torch.tensor([[True, False, False, False]]),
        rejected_scope_mask=torch.tensor([[False, True, False]]),
    )
    assert scoped == pytest.approx(2 * LN2)  # equal scores
    # References equal to the scores themselves (-5 ln 2, -2 ln 2): Δ = 0.
    scores = torch.tensor([-5 * LN2]).double(), torch.tensor([-2 * LN2]).double()
    assert value(**first, reference_scores=scores) == pytest.approx(2 * LN2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive(tensors, weights, penalty, normalization, preference, scope) -> list[float]:
    """The objective again in plain Python, one token at a time, in float64."""
    losses = []
    alpha, gamma, beta, lam = weights
    for i in range(len(tensors["chosen_logps"])):
        chosen = [
            (float(p), bool(k))
            for p, m, k in zip(*(tensors[f"chosen_{n}"][i] for n in ("logps", "mask", "key_mask")), strict=True)
            if m
        ]
        rejected = [
            (float(p), bool(k))
            for p, m, k in zip(*(tensors[f"rejected_{n}"][i] for n in ("logps", "mask", "key_mask")), strict=True)
            if m
        ]
        z_chosen, z_rejected = len(chosen), len(rejected)
        if normalization == "key_tokens":
            z_chosen, z_rejected = (max(1, sum(k for _, k in side)) for side in (chosen, rejected))
        loss = sum(-(alpha if k else gamma) * p for p, k in chosen) / z_chosen
        for p, k in rejected:
            if k:
                loss += beta * (p if penalty == "likelihood" else -math.log(1 - math.exp(p))) / z_rejected
        scored = [[p for p, k in side if k or scope == "completion"] for side in (chosen, rejected)]
        if lam and all(scored):
            s = [sum(side) / len(side) for side in scored]
            if preference == "orpo":
                s = [x - math.log(1 - math.exp(x)) for x in s]
            delta = s[0] - s[1]
            contrast = {
                "sigmoid": math.log(1 + math.exp(-0.7 * delta)),
                "simpo": math.log(1 + math.exp(-0.7 * delta)),
                "orpo": math.log(1 + math.exp(-0.7 * delta)),
                "hinge": max(0.0, 1 - 0.7 * delta),
                "ipo": (delta - 1 / 1.4) ** 2,
                "dpop": math.log(1 + math.exp(-0.7 * (delta - 2 * max(0.0, -s[0])))),
                "apo_zero": 1 - sigmoid(0.7 * s[0]) + sigmoid(0.7 * s[1]),
                "apo_down": sigmoid(0.7 * s[0]) + 1 - sigmoid(0.7 * delta),
            }[preference]
            loss += lam * contrast
        losses.append(loss)
    return losses


def random_batch(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    pairs, width = shape
    tensors = {}
    for side, extra in (("chosen", 0), ("rejected", 3)):
        logps = -3 * torch.rand(pairs, width + extra, generator=generator) - 0.01
        lengths = torch.randint(1, width + extra + 1, (pairs,), generator=generator)
        mask = torch.arange(width + extra) < lengths.unsqueeze(1)
        key = (torch.rand(pairs, width + extra, generator=generator) < 0.4) & mask
        tensors |= {f"{side}_logps": logps.to(dtype), f"{side}_mask": mask, f"{side}_key_mask": key}
    return tensors


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preference", get_args(PreferenceLoss))
@pytest.mark.parametrize("penalty", ["likelihood", "unlikelihood"])
@pytest.mark.parametrize(("normalization", "scope"), [("completion", "key_steps"), ("key_tokens", "completion")])
def test_agrees_with_a_naive_version(shape, dtype, preference, penalty, normalization, scope):
    tensors = random_batch(shape, dtype, seed=hash((shape, preference)) % 1000)
    weights = (2.0, 1.0, 0.3, 0.5)
    masks = {}
    if scope == "completion":
        masks = {f"{side}_scope_mask": tensors[f"{side}_mask"] for side in ("chosen", "rejected")}
    loss = dual_cot_loss(
        **tensors,
        chosen_key_weight=weights[0],
        chosen_context_weight=weights[1],
        rejected_key_weight=weights[2],
        preference_weight=weights[3],
        rejected_penalty=penalty,
        normalization=normalization,
        preference_loss=preference,
        preference_beta=0.7,
        dpop_lambda=2.0,
        **masks,
    )
    expected = naive(tensors, weights, penalty, normalization, preference, scope)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert loss.loss.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert torch.allclose(loss.loss, loss.chosen + loss.rejected + loss.preference)


@pytest.mark.parametrize("preference", get_args(PreferenceLoss))
@pytest.mark.parametrize("penalty", ["likelihood", "unlikelihood"])
def test_gradients(preference, penalty):
    tensors = random_batch((3, 5), torch.float64, seed=3)
    masks = {k: v for k, v in tensors.items() if k.endswith("mask")}

    def loss(chosen_logps, rejected_logps):
        return dual_cot_loss(
            chosen_logps,
            rejected_logps,
            **masks,
            rejected_key_weight=0.3,
            rejected_penalty=penalty,
            preference_weight=0.5,
            preference_loss=preference,
        ).loss

    inputs = tuple(tensors[f"{s}_logps"].requires_grad_() for s in ("chosen", "rejected"))
    assert torch.autograd.gradcheck(loss, inputs)


def test_zero_weights_keep_their_terms_out_of_the_graph():
    # An infinitely unlikely wrong token must not make 0 · ∞ of a term that is switched off.
    rejected = torch.full((1, 3), -math.inf, dtype=torch.float64)
    loss = dual_cot_loss(**pair(rejected_logps=rejected), rejected_key_weight=0.0, preference_weight=0.0)
    assert torch.isfinite(loss.loss).all()
