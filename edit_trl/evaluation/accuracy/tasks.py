"""Task files -> the problems of a run.

Questions become prompts through the template `prompt`, a text with {question}. Worked examples (`exemplars`)
are earlier turns of a conversation, or stand before the question of a plain prompt. Rows that have a `prompt`
of their own, such as held-out dual CoTs, are asked as they are.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError, collect_problems
from edit_trl.common.files import content_hash
from edit_trl.common.hub_ids import HubDataset, is_hub_id
from edit_trl.common.yaml_file import read_texts
from edit_trl.data.exemplars import Exemplar, load_exemplars
from edit_trl.data.procedural.teacher import ProceduralTeacher, question_of
from edit_trl.data.questions import Question, read_questions, read_table
from edit_trl.data.row import TEMPLATE_COLUMNS, with_prompt
from edit_trl.data.row_checks import checked_mapping
from edit_trl.evaluation.accuracy.problems import COLUMNS, Problem, check_ids, problems_of
from edit_trl.evaluation.accuracy.task_file import TaskFile, read_task
from edit_trl.evaluation.runs.schema import first_of_each_task

_DEFAULTS = {field.name: field.default for field in fields(TaskFile)}
_FOR_QUESTIONS = ("prompt", "system_prompt", "exemplars", "answer_after", "task_descriptions")


@dataclass(frozen=True)
class Tasks:
    """The questions of a run.

    Attributes:
        problems: The questions, in order.
        versions: The version of each task: that of its file, and a hash of everything that decides its
            prompts and how its answers are read.
        stop: The texts that end a response, by task. After plain worked examples a model goes on with a question
            of its own, whose answer would be taken for that of the response.
        hub_datasets: The dataset of each task whose questions are a whole split of a dataset on the Hub.
    """

    problems: list[Problem]
    versions: dict[str, str]
    stop: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hub_datasets: dict[str, HubDataset] = field(default_factory=dict)

    @property
    def data_hash(self) -> str:
        """A hash of all problems."""
        return content_hash([problem.content() for problem in self.problems])


def read_tasks(
    files: Sequence[str],
    *,
    beside: Path = Path(),
    conversational: bool = True,
    system_prompt: str | None = None,
    limit: int | None = None,
) -> Tasks:
    """Read task files and everything that they name.

    Args:
        files: Paths, or names of files in `tasks/` beside the recipe; see `read_task`.
        beside: The folder of the recipe.
        conversational: Whether prompts are messages; plain text is for models without a chat template.
        system_prompt: Replaces the system prompts of the files.
        limit: The most questions to ask of each task, from its beginning.

    Raises:
        InputError: Everything that is wrong with them, by file, row and column; or an id occurs twice.
    """
    problems: list[Problem] = []
    versions: dict[str, str] = {}
    stop: dict[str, tuple[str, ...]] = {}
    hub_datasets: dict[str, HubDataset] = {}
    errors: list[str] = []
    read: set[Path] = set()
    for name in files:
        with collect_problems(errors):
            path, task = read_task(name, beside)
            if path in read:
                raise InputError(f"{path}: is named twice; name it once")
            read.add(path)
            if system_prompt is not None:
                task = replace(task, system_prompt=system_prompt)
            try:
                task_problems, version, task_stop, task_datasets = _problems_of_task(task, path, conversational)
            except InputError as error:  # about a file that the task names, or about its options
                named = (one if one.startswith(str(path)) else f"{path}: {one}" for one in error.problems)
                raise InputError(named) from error
            sizes = Counter(problem.task for problem in task_problems)
            hub_datasets |= {
                task.prefix + name: dataset
                for name, dataset in task_datasets.items()
                if limit is None or sizes[name] <= limit
            }
            task_problems = first_of_each_task(task_problems, limit)
            task_problems = [replace(problem, task=task.prefix + problem.task) for problem in task_problems]
            names = dict.fromkeys(problem.task for problem in task_problems)
            errors += [
                f"{path}: task {name!r} is in another file too; give one of them a `prefix`"
                for name in names
                if name in versions
            ]
            versions |= dict.fromkeys(names, version)
            stop |= dict.fromkeys(names, task_stop)
            problems += task_problems
    if errors:
        raise InputError(errors)
    check_ids(problems)
    return Tasks(problems, versions, stop, hub_datasets)


def _problems_of_task(
    task: TaskFile, path: Path, conversational: bool
) -> tuple[list[Problem], str, tuple[str, ...], dict[str, HubDataset]]:
    """Return the problems of a task file, the version of its tasks, the texts that end a response, and the datasets."""
    name = task.task or path.stem
    stop: tuple[str, ...] = ()
    rows, answer_type = _own_prompts(task), task.answer_type
    settings: list[Any] = [task.answer_type, task.answer_types]
    hub_datasets = None
    if rows is None:
        answer_type = None  # that of each question, which may be inferred from its choices
        exemplars = load_exemplars(task.exemplars) if task.exemplars else []
        questions, hub_datasets = _questions(task, name)
        rows = [_row(question, task, name, exemplars, conversational) for question in questions]
        settings = [[task.prompt, task.system_prompt, *settings], [asdict(exemplar) for exemplar in exemplars]]
        settings += [task.shots, conversational]
        stop = () if conversational else _stop_after(exemplars, task.prompt)
        settings += [stop] if stop else []
    problems = problems_of(rows, answer_type=answer_type, task=name, where=str(path))
    if hub_datasets is None:
        names = {problem.task for problem in problems}
        hub_datasets = _hub_datasets([(names, task.dataset_name, task.dataset_config)], task.dataset_split)
    unknown = (task.answer_types or {}).keys() - {problem.task for problem in problems}
    if unknown:
        raise InputError(f"`answer_types` names tasks that are not there: {', '.join(sorted(unknown))}")
    return problems, f"{task.version}-{content_hash(settings)[:6]}", stop, hub_datasets


def _hub_datasets(
    sources: Iterable[tuple[Collection[str], str | None, Any]], split: str | None
) -> dict[str, HubDataset]:
    """Return the datasets on the Hub that are one task each, by the name of the task.

    Args:
        sources: The tasks, the name and the configuration of each dataset.
        split: The split of all of them.
    """
    sources = list(sources)
    counts = Counter(name for names, _, _ in sources for name in names)
    return {
        name: HubDataset(dataset=dataset, config=config, split=split)
        for names, dataset, config in sources
        for name in names
        if len(names) == counts[name] == 1 and dataset and is_hub_id(dataset)
    }


def _stop_after(exemplars: Sequence[Exemplar], prompt: str) -> tuple[str, ...]:
    """Return the text with which another question would begin after a plain worked example, if it tells them apart."""
    beginning, *_ = string.Formatter().parse(prompt)
    stop = f"\n\n{beginning[0].strip()}"
    return (stop,) if exemplars and not any(stop in exemplar.chain for exemplar in exemplars) else ()


def _own_prompts(task: TaskFile) -> list[dict[str, Any]] | None:
    """Return the rows of a dataset with prompts of its own; None for a dataset of questions."""
    config = task.dataset_config
    if task.dataset_name is None or isinstance(config, list):
        return None
    rows, columns = read_table(task.dataset_name, config, task.dataset_split)
    mapping = task.column_mapping or {}
    names = [mapping.get(column, column) for column in columns]
    if "question" in names or not ("prompt" in names or {"chosen", "rejected"} <= {*names}):
        return None
    checked_mapping(mapping, columns, task.dataset_name, COLUMNS)
    unused = [name for name in _FOR_QUESTIONS if getattr(task, name) != _DEFAULTS[name]]
    if unused:
        raise InputError(
            f"{task.dataset_name} has prompts of its own, which are asked as they are; leave out "
            f"{', '.join(f'`{name}`' for name in unused)}, or map a column to `question`"
        )
    renamed = [with_prompt({mapping.get(column, column): value for column, value in row.items()}) for row in rows]
    types = task.answer_types or {}
    # A task that is no text is refused with the other columns.
    return [{**row, "answer_type": row.get("answer_type") or types.get(str(row.get("task")))} for row in renamed]


def _questions(task: TaskFile, name: str) -> tuple[list[Question], dict[str, HubDataset]]:
    """Return the questions of each source, and its `_hub_datasets`.

    If there are several sources, each is a task of its own.
    """
    if task.families is not None:
        teacher = ProceduralTeacher(task.families, seed=task.problem_seed, difficulty=task.difficulty)
        return [question_of(row) for row in teacher.rows(task.rows)], {}
    configs, only = task.dataset_config, task.dataset_name or ""  # a task without a dataset has several
    parts: list[tuple[str, str, str | None]]
    if isinstance(configs, list):
        parts = [(config, only, config) for config in configs]
    else:
        parts = [(source_task, source, configs) for source_task, source in (task.datasets or {name: only}).items()]
    descriptions = read_texts(task.task_descriptions, "file of task descriptions") if task.task_descriptions else None
    questions: list[Question] = []
    tasks: list[set[str]] = []
    for source_task, source, config in parts:
        source_questions = read_questions(
            source,
            name=config,
            split=task.dataset_split,
            column_mapping=task.column_mapping,
            answer_after=task.answer_after,
            answer_type=task.answer_type,
            task=source_task,
            task_descriptions=descriptions,
        )
        tasks.append({question.task or name for question in source_questions})
        if len(parts) > 1:
            source_questions = [replace(one, id=f"{source_task}/{one.id}") for one in source_questions]
        questions += source_questions
    named = ((names, source, config) for names, (_, source, config) in zip(tasks, parts, strict=True))
    return questions, _hub_datasets(named, task.dataset_split)


def _row(
    question: Question, task: TaskFile, name: str, exemplars: Sequence[Exemplar], conversational: bool
) -> dict[str, Any]:
    task_name = question.task or name
    description = question.task_description or ""

    def formatted(text: str) -> str:
        return task.prompt.format(question=text, task_description=description).strip()

    exemplars = [exemplar for exemplar in exemplars if exemplar.task in (None, task_name)][: task.shots]
    turns = [(formatted(exemplar.question), exemplar.chain) for exemplar in exemplars]
    last = formatted(question.question)
    if conversational:
        messages = [("system", task.system_prompt)] if task.system_prompt else []
        messages += [turn for text, chain in turns for turn in (("user", text), ("assistant", chain))]
        messages.append(("user", last))
        prompt: Any = [{"role": role, "content": content} for role, content in messages]
    else:
        # The format of exported plain dual CoTs: the question on a line, and the chain after it.
        blocks = [task.system_prompt] if task.system_prompt else []
        blocks += [f"{text}\n{chain}" for text, chain in turns]
        prompt = "\n\n".join([*blocks, f"{last}\n"])
    return {
        "task": task_name,
        "id": question.id,
        "prompt": prompt,
        "answer": question.answer,
        "answer_type": question.answer_type or (task.answer_types or {}).get(task_name),
        **{column: getattr(question, column) for column in TEMPLATE_COLUMNS},
    }
