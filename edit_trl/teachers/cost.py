"""What a generation will cost, roughly, before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.teachers.generate_config import GenerateConfig
from edit_trl.teachers.prompts import Templates

_CHARACTERS_PER_TOKEN = 4
_ANSWER_TOKENS = 256  # where no exemplar shows how long a chain is
_MEASURED = 100  # the number of questions whose prompts are measured
_CHECKS = {"none": 0, "self_consistency": 3, "judge": 1}


def estimate(
    config: GenerateConfig, questions: Sequence[Question], templates: Templates, exemplars: Sequence[Exemplar]
) -> str | None:
    """Return a line on the cost of asking the teacher; None where the recipe has no price and asks for no batches.

    The line supposes that half of the chains are wrong, that every pair stays, that answers are as long as the chains
    of the exemplars, and four characters per token.
    """
    limits = config.teacher_limits
    first, later = _requests(config, len(questions))
    batch = f", {config.batch.batch_discount:.0%} off in batches" if config.arguments.teacher == "batch" else ""
    has_price = limits.prompt_price is not None or limits.completion_price is not None
    if not questions or not (has_price or batch):
        return None
    requests = f"estimate: about {first + later:.0f} requests"
    if not has_price:
        return f"{requests}{batch}; `prompt_price` and `completion_price` (per million tokens) tell what they cost"
    answer = min(_answer_tokens(exemplars), config.options.max_tokens)
    shots = exemplars[: config.options.exemplars_per_prompt]
    prompts = [templates.fill("annotate", question, shots) for question in questions[:_MEASURED]]
    prompt = (fmean(map(len, prompts)) + len(config.options.system_prompt or "")) / _CHARACTERS_PER_TOKEN
    prompt_tokens = (first + later) * prompt + later * answer  # later prompts also show a chain
    completion_tokens = (first + later) * answer
    cost = (prompt_tokens * (limits.prompt_price or 0) + completion_tokens * (limits.completion_price or 0)) / 1e6
    line = f"{requests}, cost {cost:.2f}{batch} (half of the chains wrong, answers of {answer:.0f} tokens)"
    if limits.max_cost is not None and cost > limits.max_cost:
        line += f"; `max_cost: {limits.max_cost:g}` will stop the run before its end"
    return line


def _answer_tokens(exemplars: Sequence[Exemplar]) -> float:
    return fmean(len(one.chain) for one in exemplars) / _CHARACTERS_PER_TOKEN if exemplars else _ANSWER_TOKENS


def _requests(config: GenerateConfig, questions: int) -> tuple[float, float]:
    """Return the number of requests that annotate, and of those that follow."""
    options, arguments = config.options, config.arguments
    half = questions * min(options.samples / 2, options.pairs_per_question)  # wrong chains, and right ones
    rectified = half * ((options.rectify != "none") + (arguments.student is not None))
    pairs = rectified + half * options.corrupt
    asked = 0 if arguments.labeller else (options.label != "none") + options.critique
    return questions * options.samples, pairs + rectified * _CHECKS[options.rectify_check] + pairs * asked
