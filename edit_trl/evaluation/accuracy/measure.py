"""An accuracy run: a model answers every question of the tasks, resumed where it was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.evaluation.accuracy.config import EvaluateArguments
    from edit_trl.evaluation.accuracy.problems import Problem
    from edit_trl.evaluation.accuracy.tasks import Tasks
    from edit_trl.evaluation.runs.schema import Run
    from edit_trl.models.chat.dispatch import Limits
    from edit_trl.models.chat.options import EndpointArguments
    from edit_trl.models.decoding import Generator


def _measure(
    arguments: EvaluateArguments, endpoint: EndpointArguments, limits: Limits, tasks: Tasks
) -> tuple[Run, Any]:
    """The run; and the model and tokenizer, where they were loaded."""
    from edit_trl.evaluation.accuracy.answering import answer_problems, finish_run
    from edit_trl.evaluation.accuracy.generators_at_endpoint import EndpointGenerator
    from edit_trl.evaluation.runs.folder import RunFolder, read_run
    from edit_trl.models.identity import model_hash

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
    from edit_trl.evaluation.accuracy.generators import load_generator
    from edit_trl.evaluation.accuracy.problems import encode

    loaded = None
    load = partial(
        load_generator,
        arguments.source,
        arguments.decoding,
        batch_size=arguments.batch_size,
        batching=arguments.batching,
        seed=arguments.seed,
    )
    if arguments.engine == "ray":
        from edit_trl.evaluation.accuracy.generators_on_ray import RayGenerator

        tokenizer = arguments.source.load_tokenizer()
        generator = RayGenerator(load, arguments.source, known, arguments.actors)
        positions = generator.positions
    else:
        generator, tokenizer, positions, model = load()
        loaded = (model, tokenizer) if model is not None else None
    length = arguments.max_new_tokens
    _, prompts = encode(problems, tokenizer, max_new_tokens=length, positions=positions)
    return generator, prompts, loaded


def _remember(run: Run, history: str | None) -> None:
    from edit_trl.evaluation.runs.history import record_run

    if history is not None:
        record_run(run, history)
