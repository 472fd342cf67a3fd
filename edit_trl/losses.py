"""The dual-CoT objective: every formula of the method, as pure functions of tensors and floats.

For a pair with N⁺ and N⁻ completion tokens, key masks m⁺, m⁻ and token probabilities p:

    L = 1/Z⁺ Σ_t [α m⁺_t + γ (1 - m⁺_t)] (-log p⁺_t)      key tokens of the correct chain, its context
      + β/Z⁻ Σ_t m⁻_t R(p⁻_t)                              key tokens of the wrong chain
      + λ C(s⁺, s⁻)                                        contrastive preference term

| symbol | here                    | meaning                                                        |
|--------|-------------------------|----------------------------------------------------------------|
| α      | `chosen_key_weight`     | weight of the correct chain's key tokens                       |
| γ      | `chosen_context_weight` | weight of its other completion tokens                          |
| β      | `rejected_key_weight`   | weight of the wrong chain's key tokens                         |
| λ      | `preference_weight`     | weight of the preference term                                  |
| R      | `rejected_penalty`      | what lowers the likelihood of a wrong key token                |
| Z      | `normalization`         | what the token sums are divided by                             |
| s      | `chain_score`           | log-probability of the scored tokens, less the reference's     |
| C      | `preference_loss`       | what asks for s⁺ > s⁻                                          |

The method is EDIT (arXiv 2405.19737), whose key-step objective is the point α = 1, β = 0.025, γ = 0,
λ = 0, R = log p, Z = completion tokens. SFT on the correct chains is α = γ = 1, β = λ = 0. REDI
(arXiv 2505.24850, eq. 6) is α = γ = 1, β = 0.8, λ = 0, R = log p, with m⁻ the whole wrong chain.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

RejectedPenalty = Literal["likelihood", "unlikelihood"]
Normalization = Literal["completion", "key_tokens", "step"]
PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "orpo", "simpo", "dpop", "apo_zero", "apo_down"]
ChosenLoss = Literal["nll", "dft"]
PreferenceReduction = Literal["mean", "sum"]

# -log(1 - p) has no bound as p approaches 1, which the tokens that follow from an error do: they are
# nearly certain once the error is made. Above this probability a token is left alone.
UNLIKELIHOOD_MAX_PROBABILITY = 0.999
# The odds p / (1 - p) of ORPO need p < 1; a score of 0 (every token certain) would divide by zero.
ORPO_MAX_SCORE = -1e-6


@dataclass(frozen=True)
class DualCoTLoss:
    """The objective and its weighted parts, one value per pair; `loss` is the sum of the parts.

    Attributes:
        loss: L. Shape (B,).
        chosen: The term of the correct chain, α and γ applied. Shape (B,).
        rejected: The term of the wrong chain, β applied. Shape (B,).
        preference: The preference term, λ applied. Shape (B,).
    """

    loss: Tensor
    chosen: Tensor
    rejected: Tensor
    preference: Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last dimension where `mask` holds: (B, T), (B, T) -> (B,).

    Positions outside the mask may hold anything, also infinities: they are replaced, not multiplied.
    """
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where `mask` holds, 0 where it holds nowhere: -> (B,)."""
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def chosen_term(
    logps: Tensor, mask: Tensor, key_mask: Tensor, key_weight: float, context_weight: float, kind: ChosenLoss = "nll"
) -> Tensor:
    """Σ_t [α m⁺_t + γ (1 - m⁺_t)] (-log p⁺_t), not yet divided by Z⁺ (EDIT, section 3.3).

    With `dft` (Dynamic Fine-Tuning, arXiv 2508.05629, eq. 9) each -log p is weighted by p, through which no gradient
    flows, so that tokens the student finds unlikely pull less.

    Args:
        logps: log p⁺. Shape (B, T).
        mask: Completion tokens. Bool, shape (B, T).
        key_mask: m⁺, a subset of `mask`. Bool, shape (B, T).
        key_weight: α.
        context_weight: γ.
        kind: `nll` or `dft`.

    Returns:
        Shape (B,).
    """
    losses = -logps * logps.detach().exp() if kind == "dft" else -logps
    key = masked_sum(losses, key_mask)
    context = masked_sum(losses, mask & ~key_mask)
    return key_weight * key + context_weight * context


def rejected_term(logps: Tensor, key_mask: Tensor, penalty: RejectedPenalty) -> Tensor:
    """Σ_t m⁻_t R(p⁻_t), not yet divided by Z⁻ nor weighted by β.

    `likelihood` is R = log p, the paper's: minimising it lowers p without a bound, and the less likely the token
    already is the harder it pushes. `unlikelihood` is R = -log(1 - p) (Welleck et al., arXiv 1908.04319), gentle on
    unlikely tokens; tokens above `UNLIKELIHOOD_MAX_PROBABILITY` have its value there and no gradient.

    Args:
        logps: log p⁻. Shape (B, T).
        key_mask: m⁻. Bool, shape (B, T).
        penalty: R.

    Returns:
        Shape (B,).
    """
    if penalty == "likelihood":
        return masked_sum(logps, key_mask)
    probability = logps.exp().clamp(max=UNLIKELIHOOD_MAX_PROBABILITY)
    return masked_sum(-torch.log1p(-probability), key_mask)


def chain_score(logps: Tensor, scope_mask: Tensor, reduction: PreferenceReduction) -> Tensor:
    """s: the sum or mean log-probability of a chain's scored tokens: (B, T), (B, T) -> (B,)."""
    return (masked_mean if reduction == "mean" else masked_sum)(logps, scope_mask)


