"""A run of `edit-trl evaluate`: a model answers the questions of tasks; an interrupted run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.evaluation.accuracy.answering import answer_problems, weigher_of
from edit_trl.evaluation.accuracy.config import EvaluateArguments
from edit_trl.evaluation.accuracy.generators_at_endpoint import EndpointGenerator
from edit_trl.evaluation.accuracy.problems import Problem, check_template_options, encode, values_to_send
from edit_trl.evaluation.accuracy.tasks import Tasks
from edit_trl.evaluation.harness import HarnessTasks, evaluate_with_harness, write_harness
from edit_trl.evaluation.journaled_endpoint import UNANSWERED_FILE
from edit_trl.evaluation.runs.folder import RunFolder
from edit_trl.evaluation.runs.resuming import finish_run
from edit_trl.evaluation.runs.schema import Run
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.decoding import BATCHING, Generator
from edit_trl.models.identity import model_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edit_trl.evaluation.accuracy.generators_on_ray import RayGenerator
    from edit_trl.models.generation import ModelGenerator
    from edit_trl.models.generation_with_vllm import VllmGenerator

    LoadedModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def measure_accuracy(
    arguments: EvaluateArguments,
    endpoint: EndpointArguments,
    limits: Limits,
    tasks: Tasks,
    say: Callable[[str], object],
) -> tuple[Run, LoadedModel | None]:
    """Let a model answer the questions of tasks, and add the run to the history.

    `say` is called with each message about the progress.

    Returns:
        The run; and the model with its tokenizer, if they were loaded into this process.

    Raises:
        InputError: The options or the model are wrong, or an endpoint failed for good.
    """
    client: OpenAICompatibleTeacher | None = None
    generator: Generator
    prompts: Sequence[Any]
    if endpoint.base_urls:
        values = values_to_send(tasks.problems, arguments.chat_template_kwargs)
        client = endpoint.with_chat_template(values).endpoint()
    weights_hash = client.address if client else model_hash(arguments.source.model)
    record = arguments.record(
        model_hash=weights_hash,
        settings=arguments.settings,
        tasks=tasks.versions,
        data_hash=tasks.data_hash,
        hub_datasets=tasks.hub_datasets,
    )
    folder, loaded, weigh = RunFolder(arguments.folder, record), None, None
    if folder.finished:
        say(f"{folder.path} is finished ({folder.record.finished}), nothing to ask")
    else:
        if client:
            generator = EndpointGenerator(
                client,
                folder.path,
                tasks.problems,
                arguments.decoding,
                limits,
                arguments.seed,
                arguments.engine,
                stop=tasks.stop,
                allow_unanswered=arguments.allow_unanswered,
            )
            prompts = [problem.prompt for problem in tasks.problems]
        else:
            generator, prompts, loaded = _loaded_generator(arguments, tasks.problems, weights_hash, say)
            if loaded:
                length, values = arguments.max_new_tokens, arguments.chat_template_kwargs
                weigh = weigher_of(arguments.votes, *loaded, tasks.problems, length, values)
        answer_problems(tasks.problems, prompts, generator, folder=folder, stop=tasks.stop, weigh=weigh)
    if (folder.path / UNANSWERED_FILE).is_file():
        say(f"some questions got no answer and count as unparsed: {folder.path / UNANSWERED_FILE}")
    return finish_run(folder, tasks.problems, arguments.history), loaded


def measure_with_harness(
    arguments: EvaluateArguments, tasks: HarnessTasks, loaded: LoadedModel | None
) -> tuple[dict[str, Any], Path]:
    """Measure a model, which is loaded if it is not given, on tasks of lm-evaluation-harness.

    Returns:
        The results, and the file in the folder of the run that holds them.
    """
    model, tokenizer = loaded or arguments.source.load()
    results = evaluate_with_harness(
        model,
        tokenizer,
        tasks,
        batch_size=arguments.batch_size or 16,  # of requests, which may be only scored
        limit=arguments.limit,
        apply_chat_template=arguments.harness_chat_template,
        chat_template_kwargs=arguments.chat_template_kwargs,
        seed=arguments.seed,
    )
    return results, write_harness(results, arguments.folder)


def _loaded_generator(
    arguments: EvaluateArguments, problems: Sequence[Problem], expected_hash: str, say: Callable[[str], object]
) -> tuple[Generator, list[list[int]], LoadedModel | None]:
    """Return the generator and the prompts as token ids; also the model, if it is in this process."""
    from edit_trl.evaluation.accuracy.generators import load_generator

    values = arguments.chat_template_kwargs
    if values or any(problem.tools or problem.chat_template_kwargs for problem in problems):
        check_template_options(problems, arguments.source.load_tokenizer(), values)
    load = partial(
        load_generator,
        arguments.source,
        arguments.decoding,
        batch_size=arguments.batch_size,
        batching=arguments.batching,
        seed=arguments.seed or 0,  # null is for endpoints
        in_memory=arguments.votes != "majority" or arguments.against is not None,
        against=arguments.contrast,
    )
    generator: ModelGenerator | VllmGenerator | RayGenerator
    if arguments.engine == "ray":
        from edit_trl.evaluation.accuracy.generators_on_ray import RayGenerator

        tokenizer, model = arguments.source.load_tokenizer(), None
        on_ray = RayGenerator(load, arguments.source, expected_hash, arguments.actors)
        generator, positions = on_ray, on_ray.positions
    else:
        generator, tokenizer, positions, model = load()
    say(f"{arguments.model}: {BATCHING[generator.batching]}")
    length = arguments.max_new_tokens
    prompts = encode(problems, tokenizer, max_new_tokens=length, positions=positions, chat_template_kwargs=values)
    return generator, prompts, (model, tokenizer) if model is not None else None
