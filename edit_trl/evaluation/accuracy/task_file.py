"""A task file: YAML that names the questions of a task, formats its prompts and tells how answers are read.

version: 1
dataset_name: openai/gsm8k        # a Hub id, or a .jsonl, .json, .csv or .parquet file, or a folder
dataset_config: main
dataset_split: test
answer_after: "####"
answer_type: number
system_prompt: Think step by step, and end with "Therefore, the answer is ...".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edit_trl.common.checks import at_least, difficulty_range, seed_range
from edit_trl.common.conversion import convert
from edit_trl.common.errors import InputError, collect_problems, raise_problems
from edit_trl.common.options import Options, find_beside, hints_of
from edit_trl.common.shipped import recipes_folder
from edit_trl.common.templates import template_problems
from edit_trl.common.yaml_file import read_words
from edit_trl.data.answers import AnswerType

_PLACEHOLDERS = frozenset({"question", "task_description"})
_TASKS_FOLDER = "tasks"
_DATASET_FILES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class TaskFile(Options):
    """The questions of a task, the format of its prompts, and how answers are read.

    Attributes:
        version: Increase this when results before and after a change cannot be compared.
        task: The task of rows without one; the name of the file by default.
        prefix: Put before the names of its tasks, for when another file has tasks of the same names.
        dataset_name: Questions with answers: a .jsonl, .json, .csv or .parquet file, a folder saved by
            datasets, or a Hub id.
        datasets: Several datasets instead, as task: source.
        dataset_config: Configuration of a Hub dataset; with a list, each configuration is a task.
        dataset_split: Split of the dataset; "train" if there are several.
        column_mapping: Renames columns to question, answer, id, task, task_description, choices, context, or prompt.
        answer_after: The text in the answer column after which the answer begins, such as "####".
        answer_type: Type of every answer: number, choice, yes_no, boolean, text, list or math (needs the extra
            `math`); inferred from the answer if empty.
        answer_types: Type of the answers of each task, as task: type.
        task_descriptions: A YAML file, task: description.
        families: Families of problems of the procedural teacher, instead of a dataset.
        rows: Number of its problems.
        difficulty: Difficulty of its problems, 1 to 5.
        problem_seed: Seed of its problems; it must differ from that of every training set, or the problems
            are the same.
        prompt: Template of a prompt, with {question} and optionally {task_description}.
        system_prompt: System prompt of each conversation.
        exemplars: A YAML or JSON Lines file of worked examples (few-shot).
        shots: The most exemplars to use of a task, from its beginning.
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
    answer_types: dict[str, AnswerType] | None = None
    task_descriptions: str | None = None
    families: list[str] | None = None
    rows: int = 100
    difficulty: int = 1
    problem_seed: int = 1_000_003
    prompt: str = "{question}"
    system_prompt: str | None = None
    exemplars: str | None = None
    shots: int | None = None

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        if sum(bool(source) for source in (self.dataset_name, self.datasets, self.families)) != 1:
            yield "a task needs one of `dataset_name`, `datasets` and `families` (procedural problems)"
        if self.datasets and isinstance(self.dataset_config, list):
            yield "`datasets` and a list of `dataset_config` both name tasks; use one of them"
        yield from (f"`prompt`: {problem}" for problem in template_problems(self.prompt, _PLACEHOLDERS))
        yield from at_least(1, rows=self.rows, shots=self.shots)
        yield from seed_range(problem_seed=self.problem_seed)
        yield from difficulty_range(difficulty=self.difficulty)

    def beside(self, folder: Path) -> TaskFile:
        """Return the task file with its paths resolved from the working directory or, failing that, from a folder."""
        return replace(
            self,
            dataset_name=find_beside(self.dataset_name, folder),
            datasets={name: find_beside(source, folder) for name, source in (self.datasets or {}).items()} or None,
            task_descriptions=find_beside(self.task_descriptions, folder),
            exemplars=find_beside(self.exemplars, folder),
        )


def read_task(name: str, beside: Path = Path()) -> tuple[Path, TaskFile]:
    """Read a task file, and resolve the files that it names from the working directory or its own folder.

    Args:
        name: A path, or the name of a file in `tasks/` beside the recipe, or of a task that comes with the package. A
            dataset file (.jsonl, .csv or .parquet) is a task that sets nothing but its dataset.
        beside: The folder of the recipe.

    Returns:
        The path of the task file, and its content.

    Raises:
        InputError: The file is missing, or names everything that is wrong in it.
    """
    path = _find(name, beside)
    if path.suffix.lower() in _DATASET_FILES:
        return path, TaskFile(dataset_name=str(path))
    values, errors = convert(read_words(path, "task file"), hints_of([TaskFile]))
    with collect_problems(errors):
        task = TaskFile(**values)
    raise_problems(f"{path}: {error}" for error in errors)
    return path, task.beside(path.parent)


def _find(name: str, beside: Path) -> Path:
    folders = (beside / _TASKS_FOLDER, recipes_folder() / "evaluate" / _TASKS_FOLDER)
    candidates = (Path(name), beside / name, *(folder / f"{name}.yaml" for folder in folders))
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        if Path(name).is_dir():
            raise InputError(f"{name} is a folder; name a file in it, or a task file with `dataset_name: {name}`")
        names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise InputError(f"no task {name!r}: no such file, and the names of tasks are: {', '.join(names)}")
    return path
