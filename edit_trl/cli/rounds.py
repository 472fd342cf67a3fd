"""The rounds of `edit-trl generate`: make pairs from the student's own mistakes, train on them, measure, and again.

Each round has a folder: the pairs, the trained `student`, that of the `control`, and their `dev` runs. `rounds.json`
beside them has what is finished, so that the same command resumes after an interruption anywhere: answers are in the
journal, training and measuring resume from their own folders.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.files import content_hash, write_whole
from edit_trl.common.json_text import read_json_file
from edit_trl.common.tables import aligned

if TYPE_CHECKING:
    from edit_trl.data.questions import Question
    from edit_trl.teachers.generate_config import GenerateConfig

STATE = "rounds.json"
# Options that may differ between an interrupted command and the one that resumes it.
_MAY_CHANGE = ("rounds", "max_concurrency", "batch_size", "batching", "timeout", "output_dir")


@dataclass(frozen=True)
class Measured:
    """The accuracy of a student on the dev task, with its 95% interval over questions."""

    accuracy: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        student: The folder of the trained student.
        questions: Number of questions.
        mixed: Number of questions with something to pair: right samples and wrong ones. None with a teacher, who
            writes the right chains.
        right: Number of right samples of the student that the round began with.
        wrong: Number of its wrong samples.
        pairs: Number of pairs.
        steps: Optimizer steps of the training, all stages together.
        making_tokens: Tokens that were written for the pairs, those before an interruption included.
        training_tokens: Tokens that the student was trained on.
        making_seconds: Time of sampling and pairing; that of the last attempt, if it was interrupted.
        training_seconds: Time of the training, likewise.
        dev: The student on the dev task; None without one.
        control: The control on the dev task; None without a control or a dev task.
    """

    student: str
    questions: int
    mixed: int | None
    right: int
    wrong: int
    pairs: int
    steps: int
    making_tokens: int
    training_tokens: int
    making_seconds: float
    training_seconds: float
    dev: Measured | None = None
    control: Measured | None = None


def run_rounds(config: GenerateConfig, make_pairs: Callable[[GenerateConfig, Path], None]) -> None:
    """Run all rounds, or those that are left; stop when the accuracy on the dev task falls.

    Args:
        config: The recipe.
        make_pairs: Makes the pairs of a student and saves them to a folder.

    Raises:
        InputError: Before anything is asked: a recipe or a dev task that cannot be used, dev questions among the
            questions, or an `output_dir` with rounds of other options. Later: a student gives no pairs, or training
            ended with an error.
    """
    from edit_trl.teachers.generation import DUAL, WARM_UP

    arguments = config.arguments
    folder = Path(arguments.output_dir)
    questions, hashes = check_rounds(config)
    state = _read_state(folder, config, hashes)

    def save() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / STATE, json.dumps(state, indent=1) + "\n")

    student, train_recipe, explained = arguments.student, arguments.train_recipe, False
    assert student is not None  # the options refuse rounds without both
    assert train_recipe is not None
    if arguments.dev_task and state["start"] is None:
        state["start"] = asdict(_measure(config, student, folder / "dev"))
        save()
    for number in range(1, arguments.rounds + 1):
        if number > len(state["rounds"]):
            print(f"round {number} of {arguments.rounds}: student {student}", file=sys.stderr)
            place = folder / f"round_{number}"
            started = time.monotonic()
            try:
                make_pairs(replace(config, arguments=replace(arguments, student=student)), place)
            except InputError as error:  # such as a student that is always right by now
                if not state["rounds"]:
                    raise
                raise InputError(
                    f"round {number}: {error}\n\nThe rounds before it:\n{_summary(state, folder)}"
                ) from error
            made = time.monotonic()
            stages = _train(train_recipe, student, place / DUAL, place / "student", legend=not explained)
            explained = True
            trained_at = time.monotonic()
            trained, sizes = str(stages[-1]), [_training_size(stage) for stage in stages]
            steps, tokens = map(sum, zip(*sizes, strict=True))
            report = read_json_file(place / "report.json")
            samples = report["counts"]["samples" if arguments.pairs else "student"]
            finished = Round(
                student=trained,
                questions=len(questions),
                mixed=len(questions.difference(*report["dropped"].values())) if arguments.pairs else None,
                right=samples.get("correct", 0),
                wrong=samples.get("wrong", 0),
                pairs=_rows(place / DUAL),
                steps=steps,
                making_tokens=sum(report["completion_tokens"].values()),
                training_tokens=tokens,
                making_seconds=round(made - started, 1),
                training_seconds=round(trained_at - made, 1),
                dev=_measure(config, trained, place / "dev") if arguments.dev_task else None,
            )
            if arguments.control_recipe:
                limit = {"--max_steps": str(steps)}
                (control,) = _train(arguments.control_recipe, student, place / WARM_UP, place / "control", limit)
                measured = _measure(config, str(control), place / "control_dev") if arguments.dev_task else None
                finished = replace(finished, control=measured)
            state["rounds"].append(asdict(finished))
            save()
            print(_table(state), file=sys.stderr)
        student = state["rounds"][number - 1]["student"]
        if arguments.dev_task and _has_fallen(state, number):
            print(f"stopped after round {number}: the accuracy on the dev task has fallen", file=sys.stderr)
            break
    print(_summary(state, folder))


