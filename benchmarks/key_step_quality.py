"""Measures how well key-step locators find the steps of a wrong chain that contain its error.

    python benchmarks/key_step_quality.py --data ../shared/data/key_steps/prmbench_dev.jsonl
        [--tokenizer MODEL] [--scores FILE.jsonl] [--procedural_pairs 1000]
        [--base_url URL --model NAME --journal FOLDER [--limit 200]]

Rows of `--data` have `correct_steps` and `wrong_steps` (a chain is its steps, joined by newlines),
`error_steps` (numbers of the wrong steps, from 1), `mistake` and `original_question`. Procedural pairs come
from the embedded teacher. Their error step is the sentence of the first exact span; pairs whose mistake is a
missing step are left out, since their wrong chain does not show it. Marks are counted in words, or in tokens
of `--tokenizer`; `edit` and `reference` align the same units.

The option of a locator (in brackets) is chosen by F1 on the tuning half: the rows whose original question has
an odd SHA-256, so that no question is in both halves. `--scores` is a file of key_step_scores.py; locators
that need a student's scores are compared only on the pairs in it. With `--base_url`, a model is asked which steps
carry the error (`label: steps` of `edit-trl generate`), and compared on the pairs whose answer can be used; its answers
are in the journal, so that the same command pays for none twice. The last line is one JSON object.

precision   share of the marks on wrong chains that lie in an error step
recall      share of the error steps with at least one mark
F1          of precision and recall. One mark per step is enough for this recall, so it favours few marks
kept        share of the differing words (or tokens) in error steps that are marked
F1 kept     of precision and `kept`
first       share of pairs whose first mark lies in an error step
pair P, R   precision and recall as means over pairs, and their F1
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from inputs import read_columns, run_benchmark

import edit_trl
from edit_trl import ProceduralTeacher
from edit_trl.common.errors import InputError
from edit_trl.common.steps import WORD, step_end, visible_start
from edit_trl.key_steps import Span, locate_key_steps, masks_from_spans

METHODS = ("edit", "reference", "words", "fork", "forks")
FIGURES = (*("precision", "recall", "f1", "kept", "f1_kept", "first"), *("pair_precision", "pair_recall", "pair_f1"))


@dataclass
class Case:
    """A pair with its labels and marks; steps are numbered from 0.

    Attributes:
        chosen: The correct chain.
        rejected: The wrong chain.
        starts: First character of each step of the wrong chain.
        errors: The steps that contain the error.
        mistake: The kind of mistake.
        tuning: Whether the pair is in the tuning half.
        offsets: The [start, end) characters of each unit (word or token) of the wrong chain.
        marks: A bool per unit, by method.
        own: The student's surprise at each unit in nats, given the wrong chain before it; empty if not scored.
        other: The surprise given the correct chain's corresponding prefix; None outside steps that differ.
    """

    chosen: str
    rejected: str
    starts: list[int]
    errors: set[int]
    mistake: str
    tuning: bool
    question: str = ""
    offsets: list[Span] = field(default_factory=list)
    marks: dict[str, list[bool]] = field(default_factory=dict)
    own: list[float] = field(default_factory=list)
    other: list[float | None] = field(default_factory=list)

    def step(self, unit: int) -> int:
        """The step of a unit."""
        return bisect_right(self.starts, visible_start(self.offsets[unit], self.rejected)) - 1


PRMBENCH = {"correct_steps": list[str], "wrong_steps": list[str], "error_steps": list[int]}
PRMBENCH |= {"original_question": str, "question": str, "mistake": str}
SCORES = {"pair": int, "offsets": list[Annotated[list[int], 2]], "own": list[float], "other": list[float | None]}


def prmbench_cases(path: Path) -> list[Case]:
    """Read the labelled pairs of a file."""
    cases = []
    for row in read_columns(path, PRMBENCH):
        chosen, rejected = "\n".join(row["correct_steps"]), "\n".join(row["wrong_steps"])
        starts = [0]
        for step in row["wrong_steps"][:-1]:
            starts.append(starts[-1] + len(step) + 1)
        digest = hashlib.sha256(row["original_question"].encode()).hexdigest()
        errors = {number - 1 for number in row["error_steps"]}
        tuning = bool(int(digest, 16) % 2)
        cases.append(Case(chosen, rejected, starts, errors, row["mistake"], tuning, row["question"]))
    return cases


def procedural_cases(count: int) -> list[tuple[Case, list[list[int]]]]:
    """Pairs of the embedded teacher, with the exact spans of all differences in the wrong chain."""
    cases = []
    for difficulty in range(1, 6):
        for row in ProceduralTeacher(difficulty=difficulty).rows(count // 5):
            text, spans, [mistake] = row["rejected"], row["rejected_key_spans"], row["mistake"]
            if mistake == "missing step" or not spans:
                continue
            starts = [0]
            while (end := step_end(text, starts[-1])) < len(text):
                starts.append(end)
            first = visible_start(tuple(spans[0]), text)
            error = bisect_right(starts, first) - 1
            cases.append((Case(row["chosen"], text, starts, {error}, mistake, tuning=False), spans))
    return cases


def mark(case: Case, tokenizer: Any) -> None:
    """Set the units of a case and the marks of every method of the package."""
    if tokenizer is None:
        case.offsets = [match.span() for match in WORD.finditer(case.rejected)]
    else:
        encoded = tokenizer(case.rejected, add_special_tokens=False, return_offsets_mapping=True)
        case.offsets = [tuple(span) for span in encoded["offset_mapping"]]
    for method in METHODS:
        case.marks[method] = locate_key_steps(case.chosen, case.rejected, tokenizer, method).rejected


# Locators that were tried and are not part of the package. Each takes a case and an option and marks units.


def differing(case: Case) -> Iterator[tuple[int, int, int]]:
    """(unit, its step, the number of differing steps before it) for each unit that `words` marks."""
    seen: dict[int, int] = {}
    for unit, key in enumerate(case.marks["words"]):
        if key:
            step = case.step(unit)
            yield unit, step, seen.setdefault(step, len(seen))


def as_mask(case: Case, units: Iterable[int]) -> list[bool]:
    marked = set(units)
    return [unit in marked for unit in range(len(case.offsets))]


def first_steps(case: Case, count: float) -> list[bool]:
    """The differing units of the first `count` steps that differ."""
    return as_mask(case, (unit for unit, _, rank in differing(case) if rank < count))


def first_units(case: Case, count: float) -> list[bool]:
    """The first `count` differing units."""
    return as_mask(case, [unit for unit, _, _ in differing(case)][: int(count)])


def units_a_step(case: Case, count: float) -> list[bool]:
    """The first `count` differing units of every step."""
    taken: dict[int, int] = {}
    kept = []
    for unit, step, _ in differing(case):
        taken[step] = taken.get(step, 0) + 1
        if taken[step] <= count:
            kept.append(unit)
    return as_mask(case, kept)


def whole_steps(case: Case, share: float) -> list[bool]:
    """Every unit of the steps in which more than `share` of the units differ."""
    size: dict[int, int] = {}
    changed: dict[int, int] = {}
    for unit in range(len(case.offsets)):
        size[case.step(unit)] = size.get(case.step(unit), 0) + 1
    for _, step, _ in differing(case):
        changed[step] = changed.get(step, 0) + 1
    return [changed.get(s, 0) > share * size[s] for s in map(case.step, range(len(case.offsets)))]


def causes(case: Case, _: float) -> list[bool]:
    """Differing units whose text does not already differ in an earlier step."""
    first: dict[str, int] = {}
    kept = []
    for unit, step, _ in differing(case):
        text = case.rejected[slice(*case.offsets[unit])].strip()
        if first.setdefault(text, step) == step:
            kept.append(unit)
    return as_mask(case, kept)


def surprising(case: Case, nats: float) -> list[bool]:
    """Differing units that the student finds unlikely."""
    return as_mask(case, (unit for unit, _, _ in differing(case) if case.own[unit] > nats))


def fork_and_surprising(case: Case, nats: float) -> list[bool]:
    """The step of the fork, and later differing units that the student finds unlikely."""
    later = as_mask(case, (unit for unit, _, _ in differing(case) if case.own[unit] > nats))
    return [a or b for a, b in zip(case.marks["fork"], later, strict=True)]


def forks_and_surprising(case: Case, nats: float) -> list[bool]:
    """The marks of `forks`; later steps only where the student finds their first differing unit unlikely."""
    either = fork_and_surprising(case, nats)
    return [a and b for a, b in zip(case.marks["forks"], either, strict=True)]


def _steps_by(case: Case, accepts: Callable[[list[int]], bool]) -> list[bool]:
    by_step: dict[int, list[int]] = {}
    for unit, step, _ in differing(case):
        by_step.setdefault(step, []).append(unit)
    return as_mask(case, (unit for units in by_step.values() if accepts(units) for unit in units))


def surprising_steps(case: Case, nats: float) -> list[bool]:
    """Differing units of steps whose mean surprise over these units is high."""
    return _steps_by(case, lambda units: mean(case.own[unit] for unit in units) > nats)


def unlikely_after_both(case: Case, nats: float) -> list[bool]:
    """Differing units that are unlikely after either prefix."""

    def both(unit: int) -> float:
        other = case.other[unit]
        return case.own[unit] if other is None else min(case.own[unit], other)

    return as_mask(case, (unit for unit, _, _ in differing(case) if both(unit) > nats))


def contrasted_steps(case: Case, nats: float) -> list[bool]:
    """Differing units of steps that the wrong prefix makes hardly more likely than the right prefix does."""

    def gain(units: list[int]) -> float:
        pairs = [(case.own[u], case.other[u]) for u in units if case.other[u] is not None]
        return mean(other - own for own, other in pairs) if pairs else 0.0

    return _steps_by(case, lambda units: gain(units) < nats)


TEXT_LOCATORS = {
    first_steps: (1, 2, 3, 4, 5, 6, 8),
    first_units: (20, 30, 40, 50, 60, 80),
    units_a_step: (1, 2, 3, 5, 10),
    whole_steps: (0, 0.25, 0.5, 0.75),
    causes: (0,),
}
SCORE_LOCATORS = {
    surprising: (0.5, 1, 2, 3, 4, 6),
    fork_and_surprising: (1, 2, 3, 4, 6, 8),
    forks_and_surprising: (0.5, 1, 2, 3, 4),
    surprising_steps: (0.5, 1, 2, 3),
    unlikely_after_both: (0.5, 1, 2, 3, 4),
    contrasted_steps: (-0.5, 0, 0.25, 0.5, 1, 2),
}


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score(cases: list[Case], masks: list[list[bool]]) -> dict[str, float]:
    """The figures of the module's docstring, over cases with one mask each."""
    marks = hits = errors = touched = marked = wanted = firsts = 0
    precisions, recalls = [], []
    for case, mask in zip(cases, masks, strict=True):
        steps = [case.step(unit) for unit, key in enumerate(mask) if key]
        inside = sum(step in case.errors for step in steps)
        found = len(case.errors & set(steps))
        marks, hits = marks + len(steps), hits + inside
        errors, touched = errors + len(case.errors), touched + found
        for unit, step, _ in differing(case):
            wanted += step in case.errors
            marked += step in case.errors and mask[unit]
        firsts += bool(steps) and steps[0] in case.errors
        recalls.append(found / len(case.errors))
        precisions += [inside / len(steps)] if steps else []
    precision, recall, kept = hits / max(marks, 1), touched / errors, marked / max(wanted, 1)
    figures = (precision, recall, f1(precision, recall), kept, f1(precision, kept), firsts / len(cases))
    by_pair = (mean(precisions) if precisions else 0.0), mean(recalls)
    return dict(zip(FIGURES, (*figures, *by_pair, f1(*by_pair)), strict=True))


