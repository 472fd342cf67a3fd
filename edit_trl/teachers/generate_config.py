"""Reads a recipe of `edit-trl generate`: a YAML file, and command-line options that override it.

The options are those of `EndpointArguments`, `GenerateArguments`, `PipelineOptions`, `PivotOptions`, `Bounds`
and `Limits`, each documented in its class. All errors are reported at once, before any request is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edit_trl.common.errors import InputError
from edit_trl.common.hub_ids import refuse_missing_folder
from edit_trl.common.options import convert, hints_of, read_yaml
from edit_trl.data.exemplars import Exemplar, load_exemplars
from edit_trl.data.questions import Question, read_questions
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.chat.protocol import Teacher
from edit_trl.teachers.filters import Bounds
from edit_trl.teachers.generate_arguments import GenerateArguments
from edit_trl.teachers.generation import PipelineOptions, PivotOptions
from edit_trl.teachers.procedural_chat import ProceduralChat
from edit_trl.teachers.prompts import Templates

# Options that concern a teacher: without one they would have no effect, so they are refused.
_TEACHER_OPTIONS = (
    *("model", "base_urls", "exemplars", "exemplars_per_prompt", "labeller", "label", "rectify"),
    *("rectify_check", "corrupt", "wrong_share", "system_prompt", "temperature"),
    *("prompt_price", "completion_price", "max_cost"),
)
_PROBLEM_OPTIONS = ("families", "rows", "difficulty")


CLASSES = (EndpointArguments, GenerateArguments, PipelineOptions, PivotOptions, Bounds, Limits)
HIDDEN = ("bounds",)  # its fields are options themselves
OPTIONS = {name: hint for name, hint in hints_of(CLASSES).items() if name not in HIDDEN}
"""The type of every option."""
FLAGS = tuple(name for name, hint in OPTIONS.items() if hint is bool)
"""Options that need no value on a command line."""


@dataclass(frozen=True)
class GenerateConfig:
    """A checked recipe.

    Attributes:
        values: The given options, converted to their types.
        arguments: The models, questions and files.
        options: How dual CoTs are made.
        pivots: How pivotal steps are found.
        limits: Limits on concurrency, retries and cost.
    """

    values: Mapping[str, Any]
    arguments: GenerateArguments
    options: PipelineOptions
    pivots: PivotOptions
    limits: Limits

    def questions(self, teacher: Teacher | None) -> list[Question]:
        """The questions that are asked.

        Raises:
            InputError: Rows that are not questions; all of them.
        """
        limit = self.arguments.limit
        if self.arguments.teacher == "procedural":
            return teacher.questions()[:limit] if isinstance(teacher, ProceduralChat) else []
        if self.arguments.dataset_name is None:
            return self._problems().questions()[:limit]
        configs = self.arguments.dataset_config
        if not isinstance(configs, list):
            return self._read(configs, self.arguments.task)
        return [
            replace(question, id=f"{config}/{question.id}")
            for config in configs
            for question in self._read(config, config)
        ]

    def _read(self, config: str | None, task: str | None) -> list[Question]:
        arguments = self.arguments
        return read_questions(
            arguments.dataset_name,
            name=config,
            split=arguments.dataset_split,
            column_mapping=arguments.column_mapping,
            answer_after=arguments.answer_after,
            answer_type=arguments.answer_type,
            task=task,
            task_descriptions=_descriptions(arguments.task_descriptions),
            limit=arguments.limit,
        )

    def templates(self) -> Templates:
        """The prompt templates: the package's, or the recipe's where it names one."""
        return Templates.load(self.arguments.templates)

    def exemplars(self) -> list[Exemplar]:
        """The worked examples."""
        return load_exemplars(self.arguments.exemplars) if self.arguments.exemplars else []

    def make_teacher(self) -> Teacher | None:
        """The teacher, or None. Nothing is sent or loaded yet."""
        arguments = self.arguments
        if arguments.teacher == "none":
            return None
        if arguments.teacher == "procedural":
            return self._problems()
        if arguments.teacher == "transformers_local":
            return _local(arguments.model, arguments.batch_size)
        return arguments.endpoint()

    def _problems(self) -> ProceduralChat:
        arguments = self.arguments
        return ProceduralChat(
            arguments.families,
            rows=arguments.rows,
            seed=self.options.seed,
            difficulty=arguments.difficulty,
            wrong_share=arguments.wrong_share,
        )

    def make_student(self) -> Teacher | None:
        """The student, or None.

        Raises:
            InputError: Its folder does not exist.
        """
        arguments = self.arguments
        if arguments.student is None:
            return None
        if arguments.student_base_urls:
            return arguments.endpoint(arguments.student, arguments.student_base_urls)
        refuse_missing_folder(arguments.student, "student")
        return _local(arguments.student, arguments.batch_size)

    def make_labeller(self) -> Teacher | None:
        """The model that labels mistakes; None where the teacher does."""
        if self.arguments.labeller is None or self.options.label == "none":
            return None
        return self.arguments.endpoint(self.arguments.labeller)


def read_generate_config(path: str | Path | None, options: Mapping[str, Any]) -> GenerateConfig:
    """Read and check a recipe.

    Args:
        path: A YAML file of `key: value`. Files that it names are searched in the working directory, then in
            the recipe's own folder.
        options: Values that override those of the file.

    Raises:
        InputError: Everything that is wrong with the recipe.
    """
    values = {**(read_yaml(path) if path else {}), **options}
    if "stages" in values or "model_name_or_path" in values:
        raise InputError(f"{path or 'these options'}: this is a recipe of `edit-trl train`, not of generate")
    if "runs" in values:
        raise InputError(f"{path or 'these options'}: this is a recipe of `edit-trl judge`, not of generate")
    converted, problems = convert(values, OPTIONS)
    if converted.get("pivots"):
        converted.setdefault("teacher", "none")
    problems += _misplaced(converted)
    built: dict[type, Any] = {}
    # PipelineOptions hold the bounds, so the bounds come first.
    for cls in (GenerateArguments, Bounds, Limits, PipelineOptions, PivotOptions):
        names = {field.name for field in fields(cls)} - {"bounds"}
        more = {"bounds": built[Bounds]} if cls is PipelineOptions and Bounds in built else {}
        try:
            built[cls] = cls(**{name: value for name, value in converted.items() if name in names}, **more)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems, heading=f"{path or 'command line'}:")
    arguments = _beside(built[GenerateArguments], Path(path).parent if path else Path())
    return GenerateConfig(converted, arguments, built[PipelineOptions], built[PivotOptions], built[Limits])


def is_generate_recipe(path: str | Path) -> bool:
    """Whether a YAML file is a recipe of `edit-trl generate` rather than of `edit-trl train`."""
    try:
        values = read_yaml(path)
    except InputError:
        return False  # reading it as a training recipe reports what is wrong
    return bool({"teacher", "base_urls", "pivots"} & values.keys())


def _misplaced(values: Mapping[str, Any]) -> Iterator[str]:
    """Errors for options that would have no effect."""
    if values.get("teacher") != "none":
        given = [field.name for field in fields(PivotOptions) if field.name in values]
        if given:
            yield f"{_named(given)} {'is' if len(given) == 1 else 'are'} for `pivots: true`"
        return
    given = [name for name in _TEACHER_OPTIONS if values.get(name) is not None]
    if given:
        hint = "; the student's is `student_temperature`" if "temperature" in given else ""
        yield f"there is no teacher (`teacher: none`): leave out {_named(given)}{hint}"
    given = [name for name in _PROBLEM_OPTIONS if values.get(name) is not None]
    if given and values.get("dataset_name"):
        yield f"{_named(given)}: for procedural problems, but `dataset_name` gives the questions"


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _beside(arguments: GenerateArguments, folder: Path) -> GenerateArguments:
    """The arguments with files that only exist beside the recipe named by their path there."""

    def find(file: str | None) -> str | None:
        if file is None or Path(file).exists() or not (folder / file).exists():
            return file
        return str(folder / file)

    values = {field.name: getattr(arguments, field.name) for field in fields(arguments)}
    for name in ("dataset_name", "task_descriptions", "exemplars"):
        values[name] = find(values[name])
    if values["templates"]:
        values["templates"] = {name: find(file) for name, file in values["templates"].items()}
    return GenerateArguments(**values)


def _descriptions(file: str | None) -> dict[str, str]:
    if file is None:
        return {}
    values = read_yaml(file)
    wrong = [task for task, text in values.items() if not isinstance(text, str)]
    if wrong:
        raise InputError(f"{file}: the description of {', '.join(map(str, wrong))} must be a text")
    return values


def _local(model: str, batch_size: int) -> Teacher:
    # Heavy, and needed for local models alone.
    from edit_trl.models.chat.local import TransformersTeacher

    return TransformersTeacher(model, batch_size=batch_size)
