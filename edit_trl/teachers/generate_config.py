"""A recipe of `edit-trl generate`: a YAML file, and command-line options over it, checked (L3).

Options are those of `EndpointArguments`, `GenerateArguments`, `PipelineOptions`, `PivotOptions`, `Bounds`
and `Limits`, each described where it is defined. Everything wrong is reported at once, and before anything is
asked of a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.options import convert, hints_of, read_yaml
from edit_trl.data.answers import AnswerType
from edit_trl.data.exemplars import Exemplar, load_exemplars
from edit_trl.data.questions import Question, read_questions
from edit_trl.models.chat.dispatch import Limits
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.chat.protocol import Teacher
from edit_trl.models.cluster.cluster import Engine, engine_problems
from edit_trl.models.loading import refuse_missing_folder
from edit_trl.teachers.filters import Bounds
from edit_trl.teachers.generation import PipelineOptions, PivotOptions
from edit_trl.teachers.procedural_chat import ProceduralChat
from edit_trl.teachers.prompts import Templates

TeacherKind = Literal["openai_compatible", "transformers_local", "procedural", "none"]
# What says something to or of a teacher, and would be read by nobody where there is none.
_OF_TEACHER = ("model", "base_urls", "exemplars", "exemplars_per_prompt", "labeller", "label", "rectify")
_OF_TEACHER += ("rectify_check", "corrupt", "wrong_share", "system_prompt", "temperature", "prompt_price")
_OF_TEACHER += ("completion_price", "max_cost")
_OF_PROBLEMS = ("families", "rows", "difficulty")


@dataclass(frozen=True)
class GenerateArguments(EndpointArguments):
    """Who is asked what, and where the result goes; also with the fields of `EndpointArguments`.

    Attributes:
        teacher: `openai_compatible` asks an endpoint, `transformers_local` a model on this machine,
            `procedural` the embedded teacher, which knows its own problems alone; `none` asks nobody but
            the student (`pivots`).
        model: The teacher's name at the endpoint, or its path or Hub id.
        batch_size: Prompts a batch of a local model.
        engine: local, or ray: local models are loaded by the machines of a Ray cluster that is running, which
            must all see them under the same name, and each endpoint is asked by a process of its own there.
        actors: How many processes of the Ray cluster load local models; one a GPU, or where it has none one
            a machine.
        dataset_name: Questions with answers: a .jsonl, .json, .csv or .parquet file, a folder saved by
            datasets, or a Hub id.
        dataset_config: Configuration of a Hub dataset; a list of them is read in order, and each names the
            task of its questions.
        dataset_split: Split; "train" where there are several.
        column_mapping: Renames columns to question, answer, id, task, task_description, choices.
        answer_after: The answer is what stands after this in the answer column, such as "####".
        answer_type: Type of every answer: number, choice, yes_no, boolean, text or list; by its
            looks where empty.
        task: Task of questions that name none.
        task_descriptions: A YAML file, task: description.
        limit: Only the first so many questions, of each configuration.
        exemplars: A YAML or JSON Lines file of worked examples.
        templates: Prompt templates of one's own, name: text file.
        families: Families of the procedural teacher's problems; all by default. With `pivots` and without
            `dataset_name` the questions are of these, too.
        rows: How many problems the procedural teacher makes.
        difficulty: Of its problems, 1 to 5.
        wrong_share: How often it annotates with a wrong chain.
        student: A model on this machine whose own wrong chains are mended too (on-policy dual CoTs); its name
            at the endpoint where `student_base_urls` is given.
        student_base_urls: Endpoints of the student.
        pivots: Whether the pairs are made of the student's own chains: wrong ones, and its own right
            continuations from before the step where they are lost; needs no teacher. An endpoint of the
            student must go on from a partial answer (vLLM's and SGLang's `continue_final_message`).
        labeller: Another model at the teacher's endpoints, to label mistakes.
        output_dir: Where the journal, the dual CoTs and their card go.
        conversational: Rows of messages; plain strings otherwise.
        push_to_hub: A dataset repository to push the result to.
        private: Whether that repository is private.
        rounds: How often generating and training alternate; each round with the mistakes, or the pivots, of
            the student of the round before.
        train_recipe: The recipe that each round trains with.
    """

    teacher: TeacherKind = "openai_compatible"
    batch_size: int = 16
    engine: Engine = "local"
    actors: int | None = None
    dataset_name: str | None = None
    dataset_config: str | list[str] | None = None
    dataset_split: str | None = None
    column_mapping: dict[str, str] | None = None
    answer_after: str | None = None
    answer_type: AnswerType | None = None
    task: str | None = None
    task_descriptions: str | None = None
    limit: int | None = None
    exemplars: str | None = None
    templates: dict[str, str] | None = None
    families: list[str] | None = None
    rows: int = 100
    difficulty: int = 1
    wrong_share: float = 0.4
    student: str | None = None
    student_base_urls: list[str] | None = None
    pivots: bool = False
    labeller: str | None = None
    output_dir: str = "outputs/dual_cots"
    conversational: bool = True
    push_to_hub: str | None = None
    private: bool | None = None
    rounds: int = 1
    train_recipe: str | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError(problems)

    def _problems(self):
        endpoint = self.teacher == "openai_compatible"
        if self.pivots and self.teacher != "none":
            yield f"`pivots` asks no teacher: write `teacher: none`, or leave it out; got {self.teacher}"
        elif self.teacher == "none":
            if not self.pivots:
                yield "`teacher: none` is for `pivots: true`: else there is nobody to write or mend chains"
            if not self.student:
                yield "`student` is missing: whose chains `pivots` are found in, as a path or Hub id"
        elif self.teacher != "procedural":
            if not self.model:
                yield "`model` is missing: the teacher, " + (
                    "as the endpoint names it" if endpoint else "as a path or Hub id"
                )
            if not self.dataset_name:
                yield "`dataset_name` is missing: questions with answers, as a file, a folder or a Hub id"
        elif self.dataset_name:
            yield "`teacher: procedural` asks its own problems; leave out `dataset_name`, or change `teacher`"
        if endpoint and not self.base_urls:
            yield "`base_urls` is missing: where the teacher is, such as [http://127.0.0.1:8000/v1]"
        if self.labeller and not endpoint:
            yield "`labeller` is a model at the teacher's endpoints; it needs `teacher: openai_compatible`"
        if self.student_base_urls and not self.student:
            yield "`student_base_urls` needs `student`, its name there"
        yield from self.not_positive("timeout", "batch_size", "rows", "rounds", "limit")
        yield from engine_problems(self.engine, self.actors)
        if self.engine == "ray" and self.teacher == "procedural":
            yield "`teacher: procedural` has nothing to do on other machines: leave out `engine: ray`"
        local = self.teacher == "transformers_local" or (self.student and not self.student_base_urls)
        if self.actors is not None and not local:
            yield "`actors` is for models that are loaded; each endpoint has one process"
        if self.rounds > 1 and not (self.student and self.train_recipe):
            yield "`rounds` trains a student between generations: set `student` and `train_recipe`"
        if self.train_recipe and self.rounds == 1:
            yield "`train_recipe` is for `rounds` of 2 or more"


CLASSES = (EndpointArguments, GenerateArguments, PipelineOptions, PivotOptions, Bounds, Limits)
HIDDEN = ("bounds",)  # its fields are options themselves
OPTIONS = {name: hint for name, hint in hints_of(CLASSES).items() if name not in HIDDEN}
"""Every option and its type."""
FLAGS = tuple(name for name, hint in OPTIONS.items() if hint is bool)
"""Those that are set by their name alone on a command line."""


@dataclass(frozen=True)
class GenerateConfig:
    """A checked recipe.

    Attributes:
        values: The options given, in their types.
        arguments: See `GenerateArguments`.
        options: How dual CoTs are made.
        pivots: How pivotal steps are found.
        limits: How hard the teacher is asked.
    """

    values: Mapping[str, Any]
    arguments: GenerateArguments
    options: PipelineOptions
    pivots: PivotOptions
    limits: Limits

    def questions(self, teacher: Teacher | None) -> list[Question]:
        """The questions to ask.

        Raises:
            InputError: Every row that is no question.
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
        """The prompt templates, with one's own in place of some."""
        return Templates.load(self.arguments.templates)

    def exemplars(self) -> list[Exemplar]:
        """The worked examples."""
        return load_exemplars(self.arguments.exemplars) if self.arguments.exemplars else []

    def make_teacher(self) -> Teacher | None:
        """The teacher, if there is one; nothing is sent or loaded yet."""
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
        """The student whose mistakes are mended, where one is named.

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
        """Who labels mistakes, where it is not the teacher."""
        if self.arguments.labeller is None or self.options.label == "none":
            return None
        return self.arguments.endpoint(self.arguments.labeller)


def read_generate_config(path: str | Path | None, options: Mapping[str, Any]) -> GenerateConfig:
    """Read a recipe.

    Args:
        path: A YAML file of `key: value`; files that it names are looked for from where the command runs,
            then from the recipe's own folder.
        options: Values that win over the file's.

    Raises:
        InputError: All that is wrong with it.
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
    # The pipeline's options hold the bounds, so these are made first.
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
    """Whether the keys of a YAML file are those of a generation rather than of a training."""
    try:
        values = read_yaml(path)
    except InputError:
        return False  # who reads it as the other kind will say what is wrong
    return bool({"teacher", "base_urls", "pivots"} & values.keys())


def _misplaced(values: Mapping[str, Any]) -> Iterator[str]:
    """Options that nobody would read."""
    if values.get("teacher") != "none":
        given = [field.name for field in fields(PivotOptions) if field.name in values]
        if given:
            yield (
                f"{_named(given)} is for `pivots: true`"
                if len(given) == 1
                else (f"{_named(given)} are for `pivots: true`")
            )
        return
    given = [name for name in _OF_TEACHER if values.get(name) is not None]
    if given:
        hint = "; of the student's chains it is `student_temperature`" if "temperature" in given else ""
        yield f"there is no teacher (`teacher: none`): leave out {_named(given)}{hint}"
    given = [name for name in _OF_PROBLEMS if values.get(name) is not None]
    if given and values.get("dataset_name"):
        yield f"{_named(given)}: of the procedural problems, while the questions are those of `dataset_name`"


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _beside(arguments: GenerateArguments, folder: Path) -> GenerateArguments:
    """Files that a recipe names and that are not found from here are looked for beside it."""

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