def measure(cases: list[Case], mask_of: Callable[[Case], list[bool]]) -> dict[str, Any]:
    """Figures over all cases, on both halves, and by kind of mistake."""
    masks = [mask_of(case) for case in cases]

    def part(keep: Callable[[Case], bool]) -> dict[str, float] | None:
        chosen = [(case, mask) for case, mask in zip(cases, masks, strict=True) if keep(case)]
        return score(*map(list, zip(*chosen, strict=True))) if chosen else None

    kinds = sorted({case.mistake for case in cases})
    return {
        "all": score(cases, masks),
        "tuning": part(lambda case: case.tuning),
        "held_out": part(lambda case: not case.tuning),
        "by_mistake": {kind: part(lambda case, kind=kind: case.mistake == kind) for kind in kinds},
    }


def best_option(cases: list[Case], locator: Callable, options: Iterable[float]) -> float:
    tuning = [case for case in cases if case.tuning]
    return max(options, key=lambda option: score(tuning, [locator(case, option) for case in tuning])["f1"])


def compare(cases: list[Case], tried: dict[Callable, tuple]) -> dict[str, dict[str, Any]]:
    """The shipped methods and those tried, on the same cases."""
    found = {name: measure(cases, lambda case, name=name: case.marks[name]) for name in METHODS}
    for locator, options in tried.items():
        option = best_option(cases, locator, options)
        name = locator.__name__ if len(options) == 1 else f"{locator.__name__}[{option:g}]"
        found[name] = measure(cases, lambda case, use=locator, option=option: use(case, option))
    return found


