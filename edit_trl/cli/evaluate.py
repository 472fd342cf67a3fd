"""`edit-trl evaluate`: a model answers questions, and its answers are checked (L4)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.data.questions import Question
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.evaluation.accuracy.problems import Problem
    from edit_trl.evaluation.accuracy.tasks import TaskFile, Tasks
    from edit_trl.evaluation.harness import HarnessTasks
    from edit_trl.evaluation.runs.folder import Run
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments
    from edit_trl.models.decoding import Generator

USAGE = "edit-trl evaluate [--config RECIPE.yaml] [--OPTION VALUE ...]"
DESCRIPTION = (
    "Let a model answer questions and check its answers. Run again, it goes on from what is done. "
    "Options, in the recipe or here; those from --base_urls on are for a model behind an endpoint:"
)
# Prices and budgets are for teachers.
HIDDEN = ("prompt_price", "completion_price", "max_cost")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or go on with it.

    Args:
        argv: `--config RECIPE` and `--option value` over it.

    Raises:
        InputError: Anything wrong with the recipe, the tasks or the model, before anything is generated.
    """
    argv = sys.argv[1:] if argv is None else argv
    from edit_trl.cli.option_parsing import build_options, format_help, read_options
    from edit_trl.common.options import hints_of
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.models.chat.dispatch import Interrupted, Limits
    from edit_trl.models.chat.options import EndpointArguments

    classes = (EvaluateArguments, EndpointArguments, Limits)
    if "--help" in argv or "-h" in argv:
        print(format_help(USAGE, DESCRIPTION, classes, HIDDEN))
        return 0
    path, options = read_options(argv, hints_of(classes).keys() - set(HIDDEN))
    arguments, endpoint, limits = build_options(path, options, classes, HIDDEN)
    try:
        return _evaluate(arguments, endpoint, limits, Path(path) if path else None)
    except Interrupted as stopped:
        print(f"{stopped}:\n  edit-trl evaluate {' '.join(argv)}", file=sys.stderr)
        return 130


def _evaluate(
    arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, recipe: Path | None
) -> int:
    from edit_trl.evaluation.harness import load_harness_tasks
    from edit_trl.evaluation.runs.history import check_history
    from edit_trl.evaluation.runs.tables import run_table

    if arguments.harness and endpoint.base_urls:
        raise InputError("`harness` needs the model on this machine: leave out `base_urls`")
    loaded = harness = None
    if arguments.harness:
        harness = load_harness_tasks(arguments.harness, arguments.harness_include_path)
    if arguments.tasks:
        check_history(arguments.history)
        tasks = arguments.read_tasks(recipe, procedural_questions)
        print(f"{len(tasks.problems)} questions of {len(tasks.versions)} tasks", file=sys.stderr)
        run, loaded = _measure(arguments, endpoint, limits, tasks)
        _remember(run, arguments.history)
        print(f"{run_table(run)}\n\n{run.path}")
    if harness is not None:
        _run_harness(arguments, harness, loaded)
    return 0


def procedural_questions(task: TaskFile) -> list[Question]:
    """The questions of a task of the procedural teacher."""
    from edit_trl.teachers.procedural_chat import ProceduralChat

    chat = ProceduralChat(task.families, rows=task.rows, seed=task.problem_seed, difficulty=task.difficulty)
    return chat.questions()


def _measure(
    arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, tasks: Tasks
) -> tuple[Run, Any]:
    """The run; and the model and tokenizer, where they were loaded."""
    from edit_trl.evaluation.accuracy.answering import answer_problems, finish_run
    from edit_trl.evaluation.accuracy.generators_at_endpoint import EndpointGenerator
    from edit_trl.evaluation.runs.folder import RunFolder, read_run
    from edit_trl.models.loading import model_hash

    client = endpoint.endpoint() if endpoint.base_urls else None
    if client and arguments.actors is not None:
        raise InputError("`actors` is for models that are loaded; each of `base_urls` has one process")
    known = client.address if client else model_hash(arguments.model)
    record = arguments.record(
        model_hash=known,
        settings=arguments.settings,
        tasks=tasks.versions,
        data_hash=tasks.data_hash,
        seed=arguments.seed,
    )
    folder = RunFolder(arguments.folder, record)
    if folder.finished:
        print(f"{folder.path} is finished ({folder.record.finished}), nothing to ask", file=sys.stderr)
        return read_run(folder.path), None
    if client:
        if arguments.engine == "ray":
            from edit_trl.models.cluster.chat import on_ray

            client = on_ray({"model": client}, None, limits.max_concurrency)["model"]
        generator = EndpointGenerator(client, folder.path, arguments.decoding, limits, arguments.seed)
        generator.check()
        prompts, loaded = [problem.prompt for problem in tasks.problems], None
    else:
        generator, prompts, loaded = _prepare(arguments, tasks.problems, known)
    try:
        answer_problems(tasks.problems, prompts, generator, folder=folder)
    finally:
        folder.pause()
    return finish_run(folder, tasks.problems), loaded


def _prepare(
    arguments: EvaluateArguments, problems: Sequence[Problem], known: str
) -> tuple[Generator, list[list[int]], Any]:
    """The generator and the prompts as token ids; and the model and tokenizer, where they are here."""
    from edit_trl.evaluation.accuracy.problems import encode

    loaded = None
    if arguments.engine == "ray":
        from edit_trl.evaluation.accuracy.generators_on_ray import RayGenerator
        from edit_trl.models.loading import adapter_base, load_tokenizer

        base, trusted = adapter_base(arguments.model), arguments.trust_remote_code
        tokenizer = load_tokenizer(arguments.model, base, trust_remote_code=trusted)
        generator = RayGenerator(arguments, known)
        positions = generator.positions
    else:
        from edit_trl.models.generation import load_generator

        generator, tokenizer, positions, model = load_generator(arguments)
        loaded = (model, tokenizer) if model is not None else None
    length = arguments.max_new_tokens
    _, prompts = encode(problems, tokenizer, max_new_tokens=length, positions=positions)
    return generator, prompts, loaded


def _remember(run: Run, history: str | None) -> None:
    from edit_trl.evaluation.runs.history import record_run

    if history is not None:
        record_run(run, history)


def _run_harness(arguments: EvaluateArguments, tasks: HarnessTasks, loaded: Any) -> None:
    """lm-evaluation-harness, on the same model."""
    from edit_trl.evaluation.harness import evaluate_with_harness, format_harness, write_harness

    model, tokenizer = loaded or arguments.load()
    results = evaluate_with_harness(
        model,
        tokenizer,
        tasks,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        apply_chat_template=arguments.harness_chat_template,
        seed=arguments.seed,
    )
    print(format_harness(results))
    print(write_harness(results, arguments.folder))
