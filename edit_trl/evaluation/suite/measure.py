"""A run of `edit-trl suite`: a model scores dual CoTs; an interrupted run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError
from edit_trl.common.files import content_hash
from edit_trl.common.options import find_beside
from edit_trl.data.procedural import ProceduralTeacher, generate_dual_cots
from edit_trl.data.row import rows_of
from edit_trl.evaluation.runs.folder import RunFolder, read_run
from edit_trl.evaluation.runs.history import check_history
from edit_trl.evaluation.runs.resuming import finish_run
from edit_trl.evaluation.runs.schema import Run, RunRecord
from edit_trl.evaluation.suite.cases import SuiteCase, cases_of
from edit_trl.evaluation.suite.completions import CompletionTeacher
from edit_trl.evaluation.suite.config import SuiteArguments
from edit_trl.evaluation.suite.endpoint_scorer import EndpointScorer
from edit_trl.evaluation.suite.evaluate_suite import SUITE_VERSION, CaseScorer, score_cases
from edit_trl.evaluation.suite.run_pairs import pairs_of_run
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.identity import model_hash
from edit_trl.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_suite(
    arguments: SuiteArguments,
    endpoint: EndpointArguments,
    limits: Limits,
    recipe_folder: Path,
    say: Callable[[str], object],
) -> Run:
    """Measure a model on a suite, and add the run to the history.

    Files that are not in the working directory are looked for in the recipe's folder. `say` is called with each
    message about the progress.

    Raises:
        InputError: The options, the pairs or the model are wrong, or an endpoint failed for good.
        FloatingPointError: A log-probability is not finite; names the pair.
    """
    rows, source, client = read_inputs(arguments, endpoint, limits, recipe_folder)
    weights_hash = client.address if client else model_hash(arguments.source.model)
    if client:
        assert arguments.tokenizer is not None  # `_client` refuses to go without
        tokenizer, positions = load_tokenizer(arguments.tokenizer, trust_remote_code=arguments.trust_remote_code), None
    else:
        from edit_trl.evaluation.suite.model_scorer import tokenizer_of

        tokenizer, positions = tokenizer_of(arguments)
    cases, left_out = cases_of(
        rows,
        tokenizer,
        key_step_method=arguments.key_step_method,
        chat_template_kwargs=arguments.chat_template_kwargs,
        positions=positions,
        max_new_tokens=arguments.max_greedy_tokens,
        limit=arguments.limit,
        where=source,
    )
    note = f"; {left_out} rows left out, correct chains alone" if left_out else ""
    say(f"{len(cases)} pairs of {len({case.task for case in cases})} tasks{note}")
    record = arguments.record(
        model_hash=weights_hash,
        settings=arguments.settings,
        tasks={case.task: SUITE_VERSION for case in cases},
        data_hash=content_hash([case.content() for case in cases]),
    )
    folder = RunFolder(arguments.folder, record)
    if folder.finished:
        say(f"{folder.path} is finished ({folder.record.finished}), nothing to score")
    else:
        score_cases(cases, _scorer(arguments, client, limits, record, tokenizer, cases), folder=folder)
    return finish_run(folder, cases, arguments.history)


def read_inputs(
    arguments: SuiteArguments, endpoint: EndpointArguments, limits: Limits, recipe_folder: Path
) -> tuple[Iterable[Mapping[str, Any]], str, CompletionTeacher | None]:
    """Read what a recipe names; nothing is loaded or sent.

    Returns:
        The dual CoTs, their name in messages, and the model at an endpoint if there is one.

    Raises:
        InputError: The history, the pairs or the endpoint cannot be used; or an option would have no effect.
    """
    arguments.check_place(endpoint, limits)
    check_history(arguments.history)
    rows, source = _read_rows(arguments, recipe_folder)
    return rows, source, _client(arguments, endpoint) if endpoint.base_urls else None


def _read_rows(arguments: SuiteArguments, recipe_folder: Path) -> tuple[Iterable[Mapping[str, Any]], str]:
    """Return the dual CoTs and their name in messages."""
    if arguments.rows is not None:
        teacher = ProceduralTeacher(arguments.families, seed=arguments.seed, difficulty=arguments.difficulty)
        dual_cots = generate_dual_cots(teacher, arguments.rows, conversational=arguments.conversational)
        return rows_of(dual_cots), "procedural teacher"
    if arguments.from_run is not None:
        run = read_run(find_beside(arguments.from_run, recipe_folder))
        return pairs_of_run(run, arguments.pairs_per_question), arguments.from_run
    source = arguments.dataset(recipe_folder)
    return rows_of(source.load()), source.name


def _client(arguments: SuiteArguments, endpoint: EndpointArguments) -> CompletionTeacher:
    client = endpoint.endpoint(kind=CompletionTeacher)
    if arguments.tokenizer is None:
        raise InputError(
            "`tokenizer` is missing: a suite looks at single tokens, so it needs the tokenizer of the model "
            "at `base_urls`, as a path or Hub id"
        )
    return client


def _scorer(
    arguments: SuiteArguments,
    client: CompletionTeacher | None,
    limits: Limits,
    record: RunRecord,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[SuiteCase],
) -> CaseScorer:
    if client is not None:
        # `batch_size` counts pairs, whose two chains are scored at the same time.
        limits = replace(limits, max_concurrency=min(limits.most_in_flight(), 2 * arguments.batch_size))
        length, engine = arguments.max_greedy_tokens, arguments.engine
        return EndpointScorer(client, arguments.folder, limits, tokenizer, cases, max_new_tokens=length, engine=engine)
    if arguments.engine == "ray":
        from edit_trl.evaluation.suite.ray_scorer import RayScorer

        return RayScorer(arguments, record.model_hash, cases)
    from edit_trl.evaluation.suite.model_scorer import load_scorer

    return load_scorer(arguments, tokenizer, cases)