def preference_term(
    chosen_score: Tensor,
    rejected_score: Tensor,
    kind: PreferenceLoss,
    beta: float,
    margin: float,
    dpop_lambda: float = 0.0,
) -> Tensor:
    """C(s⁺, s⁻), not yet weighted by λ.

    With Δ = s⁺ - s⁻:

    | kind             | C                                            | source                        |
    |------------------|----------------------------------------------|-------------------------------|
    | `sigmoid`        | -log σ(b Δ - margin)                         | DPO, arXiv 2305.18290, eq. 7  |
    | `simpo`          | the same on mean scores, without a reference | SimPO, arXiv 2405.14734, eq. 6|
    | `hinge`          | max(0, 1 + margin - b Δ)                     | SLiC, arXiv 2305.10425        |
    | `ipo`            | (Δ - 1 / (2 b))²                             | IPO, arXiv 2310.12036, eq. 17 |
    | `orpo`           | -log σ(b (log odds⁺ - log odds⁻) - margin)   | ORPO, arXiv 2403.07691, eq. 7 |
    | `dpop`           | -log σ(b (Δ - λ' max(0, -s⁺)) - margin)      | DPOP, arXiv 2402.13228, eq. 3 |
    | `apo_zero`       | 1 - σ(b s⁺) + σ(b s⁻)                        | APO, arXiv 2408.06266, eq. 7  |
    | `apo_down`       | σ(b s⁺) + 1 - σ(b Δ)                         | APO, arXiv 2408.06266, eq. 8  |

    `sigmoid` with b = 1, no margin and summed scores is -log(P⁺ / (P⁺ + P⁻)), the bounded contrast between two ways on.

    Args:
        chosen_score: s⁺. Shape (B,).
        rejected_score: s⁻. Shape (B,).
        kind: Which C.
        beta: b, the inverse temperature.
        margin: How much larger b Δ should be than 0; `ipo` and `apo_*` have targets of their own and ignore it.
        dpop_lambda: λ', the weight of the correct chain's fall below the reference in `dpop`.

    Returns:
        Shape (B,).
    """
    if kind == "ipo":
        return (chosen_score - rejected_score - 1 / (2 * beta)) ** 2
    if kind == "apo_zero":
        return 1 - torch.sigmoid(beta * chosen_score) + torch.sigmoid(beta * rejected_score)
    if kind == "apo_down":
        return torch.sigmoid(beta * chosen_score) + 1 - torch.sigmoid(beta * (chosen_score - rejected_score))
    if kind == "dpop":
        chosen_score = chosen_score - dpop_lambda * torch.relu(-chosen_score)
    if kind == "orpo":
        chosen_score, rejected_score = _log_odds(chosen_score), _log_odds(rejected_score)
    scaled = beta * (chosen_score - rejected_score) - margin
    return torch.relu(1 - scaled) if kind == "hinge" else -F.logsigmoid(scaled)


def _log_odds(score: Tensor) -> Tensor:
    """log(p / (1 - p)) of a mean log-probability."""
    score = score.clamp(max=ORPO_MAX_SCORE)
    return score - torch.log1p(-score.exp())


def normalizer(
    mask: Tensor, key_mask: Tensor, normalization: Normalization, step_mean: Tensor | float | None
) -> Tensor | float:
    """Z, at least 1: what a chain's token sum is divided by.

    `completion`: its completion tokens (the paper's code). `key_tokens`: its key tokens. `step`: the
    mean number of completion tokens over all pairs of the optimizer step, so that each token
    counts the same, as in TRL's SFT, and not each pair.

    Args:
        mask: Completion tokens. Bool, shape (B, T).
        key_mask: Key tokens. Bool, shape (B, T).
        normalization: Which Z.
        step_mean: The mean for `step`; this batch's where it is None.

    Returns:
        Shape (B,), or one number for all pairs.
    """
    if normalization == "key_tokens":
        return key_mask.sum(-1).clamp(min=1)
    lengths = mask.sum(-1)
    if normalization == "completion":
        return lengths.clamp(min=1)
    return lengths.to(torch.get_default_dtype()).mean().clamp(min=1) if step_mean is None else step_mean