def read_scores(path: Path, cases: list[Case]) -> list[Case]:
    """Give the scored cases their scores, a unit the sum of its tokens'; return these cases."""
    scored = []
    for number, row in enumerate(read_columns(path, SCORES), 1):
        if not 0 <= row["pair"] < len(cases) or not len(row["offsets"]) == len(row["own"]) == len(row["other"]):
            raise InputError(f"{path}, row {number}: not the scores of one of the {len(cases)} pairs; score them again")
        case = cases[row["pair"]]
        case.own, case.other = [0.0] * len(case.offsets), [None] * len(case.offsets)
        ends = [end for _, end in case.offsets]
        for (start, end), own, other in zip(row["offsets"], row["own"], row["other"], strict=True):
            unit = bisect_right(ends, visible_start((start, end), case.rejected))
            if unit == len(ends):
                continue
            case.own[unit] -= own
            if other is not None:
                case.other[unit] = (case.other[unit] or 0.0) - other
        scored.append(case)
    return scored


def ask_for_steps(cases: list[Case], url: str, model: str, journal: Path) -> tuple[list[Case], dict[str, int]]:
    """Let a model name the steps that carry the error; returns the cases with usable answers, and all outcomes."""
    from edit_trl.data.questions import Question
    from edit_trl.models.chat.dispatch import Dispatcher, Limits
    from edit_trl.models.chat.display import Display
    from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
    from edit_trl.models.chat.journal import Journal
    from edit_trl.teachers.filters import ChainPair
    from edit_trl.teachers.generation import PipelineOptions
    from edit_trl.teachers.labelling import Labelling
    from edit_trl.teachers.prompts import Templates
    from edit_trl.teachers.requests import Requests

    questions = [Question(str(number), case.question, "?", "text") for number, case in enumerate(cases)]
    requests = Requests(questions, PipelineOptions(label="steps"), Templates.load())
    requests.generation.pairs = [
        ChainPair(question, case.chosen, case.rejected, "labelled", 0)
        for question, case in zip(questions, cases, strict=True)
    ]

    async def ask() -> None:
        teacher = OpenAICompatibleTeacher(model, [url])
        with Journal(journal) as answers:
            dispatcher = Dispatcher(teacher, answers, Limits())
            with Display([dispatcher]) as requests.watcher:
                await Labelling(requests, dispatcher).label_steps()
        await teacher.close()

    asyncio.run(ask())
    usable = []
    for pair in requests.generation.pairs:
        case = cases[int(pair.question.id)]
        case.marks["asked"] = masks_from_spans(list(pair.rejected_key_spans), case.offsets)
        usable.append(case)
    return usable, dict(requests.generation.counts["label_steps"])