def _has_fallen(state: Mapping[str, Any], number: int) -> bool:
    """Return whether the accuracy after a round is below that of an earlier student."""
    *before, last = (one["accuracy"] for one in (state["start"], *(one["dev"] for one in state["rounds"][:number])))
    return last < max(before)


def check_rounds(config: GenerateConfig) -> tuple[set[str], dict[str, str]]:
    """Read everything that is needed later, before the first request: a bad recipe costs nothing.

    Returns:
        The ids of the questions, and hashes of the questions and of those of the dev task.

    Raises:
        InputError: See `run_rounds`.
    """
    from edit_trl.training.recipe.outline import read_recipe
    from edit_trl.training.recipe.resolving import parse_options, resolve_runs

    arguments = config.arguments
    for path in filter(None, (arguments.train_recipe, arguments.control_recipe)):
        recipe = read_recipe(path)
        given = {"model_name_or_path": arguments.student, "dataset_name": "pairs", "output_dir": arguments.output_dir}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        resolve_runs(recipe, parse_options(words, recipe))
        if path == arguments.control_recipe and recipe.stages:
            names = ", ".join(name for name, *_ in recipe.stages)
            raise InputError(f"{path}: the control trains in one stage, for as many steps as the student; got {names}")
    questions = config.questions(config.make_teacher() if arguments.teacher == "procedural" else None)
    hashes = {"questions": content_hash([asdict(question) for question in questions])}
    if arguments.dev_task:
        from edit_trl.evaluation.accuracy.tasks import read_tasks

        tasks = read_tasks([arguments.dev_task], beside=Path())
        _refuse_overlap(questions, [problem.prompt for problem in tasks.problems], arguments.dev_task)
        hashes["questions of dev_task"] = tasks.data_hash
    return {question.id for question in questions}, hashes


def _refuse_overlap(questions: Sequence[Question], prompts: Sequence[Any], task: str) -> None:
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]

    def plain(text: str) -> str:
        return " ".join(text.casefold().split())

    asked = {plain(question.question): question.id for question in questions}
    shared = [(number, text) for number, text in enumerate(texts, 1) if plain(text) in asked]
    raise_problems(
        f"{task}: question {number} is also question {asked[plain(text)]} of the rounds: {text.strip()[:80]!r}. What "
        "is measured must not be trained on; take other questions"
        for number, text in shared
    )


