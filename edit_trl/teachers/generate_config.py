"""Reads a recipe of `edit-trl generate`: a YAML file, and command-line options that override it.

The options are those of `EndpointArguments`, `GenerateArguments`, `PipelineOptions`, `PivotOptions`, `Bounds`,
`Limits` and `BatchOptions`, each documented in its class. All errors are reported at once, before any request is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from edit_trl.common.conversion import convert
from edit_trl.common.environment import read_recipe_words
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.hub_ids import refuse_missing_folder
from edit_trl.common.options import build, find_beside, hints_of
from edit_trl.common.shipped import find_recipe
from edit_trl.common.yaml_file import read_texts
from edit_trl.data.exemplars import Exemplar, load_exemplars
from edit_trl.data.questions import Question, read_questions
from edit_trl.models.chat.batch import BatchOptions
from edit_trl.models.chat.batch_endpoint import BatchEndpoint
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
    *("critique", "rectify_check", "corrupt", "wrong_share", "system_prompt", "temperature", "chat_template_kwargs"),
    *("prompt_price", "completion_price", "max_cost"),
)
# Options that concern a model that may think, which the procedural teacher does not.
_THOUGHT_OPTIONS = ("thoughts", "thoughts_as", "max_thinking_tokens")
# Options of requests that are sent one by one.
_LIVE_OPTIONS = ("max_concurrency", "requests_per_minute", "tokens_per_minute")
_PROBLEM_OPTIONS = ("families", "rows", "difficulty")
_QUESTION_OPTIONS = (
    *("dataset_config", "dataset_split", "column_mapping", "answer_after", "answer_type", "task"),
    "task_descriptions",
)
_FILES = (
    *("dataset_name", "task_descriptions", "exemplars"),
    *("train_recipe", "control_recipe", "dev_task"),
)

CLASSES = (EndpointArguments, GenerateArguments, PipelineOptions, PivotOptions, Bounds, Limits, BatchOptions)
HIDDEN = ("bounds",)  # its fields are options themselves
OPTIONS = {name: hint for name, hint in hints_of(CLASSES).items() if name not in HIDDEN}
"""The type of every option."""
FLAGS = tuple(name for name, hint in OPTIONS.items() if hint is bool)
"""Options that need no value on a command line."""


@dataclass(frozen=True)
class GenerateConfig:
    """A checked recipe; `values` are the given options, converted to their types."""

    values: Mapping[str, Any]
    arguments: GenerateArguments
    options: PipelineOptions
    pivots: PivotOptions
    limits: Limits
    batch: BatchOptions

    def questions(self, teacher: Teacher | None) -> list[Question]:
        """Return the questions that are asked; raise an InputError that names all rows that are none."""
        arguments = self.arguments
        if arguments.teacher == "procedural":
            return teacher.questions()[: arguments.limit] if isinstance(teacher, ProceduralChat) else []
        if arguments.dataset_name is None:
            return self._problems().questions()[: arguments.limit]
        read = partial(
            read_questions,
            arguments.dataset_name,
            split=arguments.dataset_split,
            column_mapping=arguments.column_mapping,
            answer_after=arguments.answer_after,
            answer_type=arguments.answer_type,
            task_descriptions=read_texts(arguments.task_descriptions, "file of task descriptions")
            if arguments.task_descriptions
            else {},
            limit=arguments.limit,
        )
        configs = arguments.dataset_config
        if not isinstance(configs, list):
            return read(name=configs, task=arguments.task)
        return [
            replace(question, id=f"{config}/{question.id}")
            for config in configs
            for question in read(name=config, task=config)
        ]

    @property
    def teacher_limits(self) -> Limits:
        """The limits of the teacher, with the prices that it really asks."""
        return self.batch.discounted(self.limits) if self.arguments.teacher == "batch" else self.limits

    def templates(self) -> Templates:
        """Return the prompt templates: the package's, or the recipe's where it names one."""
        return Templates.load(self.arguments.templates)

    def exemplars(self) -> list[Exemplar]:
        """Return the worked examples."""
        return load_exemplars(self.arguments.exemplars) if self.arguments.exemplars else []

    def make_teacher(self) -> Teacher | None:
        """Return the teacher, or None. Nothing is sent or loaded yet."""
        arguments = self.arguments
        if arguments.teacher == "none":
            return None
        if arguments.teacher == "procedural":
            return self._problems()
        if arguments.teacher == "transformers_local":
            assert arguments.model is not None  # its absence is refused with the other options
            return _local(arguments.model, arguments, arguments.chat_template_kwargs)
        return self._endpoint(arguments.model)

    def _endpoint(self, model: str | None) -> Teacher:
        """Return a model at the teacher's endpoints."""
        arguments = self.arguments.with_chat_template(self.arguments.chat_template_kwargs)
        if arguments.teacher == "batch":
            return arguments.endpoint(model, kind=BatchEndpoint)
        return arguments.endpoint(model)

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
        """Return the student, or None; raise an InputError if its folder does not exist."""
        arguments = self.arguments
        if arguments.student is None:
            return None
        values = arguments.student_chat_template_kwargs
        if arguments.student_base_urls:
            return arguments.with_chat_template(values).endpoint(arguments.student, arguments.student_base_urls)
        refuse_missing_folder(arguments.student, "student")
        return _local(arguments.student, arguments, values)

    def check_student_template(self) -> None:
        """Check that a student on this machine can be trained on thoughts in the form in which rows will have them.

        Raises:
            InputError: Its chat template leaves them out; names the form that it holds.
        """
        arguments = self.arguments
        student = None if arguments.student_base_urls else arguments.student
        if student is not None and self.options.thoughts == "keep" and arguments.conversational:
            # Heavy, and needed in this case alone.
            from edit_trl.models.adapters import adapter_base
            from edit_trl.models.loading import load_tokenizer
            from edit_trl.teachers.student_template import check_thoughts_form

            refuse_missing_folder(student, "student")
            tokenizer = load_tokenizer(student, adapter_base(student, "student"), option="student")
            check_thoughts_form(tokenizer, arguments.thoughts_as, arguments.student_chat_template_kwargs)

    def make_labeller(self) -> Teacher | None:
        """Return the model that labels mistakes; None where the teacher does."""
        if self.arguments.labeller is None or (self.options.label == "none" and not self.options.critique):
            return None
        return self._endpoint(self.arguments.labeller)