def asked(case: Case, _: float) -> list[bool]:
    """Every unit of the steps that the model named."""
    return case.marks["asked"]


def exact_spans(cases: list[tuple[Case, list[list[int]]]]) -> dict[str, dict[str, float]]:
    """Precision and recall of each method's marks against all units that really differ."""
    found = {}
    for name in METHODS:
        both = marked = true = 0
        for case, spans in cases:
            exact = masks_from_spans([tuple(span) for span in spans], case.offsets)
            both += sum(a and b for a, b in zip(exact, case.marks[name], strict=True))
            marked, true = marked + sum(case.marks[name]), true + sum(exact)
        found[name] = {"precision": both / max(marked, 1), "recall": both / max(true, 1)}
    return found


def print_table(title: str, results: dict[str, dict[str, Any]]) -> None:
    halves = all(result["tuning"] and result["held_out"] for result in results.values())
    print(f"\n{title}")
    heads = ("precision", "recall", "F1", "kept", "F1 kept", "first", "pair P", "pair R", "pair F1")
    last = f"{'F1 tuning/held-out':>20}" * halves
    print(f"{'locator':<26}" + "".join(f"{head:>10}" for head in heads) + last)
    for name, result in results.items():
        figures = "".join(f"{result['all'][key]:>10.3f}" for key in FIGURES)
        both = f"{result['tuning']['f1']:>12.3f} / {result['held_out']['f1']:.3f}" if halves else ""
        print(f"{name:<26}{figures}{both}")


