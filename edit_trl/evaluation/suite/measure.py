"""A suite run: a model scores dual CoTs, resumed where it was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from edit_trl.evaluation.runs.schema import Run
    from edit_trl.evaluation.suite.cases import SuiteCase
    from edit_trl.evaluation.suite.config import SuiteArguments
    from edit_trl.models.chat.options import EndpointArguments


def _measure(arguments: SuiteArguments, endpoint: EndpointArguments, beside: Path) -> Run:
    from edit_trl.common.files import content_hash
    from edit_trl.evaluation.runs.folder import RunFolder, read_run
    from edit_trl.evaluation.runs.history import check_history
    from edit_trl.evaluation.suite.cases import cases_of
    from edit_trl.evaluation.suite.evaluate_suite import SUITE_VERSION, finish_suite, score_cases
    from edit_trl.evaluation.suite.scorers import judge_of, of_model

    check_history(arguments.history)
    rows, where = _rows(arguments, beside)
    client = endpoint.endpoint() if endpoint.base_urls else None
    if client and arguments.actors is not None:
        raise InputError("`actors` is for models that are loaded; each of `base_urls` has one process")
    known, tokenizer, positions = of_model(arguments, client)
    cases, left_out = cases_of(
        rows,
        tokenizer,
        key_step_method=arguments.key_step_method,
        positions=positions,
        max_new_tokens=arguments.written,
        limit=arguments.limit,
        where=where,
    )
    print(_found(cases, left_out), file=sys.stderr)
    record = arguments.record(
        model_hash=known,
        settings=arguments.settings,
        tasks={case.task: SUITE_VERSION for case in cases},
        data_hash=content_hash([case.content() for case in cases]),
        seed=arguments.seed,
    )
    folder = RunFolder(arguments.folder, record)
    if folder.finished:
        print(f"{folder.path} is finished ({folder.record.finished}), nothing to score", file=sys.stderr)
        return read_run(folder.path)
    if arguments.engine == "ray":
        from edit_trl.evaluation.suite.ray_scorer import RayJudge

        judge = RayJudge(arguments, client, known, cases)
    else:
        judge = judge_of(arguments, client, tokenizer, cases)
    try:
        score_cases(cases, judge, folder=folder)
    finally:
        folder.pause()
    return finish_suite(folder, cases)


def _rows(arguments: SuiteArguments, beside: Path) -> tuple[Iterable[Mapping[str, Any]], str]:
    """The dual CoTs, and what messages call them."""
    from edit_trl.data.row import rows_of

    if arguments.rows is not None:
        from edit_trl.data.procedural import ProceduralTeacher, generate_dual_cots

        teacher = ProceduralTeacher(arguments.families, seed=arguments.seed, difficulty=arguments.difficulty)
        made = generate_dual_cots(teacher, arguments.rows, conversational=arguments.conversational)
        return rows_of(made), "procedural teacher"
    if arguments.from_run is not None:
        from edit_trl.evaluation.runs.folder import read_run
        from edit_trl.evaluation.suite.run_pairs import pairs_of_run

        run = read_run(_found_beside(arguments.from_run, beside))
        return pairs_of_run(run, arguments.pairs_per_question), arguments.from_run
    from edit_trl.data.dual_cots import load_dual_cots

    source = _found_beside(arguments.dataset_name, beside)
    dataset = load_dual_cots(
        source,
        name=arguments.dataset_config,
        split=arguments.dataset_split,
        revision=arguments.dataset_revision,
        column_mapping=arguments.column_mapping,
    )
    return rows_of(dataset), source


def _found_beside(name: str, folder: Path) -> str:
    """What is not found from here is looked for beside the recipe."""
    return name if Path(name).exists() or not (folder / name).exists() else str(folder / name)


def _found(cases: Sequence[SuiteCase], left_out: int) -> str:
    text = f"{len(cases)} pairs of {len({case.task for case in cases})} tasks"
    return text + (f"; {left_out} rows left out, correct chains alone" if left_out else "")