def read_generate_config(
    path: str | Path | None, options: Mapping[str, Any], recipe: Mapping[str, Any] | None = None
) -> GenerateConfig:
    """Read and check a recipe, a YAML file of `key: value`, and the options that override it.

    Files that the recipe names are searched in the working directory, then in the recipe's own folder. `recipe` holds
    the values of the file, if it was read before.

    Raises:
        InputError: Everything that is wrong with the recipe.
    """
    path = None if path is None else find_recipe(str(path))
    values = {**(read_recipe_words(path) if path and recipe is None else recipe or {}), **options}
    for name, command in (("stages", "train"), ("model_name_or_path", "train"), ("runs", "judge")):
        if name in values:
            raise InputError(f"{path or 'these options'}: this is a recipe of `edit-trl {command}`, not of generate")
    converted, problems = convert(values, OPTIONS)
    if converted.get("pairs"):
        converted.setdefault("teacher", "none")
    classes = (GenerateArguments, Bounds, Limits, PipelineOptions, PivotOptions, BatchOptions)
    problems += _misplaced(converted)
    name = str(path or "command line")
    arguments, bounds, limits, pipeline, pivots, batch = build(classes, converted, problems, f"{name}:")
    raise_problems(_left_to_endpoints(arguments, converted), name)
    folder = Path(path).parent if path else Path()
    files: dict[str, Any] = {name: find_beside(getattr(arguments, name), folder) for name in _FILES}
    files |= {name: find_recipe(files[name]) for name in ("train_recipe", "control_recipe") if files[name]}
    if arguments.templates:
        files["templates"] = {name: find_beside(file, folder) for name, file in arguments.templates.items()}
    pipeline = replace(pipeline, bounds=bounds)
    return GenerateConfig(converted, replace(arguments, **files), pipeline, pivots, limits, batch)