def _read_state(folder: Path, config: GenerateConfig, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return the state in a folder, or a new one; `hashes` of the data are compared as options are.

    Raises:
        InputError: It belongs to other options.
    """
    arguments = config.arguments
    options = {name: value for name, value in config.values.items() if name not in _MAY_CHANGE}
    for name in ("train_recipe", "control_recipe"):
        if path := getattr(arguments, name):
            options[f"text of {name}"] = Path(path).read_text(encoding="utf-8")
    options = json.loads(
        json.dumps(options | {f"hash of {name}": value for name, value in hashes.items()}, default=str)
    )
    file = folder / STATE
    if not file.is_file():
        return {"options": options, "start": None, "rounds": []}
    state = read_json_file(file)
    if not isinstance(state, dict) or not {"options", "start", "rounds"} <= state.keys():
        raise InputError(f"{file} is not the state of rounds; choose another output_dir, or remove it")
    before = state["options"]
    changed = [name for name in sorted({*before, *options}) if before.get(name) != options.get(name)]
    raise_problems(
        (f"`{name}` was {str(before.get(name))[:80]!r}, is {str(options.get(name))[:80]!r}" for name in changed),
        f"{folder} has rounds of other options; choose another output_dir, or set them back",
    )
    return state


def _train(
    recipe: str,
    student: str,
    data: Path,
    output: Path,
    more: Mapping[str, str] | None = None,
    *,
    legend: bool = False,
) -> list[Path]:
    """Train a student with a recipe, or resume; returns the folders of the stages."""
    from edit_trl.cli.train import main
    from edit_trl.models.chat.dispatch import Interrupted
    from edit_trl.training.recipe.outline import read_recipe
    from edit_trl.training.resuming.stopping import EXIT_CODE, INTERRUPTED

    options = {"--config": recipe, "--model_name_or_path": student, "--dataset_name": str(data)}
    options |= {"--output_dir": str(output), **(more or {})}
    words = [word for option in options.items() for word in option]
    code = main(words if legend else [*words, "--no_legend"])
    if code in (EXIT_CODE, INTERRUPTED):
        raise Interrupted(f"interrupted while training to {output}. Run the same command again to resume")
    if code:
        raise InputError(f"training to {output} ended with exit code {code}; run again to resume it")
    stages = read_recipe(recipe).stages
    return [output / stage[0] for stage in stages] or [output]


def _measure(config: GenerateConfig, model: str, folder: Path) -> Measured:
    """Measure a student on the dev task by greedy decoding, or read its finished run."""
    from edit_trl.cli.evaluate import main
    from edit_trl.evaluation.runs.folder import read_run
    from edit_trl.evaluation.runs.scores import score_intervals
    from edit_trl.models.chat.dispatch import Interrupted

    arguments = config.arguments
    words = ["--model", model, "--tasks", str(arguments.dev_task), "--output_dir", str(folder), "--history", "null"]
    words += ["--max_new_tokens", str(config.options.max_tokens), "--batching", arguments.batching]
    if arguments.batch_size is not None:
        words += ["--batch_size", str(arguments.batch_size)]
    if arguments.student_chat_template_kwargs:
        words += ["--chat_template_kwargs", json.dumps(arguments.student_chat_template_kwargs)]
    if main(words):
        raise Interrupted(f"interrupted while measuring {model}. Run the same command again to resume")
    interval = score_intervals(read_run(folder).items, "evaluate")["accuracy"]
    return Measured(interval.value, interval.low, interval.high)


def _training_size(folder: Path) -> tuple[int, int]:
    """Return the optimizer steps and the tokens of a finished training."""
    state = read_json_file(folder / "trainer_state.json")
    return state["global_step"], int(max(log.get("num_tokens", 0) for log in state["log_history"]))


def _rows(file: Path) -> int:
    from pyarrow.parquet import read_metadata

    return read_metadata(file).num_rows


def _table(state: Mapping[str, Any]) -> str:
    def shown(measured: Mapping[str, float] | None) -> str:
        return str(Measured(**measured)) if measured else ""

    results = ["dev accuracy (95%)", "control", "questions", "pairs", "steps"]
    details = ("mixed", "right", "wrong", "making_tokens", "making_seconds", "training_tokens", "training_seconds")
    names = [name.replace("_seconds", " s").replace("_", " ") for name in details]
    rows = [["start", shown(state["start"]), "", "", "", ""]]
    detailed_rows = []
    for number, one in enumerate(state["rounds"], 1):
        counts = [_whole(one[name]) for name in results[2:]]
        rows.append([str(number), shown(one["dev"]), shown(one["control"]), *counts])
        detailed_rows.append([str(number), *(_whole(one[name]) for name in details)])
    # Two tables, so that neither is wider than a terminal.
    tables = [aligned([[["round", *results]], rows]), aligned([[["round", *names]], detailed_rows])]
    return "\n\n".join(tables)


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


def _summary(state: Mapping[str, Any], folder: Path) -> str:
    rounds = state["rounds"]
    if not state["start"]:
        return f"{_table(state)}\n\nthe last student: {rounds[-1]['student']}\n{folder / STATE}"
    best = max(rounds, key=lambda one: one["dev"]["accuracy"])
    if best["dev"]["accuracy"] <= state["start"]["accuracy"]:
        return f"{_table(state)}\n\nno round is better than the student that they started from\n{folder / STATE}"
    return f"{_table(state)}\n\nthe best student: {best['student']}\n{folder / STATE}"