def dual_cot_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor | None,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_key_mask: Tensor,
    rejected_key_mask: Tensor,
    *,
    chosen_loss: ChosenLoss = "nll",
    chosen_key_weight: float = 2.0,
    chosen_context_weight: float = 1.0,
    rejected_key_weight: float = 0.0,
    rejected_penalty: RejectedPenalty = "unlikelihood",
    normalization: Normalization = "completion",
    step_means: tuple[Tensor | float, Tensor | float] | None = None,
    preference_weight: float = 0.0,
    preference_loss: PreferenceLoss = "sigmoid",
    preference_reduction: PreferenceReduction = "mean",
    preference_beta: float = 1.0,
    preference_margin: float = 0.0,
    dpop_lambda: float = 0.0,
    chosen_scope_mask: Tensor | None = None,
    rejected_scope_mask: Tensor | None = None,
    reference_scores: tuple[Tensor, Tensor] | None = None,
) -> DualCoTLoss:
    """The dual-CoT objective of each pair (the equation at the top of this module).

    Args:
        chosen_logps: log p⁺ of the correct chain's completion tokens. Shape (B, T⁺).
        rejected_logps: log p⁻ of the wrong chain's completion tokens. Shape (B, T⁻); None where β = λ = 0.
        chosen_mask: Which positions are completion tokens (the others are padding). (B, T⁺), bool.
        rejected_mask: Which positions of the wrong chains are completion tokens. (B, T⁻), bool.
        chosen_key_mask: m⁺. (B, T⁺), bool.
        rejected_key_mask: m⁻, already limited to the tokens that may be penalised. (B, T⁻), bool.
        chosen_loss: The loss of a token of the correct chain; see `chosen_term`.
        chosen_key_weight: α.
        chosen_context_weight: γ.
        rejected_key_weight: β.
        rejected_penalty: R.
        normalization: Z.
        step_means: For `normalization="step"`, the mean number of completion tokens of (correct,
            wrong) chains over the optimizer step.
        preference_weight: λ.
        preference_loss: C.
        preference_reduction: Whether s sums or averages.
        preference_beta: b.
        preference_margin: The margin in C.
        dpop_lambda: λ' of `preference_loss="dpop"`.
        chosen_scope_mask: The tokens s⁺ is taken over; `chosen_key_mask` where None.
        rejected_scope_mask: The tokens s⁻ is taken over; `rejected_key_mask` where None.
        reference_scores: s⁺ and s⁻ of the reference model, subtracted. Two of shape (B,).

    Returns:
        The loss of each pair and its parts. A pair with no scored token on one side has no
        preference term: there is nothing to compare.
    """
    chosen_z = normalizer(chosen_mask, chosen_key_mask, normalization, step_means and step_means[0])
    rejected_z = normalizer(rejected_mask, rejected_key_mask, normalization, step_means and step_means[1])
    weights = chosen_key_weight, chosen_context_weight
    chosen = chosen_term(chosen_logps, chosen_mask, chosen_key_mask, *weights, chosen_loss) / chosen_z
    # A weight of zero leaves its term out of the graph: 0 times an infinite penalty is not a number.
    rejected = preference = torch.zeros_like(chosen)
    if rejected_key_weight:
        assert rejected_logps is not None
        penalty = rejected_term(rejected_logps, rejected_key_mask, rejected_penalty)
        rejected = rejected_key_weight * penalty / rejected_z
    if preference_weight:
        assert rejected_logps is not None
        chosen_scope = chosen_key_mask if chosen_scope_mask is None else chosen_scope_mask
        rejected_scope = rejected_key_mask if rejected_scope_mask is None else rejected_scope_mask
        chosen_score = chain_score(chosen_logps, chosen_scope, preference_reduction)
        rejected_score = chain_score(rejected_logps, rejected_scope, preference_reduction)
        if reference_scores is not None:
            chosen_score = chosen_score - reference_scores[0]
            rejected_score = rejected_score - reference_scores[1]
        strength = preference_beta, preference_margin, dpop_lambda
        contrast = preference_term(chosen_score, rejected_score, preference_loss, *strength)
        comparable = chosen_scope.any(-1) & rejected_scope.any(-1)
        preference = preference_weight * contrast.masked_fill(~comparable, 0.0)
    return DualCoTLoss(chosen + rejected + preference, chosen, rejected, preference)