def _misplaced(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield errors for options that would have no effect."""
    teacher, source = values.get("teacher"), values.get("dataset_name")

    def given(names: Iterable[str]) -> list[str]:
        return [name for name in names if values.get(name) is not None]

    if values.get("pairs") != "pivots":
        names = [field.name for field in fields(PivotOptions) if field.name in values]
        if names:
            yield f"{_named(names)} {'is' if len(names) == 1 else 'are'} for `pairs: pivots`"
    if teacher == "none" and (names := given(_TEACHER_OPTIONS)):
        hint = "; the student's is `student_temperature`" if "temperature" in names else ""
        yield f"there is no teacher (`teacher: none`): leave out {_named(names)}{hint}"
    if teacher != "batch" and (names := given(field.name for field in fields(BatchOptions))):
        yield f"{_named(names)} {'is' if len(names) == 1 else 'are'} for `teacher: batch`"
    if teacher == "batch" and not values.get("student") and (names := given(_LIVE_OPTIONS)):
        yield f"{_named(names)}: for requests that are sent one by one, but `teacher: batch` sends files; leave out"
    if values.get("batching") == "continuous" and values.get("send_seed"):
        yield "`batching: continuous` takes no seeds; leave out `send_seed`, or use `batching: padded`"
    yield from _misplaced_thoughts(values, given)
    if names := given(_PROBLEM_OPTIONS) if source else []:
        yield f"{_named(names)}: for procedural problems, but `dataset_name` gives the questions"
    if names := given(_QUESTION_OPTIONS) if teacher in ("none", "procedural") and not source else []:
        yield f"{_named(names)}: for questions of `dataset_name`, but they are procedural problems"


def _misplaced_thoughts(values: Mapping[str, Any], given: Callable[[Iterable[str]], list[str]]) -> Iterator[str]:
    """Yield errors for options of thoughts that would have no effect."""
    if values.get("teacher") == "procedural":
        names = given(("chat_template_kwargs", *(() if values.get("student") else _THOUGHT_OPTIONS)))
        if names:
            yield f"{_named(names)}: for a model that may think, but the procedural teacher is none; leave out"
    elif values.get("teacher") == "none":
        if names := given(("thoughts", "thoughts_as")):
            yield f"{_named(names)}: with `pairs`, chains are the student's own text, with its thoughts; leave out"
    elif given(("thoughts_as",)) and values.get("thoughts") != "keep":
        yield "`thoughts_as` is for `thoughts: keep`"


def _left_to_endpoints(arguments: GenerateArguments, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield errors for options that are null, although a model that is loaded or embedded needs a number."""
    local_teacher = arguments.teacher not in ("openai_compatible", "batch", "none")
    local_student = bool(arguments.student) and not arguments.student_base_urls
    needed = {
        "temperature": local_teacher,
        "student_temperature": local_student,
        "top_p": local_teacher or local_student,
    }
    for name, is_needed in needed.items():
        if is_needed and name in values and values[name] is None:
            yield f"`{name}: null` leaves it to an endpoint; a model that is loaded needs a number"


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _local(model: str, arguments: GenerateArguments, chat_template_kwargs: Mapping[str, Any] | None) -> Teacher:
    # Heavy, and needed for local models alone.
    from edit_trl.models.chat.local import TransformersTeacher

    return TransformersTeacher(
        model,
        batch_size=arguments.batch_size,
        batching=arguments.batching,
        dtype=arguments.dtype,
        chat_template_kwargs=chat_template_kwargs,
    )
