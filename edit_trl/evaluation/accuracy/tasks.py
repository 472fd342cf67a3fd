"""A task file (L3): YAML that says what is asked, how, and how answers are read.

    version: 1
    dataset_name: openai/gsm8k        # a Hub id, or a .jsonl, .json, .csv or .parquet file, or a folder
    dataset_config: main
    dataset_split: test
    answer_after: "####"
    answer_type: number
    system_prompt: Think step by step, and end with "Therefore, the answer is ...".

Questions become prompts by `prompt`, a text with {question}; worked examples (`exemplars`) are earlier turns
of the conversation, or stand before the question where prompts are plain. Rows that have a `prompt` of their
own, such as held-out dual CoTs, are asked as they are.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edit_trl.common.errors import InputError
from edit_trl.common.files import content_hash
from edit_trl.common.options import convert, hints_of, read_yaml
from edit_trl.data.answers import AnswerType
from edit_trl.data.exemplars import Exemplar, load_exemplars
from edit_trl.data.procedural.teacher import ProceduralTeacher, question_of
from edit_trl.data.questions import Question, read_questions, read_table
from edit_trl.data.row_checks import checked_mapping
from edit_trl.evaluation.accuracy.problems import Problem, check_ids, problems_of

if TYPE_CHECKING:
    from edit_trl.data.questions import Question
    from edit_trl.evaluation.accuracy.problems import Problem


_PLACEHOLDERS = {"question", "task_description"}

_FOR_QUESTIONS = ("prompt", "system_prompt", "exemplars", "answer_after", "task_descriptions")

_TASKS_FOLDER = "tasks"

_OWN_COLUMNS = ("prompt", "answer", "id", "task", "answer_type", "mistake", "source")


@dataclass(frozen=True)
class TaskFile:
    """What is asked, how, and how answers are read.

    Attributes:
        version: One more whenever results before and after a change cannot be compared.
        task: Name of rows without a task of their own; the file's name by default.
        prefix: Put before the names of its tasks, where another file has tasks of the same names.
        dataset_name: Questions with answers: a .jsonl, .json, .csv or .parquet file, a folder saved by
            datasets, or a Hub id.
        datasets: Several of them instead, task: source.
        dataset_config: Configuration of a Hub dataset; each of a list of them is a task of its name.
        dataset_split: Split; "train" where there are several.
        column_mapping: Renames columns to question, answer, id, task, task_description, choices, context, or
            prompt.
        answer_after: The answer is what stands after this in the answer column, such as "####".
        answer_type: Type of every answer: number, choice, yes_no, boolean, text or list; by its looks where
            empty.
        answer_types: Types by task, where they differ.
        task_descriptions: A YAML file, task: description.
        families: Families of the procedural teacher's problems, instead of a dataset.
        rows: How many of its problems.
        difficulty: Of its problems, 1 to 5.
        problem_seed: Of its problems; another than that of any training set, or they are the same ones.
        prompt: Template of a prompt, with {question} and, if wanted, {task_description}.
        system_prompt: What a conversation begins with.
        exemplars: A YAML or JSON Lines file of worked examples (few-shot).
        shots: Only the first so many of a task's exemplars.
    """

    version: str = "1"
    task: str | None = None
    prefix: str = ""
    dataset_name: str | None = None
    datasets: dict[str, str] | None = None
    dataset_config: str | list[str] | None = None
    dataset_split: str | None = None
    column_mapping: dict[str, str] | None = None
    answer_after: str | None = None
    answer_type: AnswerType | None = None
    answer_types: dict[str, str] | None = None
    task_descriptions: str | None = None
    families: list[str] | None = None
    rows: int = 100
    difficulty: int = 1
    problem_seed: int = 1_000_003
    prompt: str = "{question}"
    system_prompt: str | None = None
    exemplars: str | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError(problems)

    def _problems(self) -> Iterator[str]:
        if sum(bool(source) for source in (self.dataset_name, self.datasets, self.families)) != 1:
            yield "a task needs one of `dataset_name`, `datasets` and `families` (procedural problems)"
        if self.datasets and isinstance(self.dataset_config, list):
            yield "`datasets` and a list of `dataset_config` both name tasks; use one of them"
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None}
        except ValueError as error:
            names, problem = {"question"}, f"`prompt` is no template ({error}); write {{{{ for a brace"
            yield problem
        if "question" not in names or names - _PLACEHOLDERS:
            yield f"`prompt` takes {{question}} and {{task_description}}, got {self.prompt!r}"
        wrong = {kind for kind in (self.answer_types or {}).values() if kind not in get_args(AnswerType)}
        if wrong:
            yield f"`answer_types`: {', '.join(map(str, wrong))} is none of {', '.join(get_args(AnswerType))}"
        for name in ("rows", "shots"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                yield f"`{name}` must be at least 1, got {getattr(self, name)}"


@dataclass(frozen=True)
class Tasks:
    """What a run asks.

    Attributes:
        problems: In order.
        versions: Of each task: the file's, and a hash of all that makes its prompts and reads its answers.
    """

    problems: list[Problem]
    versions: dict[str, str]

    @property
    def data_hash(self) -> str:
        """Of everything that is asked."""
        return content_hash([asdict(problem) for problem in self.problems])


def read_tasks(
    files: Sequence[str],
    *,
    beside: Path | None = None,
    conversational: bool = True,
    system_prompt: str | None = None,
    limit: int | None = None,
) -> Tasks:
    """Read task files and everything they name.

    Args:
        files: Paths, or names of files in `tasks/` beside the recipe.
        beside: The recipe's folder.
        conversational: Whether prompts are messages; plain text is for models without a chat template.
        system_prompt: Instead of the files' own.
        limit: Only the first so many questions of each task.

    Raises:
        InputError: All that is wrong with them, by file, row and column; or an id that occurs twice.
    """
    problems: list[Problem] = []
    versions: dict[str, str] = {}
    wrong: list[str] = []
    for name in files:
        try:
            path, task = read_task(name, beside)
            if system_prompt is not None:
                task = replace(task, system_prompt=system_prompt)
            asked, version = _problems_of_task(task, path, conversational)
        except InputError as error:
            wrong += error.problems
            continue
        asked = [replace(problem, task=task.prefix + problem.task) for problem in _first(asked, limit)]
        wrong += [
            f"{path}: task {known!r} is in another file too; give one of them a `prefix`"
            for known in dict.fromkeys(problem.task for problem in asked)
            if known in versions
        ]
        versions |= {problem.task: version for problem in asked}
        problems += asked
    if wrong:
        raise InputError(wrong)
    check_ids(problems)
    return Tasks(problems, versions)


def read_task(name: str, beside: Path | None = None) -> tuple[Path, TaskFile]:
    """Read one task file, and find the files that it names from here or from its own folder.

    Raises:
        InputError: There is none, or what is wrong in it.
    """
    path = _find(name, beside)
    values, problems = convert(_as_texts(read_yaml(path, "task file")), hints_of([TaskFile]))
    task = None
    try:
        task = TaskFile(**values)
    except InputError as error:
        problems += error.problems
    if problems or task is None:
        raise InputError([f"{path}: {problem}" for problem in problems])

    def near(file: str | None) -> str | None:
        beside_it = file is not None and not Path(file).exists() and (path.parent / file).exists()
        return str(path.parent / file) if beside_it else file

    found = {name: near(getattr(task, name)) for name in ("dataset_name", "task_descriptions", "exemplars")}
    datasets = {name: near(source) for name, source in (task.datasets or {}).items()} or None
    return path, replace(task, datasets=datasets, **found)


def _as_texts(values: dict[str, Any]) -> dict[str, Any]:
    """`version: 1` is a text too."""
    version = values.get("version")
    return values | ({"version": str(version)} if isinstance(version, int | float) else {})


def _find(name: str, beside: Path | None) -> Path:
    folders = [folder / _TASKS_FOLDER for folder in (beside, Path("recipes/evaluate")) if folder]
    candidates = [Path(name), *([beside / name] if beside else [])]
    candidates += [folder / f"{name}.yaml" for folder in folders]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise InputError(
            f"no task {name!r}: no such file, and the names beside the recipe and in "
            f"recipes/evaluate/tasks are: {', '.join(known) or 'none'}"
        )
    return found


def _problems_of_task(task: TaskFile, path: Path, conversational: bool) -> tuple[list[Problem], str]:
    name = task.task or path.stem
    if task.families is not None:
        questions = _procedural_questions(task)
    elif (rows := _own_prompts(task)) is not None:
        version = f"{task.version}-{content_hash([task.answer_type, task.answer_types])[:6]}"
        return _typed(
            problems_of(rows, answer_type=task.answer_type, task=name, where=str(path)), task
        ), version
    else:
        questions = _questions(task, name)
    exemplars = load_exemplars(task.exemplars) if task.exemplars else []
    rows = [_row(question, task, name, exemplars, conversational) for question in questions]
    how = [getattr(task, field) for field in ("prompt", "system_prompt", "answer_type", "answer_types")]
    shown = [asdict(exemplar) for exemplar in exemplars]
    version = f"{task.version}-{content_hash([how, shown, task.shots, conversational])[:6]}"
    return _typed(problems_of(rows, task=name, where=str(path)), task), version


def _own_prompts(task: TaskFile) -> list[dict[str, Any]] | None:
    """The rows of a dataset that has prompts rather than questions; None for one that has questions."""
    config = task.dataset_config
    if task.dataset_name is None or isinstance(config, list):
        return None
    rows, columns = read_table(task.dataset_name, config, task.dataset_split)
    mapping = task.column_mapping or {}
    ours = [mapping.get(column, column) for column in columns]
    if "question" in ours or "prompt" not in ours:
        return None
    checked_mapping(mapping, columns, task.dataset_name, _OWN_COLUMNS)
    set_too = [name for name in _FOR_QUESTIONS if getattr(task, name) != _DEFAULTS[name]]
    if set_too:
        raise InputError(
            f"{task.dataset_name} has prompts of its own, which are asked as they are; leave out "
            f"{', '.join(f'`{name}`' for name in set_too)}, or map a column to `question`"
        )
    renamed = [{mapping.get(column, column): value for column, value in row.items()} for row in rows]
    types = task.answer_types or {}
    return [row | {"answer_type": row.get("answer_type") or types.get(row.get("task"))} for row in renamed]


_DEFAULTS = {field.name: field.default for field in fields(TaskFile)}


def _questions(task: TaskFile, name: str) -> list[Question]:
    """The questions of each source; where there are several, each is a task of its own."""
    configs, sources = task.dataset_config, task.datasets
    if isinstance(configs, list):
        parts = [(config, task.dataset_name, config) for config in configs]
    else:
        parts = [
            (of_task, source, configs) for of_task, source in (sources or {name: task.dataset_name}).items()
        ]
    descriptions = read_yaml(task.task_descriptions) if task.task_descriptions else None
    questions: list[Question] = []
    for of_task, source, config in parts:
        read = read_questions(
            source,
            name=config,
            split=task.dataset_split,
            column_mapping=task.column_mapping,
            answer_after=task.answer_after,
            answer_type=task.answer_type,
            task=of_task,
            task_descriptions=descriptions,
        )
        several = len(parts) > 1
        questions += [replace(one, id=f"{of_task}/{one.id}") for one in read] if several else read
    return questions


def _row(
    question: Question, task: TaskFile, name: str, exemplars: Sequence[Exemplar], conversational: bool
) -> dict[str, Any]:
    of_task = question.task or name
    shown = [exemplar for exemplar in exemplars if exemplar.task in (None, of_task)][: task.shots]
    description = question.task_description or ""

    def asked(text: str) -> str:
        return task.prompt.format(question=text, task_description=description).strip()

    turns = [(asked(exemplar.question), exemplar.chain) for exemplar in shown]
    last = asked(question.question)
    if conversational:
        messages = [("system", task.system_prompt)] if task.system_prompt else []
        messages += [turn for ask, chain in turns for turn in (("user", ask), ("assistant", chain))]
        messages.append(("user", last))
        prompt: Any = [{"role": role, "content": content} for role, content in messages]
    else:
        # As the exporter of plain dual CoTs writes them: a line, and the chain after it.
        blocks = [task.system_prompt] if task.system_prompt else []
        blocks += [f"{ask}\n{chain}" for ask, chain in turns]
        prompt = "\n\n".join([*blocks, f"{last}\n"])
    return {
        "task": of_task,
        "id": question.id,
        "prompt": prompt,
        "answer": question.answer,
        "answer_type": question.answer_type or (task.answer_types or {}).get(of_task),
    }


def _typed(problems: list[Problem], task: TaskFile) -> list[Problem]:
    """See that `answer_types` names tasks that are there."""
    unknown = (task.answer_types or {}).keys() - {problem.task for problem in problems}
    if unknown:
        raise InputError(f"`answer_types` names tasks that are not there: {', '.join(sorted(unknown))}")
    return problems


def _first(problems: Sequence[Problem], limit: int | None) -> list[Problem]:
    """The first so many of each task."""
    counts: dict[str, int] = {}
    kept = []
    for problem in problems:
        counts[problem.task] = counts.get(problem.task, 0) + 1
        if limit is None or counts[problem.task] <= limit:
            kept.append(problem)
    return kept


def _procedural_questions(task: TaskFile) -> list[Question]:
    teacher = ProceduralTeacher(task.families, seed=task.problem_seed, difficulty=task.difficulty)
    return [question_of(row) for row in teacher.rows(task.rows)]