def print_kinds(results: dict[str, dict[str, Any]]) -> None:
    kinds = list(results["words"]["by_mistake"])
    print(f"\n{'precision / recall / F1 by mistake':<36}" + "".join(f"{name:>22}" for name in METHODS))
    for kind in kinds:
        cells = [results[name]["by_mistake"][kind] for name in METHODS]
        texts = (f"{c['precision']:.2f} / {c['recall']:.2f} / {c['f1']:.2f}" for c in cells)
        print(f"{kind:<36}" + "".join(f"{text:>22}" for text in texts))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="labelled pairs, JSON Lines")
    parser.add_argument("--tokenizer", help="a model whose tokens are aligned and counted instead of words")
    parser.add_argument("--scores", type=Path, help="what key_step_scores.py wrote")
    parser.add_argument("--procedural_pairs", type=int, default=1000)
    parser.add_argument("--base_url", help="an endpoint whose model is asked for the steps")
    parser.add_argument("--model", help="the model's name there")
    parser.add_argument("--journal", type=Path, help="the folder for its answers")
    parser.add_argument("--limit", type=int, help="ask about only so many pairs, from the beginning")
    args = parser.parse_args(argv)
    if args.base_url and not (args.model and args.journal):
        raise InputError("--base_url needs --model and --journal")
    tokenizer = None
    if args.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    unit = "tokens" if tokenizer else "words"
    cases, made = prmbench_cases(args.data), procedural_cases(args.procedural_pairs)
    for case in [*cases, *(case for case, _ in made)]:
        mark(case, tokenizer)

    results = {"labelled": compare(cases, TEXT_LOCATORS)}
    print_table(f"{args.data.name}: {len(cases)} pairs, {unit}", results["labelled"])
    print_kinds(results["labelled"])
    if args.scores:
        scored = read_scores(args.scores, cases)
        results["scored"] = compare(scored, TEXT_LOCATORS | SCORE_LOCATORS)
        print_table(f"{args.data.name}, the {len(scored)} pairs with a student's scores", results["scored"])
    if args.base_url:
        usable, outcomes = ask_for_steps(cases[: args.limit], args.base_url, args.model, args.journal)
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"\n{args.model} was asked about {sum(outcomes.values())} pairs: {told}")
        results["outcomes"] = outcomes
        if usable:
            results["asked"] = compare(usable, {asked: (0,)})
            print_table(f"{args.data.name}, the {len(usable)} pairs whose answer can be used", results["asked"])
    results["procedural"] = compare([case for case, _ in made], {})
    print_table(f"procedural: {len(made)} pairs, {unit}; one error step each", results["procedural"])
    results["exact_spans"] = exact_spans(made)
    print("\nprocedural, against the exact spans of all that differs (the error and what follows from it)")
    for name, figures in results["exact_spans"].items():
        print(f"{name:<26}{figures['precision']:>12.3f}{figures['recall']:>12.3f}")
    versions = {"python": platform.python_version(), "edit_trl": edit_trl.__version__}
    versions["rapidfuzz"] = version("rapidfuzz")
    about = {"benchmark": "key_step_quality", "data": args.data.name, "pairs": len(cases), "unit": unit}
    about |= {"versions": versions, "machine": {"cpu": platform.machine(), "cores": os.cpu_count()}}
    print(json.dumps(about | results))


if __name__ == "__main__":
    run_benchmark(main)
