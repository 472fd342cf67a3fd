"""Runs a recipe of `edit-trl generate`: checks what it names, asks the models and saves the result."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from edit_trl.common.errors import InputError
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.hub.repository import check_repo_id, open_repository
from edit_trl.models.chat.batch import BatchDispatcher
from edit_trl.models.chat.batch_endpoint import BatchEndpoint
from edit_trl.models.chat.dispatch import Dispatcher, DispatchStats, stopped_by_signals
from edit_trl.models.chat.display import Display
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import Teacher
from edit_trl.models.decoding import BATCHING
from edit_trl.teachers.card import Provenance
from edit_trl.teachers.closest import make_closest
from edit_trl.teachers.cost import estimate
from edit_trl.teachers.export import save_generation
from edit_trl.teachers.generate_config import GenerateConfig
from edit_trl.teachers.generation import Generation
from edit_trl.teachers.pipeline import make_dual_cots
from edit_trl.teachers.pivots import make_pivots
from edit_trl.teachers.prompts import TemplateName, Templates

# Options that do not change the dual CoTs. The card leaves them out: the same answers give the same card.
_INCIDENTAL = {
    *("output_dir", "push_to_hub", "private", "max_cost", "timeout", "batch_size", "max_concurrency", "batching"),
    *("engine", "actors", "check_model", "poll_interval"),
}


class GenerationPlan:
    """A recipe with everything it names, read and checked before any request is sent.

    `teacher` is None where only the student is asked.

    Raises:
        InputError: Questions, exemplars, templates or a teacher that cannot be used; all at once.
    """

    def __init__(self, config: GenerateConfig):
        self.config = config
        errors: list[str] = []

        def read(part: Callable[[], Any]) -> Any:
            try:
                return part()
            except InputError as error:
                errors.extend(error.problems)

        self.templates: Templates = read(config.templates)
        self.exemplars: Sequence[Exemplar] = read(config.exemplars)
        self.teacher: Teacher | None = read(config.make_teacher)
        read(config.check_student_template)
        self.questions: Sequence[Question] = read(lambda: config.questions(self.teacher))
        if repository := config.arguments.push_to_hub:
            read(lambda: check_repo_id(repository, "push_to_hub"))
        if errors:
            raise InputError(errors)

    def __str__(self) -> str:
        tasks = {question.task for question in self.questions}
        task_count = f" of {len(tasks)} tasks" if len(tasks) > 1 else ""
        questions = f"{len(self.questions)} questions{task_count}"
        arguments = self.config.arguments
        if self.teacher is None:
            return f"{questions}; student {arguments.student!r}, no teacher"
        teacher = f"{questions}, {len(self.exemplars)} exemplars; teacher {self.teacher.model!r} ({arguments.teacher})"
        cost = estimate(self.config, self.questions, self.templates, self.exemplars)
        return f"{teacher}\n{cost}" if cost else teacher

    async def run(self, folder: Path) -> tuple[Generation, dict[str, int]]:
        """Make the dual CoTs and save them to a folder; the journal is in the recipe's `output_dir`.

        Returns:
            The generation, and the number of rows in each file.

        Raises:
            InputError: See `make_dual_cots` and `save_generation`.
        """
        config, repository = self.config, self.config.arguments.push_to_hub
        if repository:
            try:
                open_repository(repository, repo_type="dataset", private=config.arguments.private)
            except InputError as error:
                raise InputError(
                    f"push_to_hub {repository!r}: {error}. Nothing has been asked or paid for yet"
                ) from error
        async with AsyncExitStack() as stack:
            teachers = self._models()
            for teacher in teachers.values():
                stack.push_async_callback(teacher.close)
            await asyncio.gather(*(teacher.check() for teacher in teachers.values()))
            for role, teacher in teachers.items():
                if teacher.batching:
                    print(f"{role} {teacher.model}: {BATCHING[teacher.batching]}", file=sys.stderr)
            journal = stack.enter_context(Journal(config.arguments.output_dir))
            dispatchers = {role: self._dispatcher(role, teacher, journal) for role, teacher in teachers.items()}
            stack.enter_context(stopped_by_signals(list(dispatchers.values())))
            display = stack.enter_context(Display(list(dispatchers.values())))
            generation = await self._make(dispatchers, display)
            provenance = self._provenance({role: dispatcher.stats for role, dispatcher in dispatchers.items()})
        arguments = config.arguments
        rows = save_generation(
            *(generation, folder, provenance),
            conversational=arguments.conversational,
            thoughts_as=arguments.thoughts_as,
        )
        return generation, rows

    def _models(self) -> dict[str, Teacher]:
        """Return the models that are asked, by role; on a Ray cluster where the recipe says so."""
        config = self.config
        roles = {"teacher": self.teacher, "student": config.make_student(), "labeller": config.make_labeller()}
        models: dict[str, Any] = {role: model for role, model in roles.items() if model is not None}
        if config.arguments.engine != "ray":
            return models
        from edit_trl.models.cluster.chat import on_ray

        return on_ray(models, config.arguments.actors, config.limits.most_in_flight())

    def _dispatcher(self, role: str, teacher: Teacher, journal: Journal) -> Dispatcher:
        limits, batch = self.config.teacher_limits, self.config.batch
        if role != "teacher":  # prices are those of the teacher
            limits = replace(limits, prompt_price=None, completion_price=None, max_cost=None)
        if isinstance(teacher, BatchEndpoint):
            return BatchDispatcher(teacher, journal, limits, poll_interval=batch.poll_interval)
        return Dispatcher(teacher, journal, limits)

    async def _make(self, dispatchers: dict[str, Dispatcher], display: Display) -> Generation:
        options = self.config.options
        if self.teacher is None:
            shared: dict[str, Any] = {"options": options, "templates": self.templates, "watcher": display}
            if self.config.arguments.pairs == "closest":
                return await make_closest(self.questions, dispatchers["student"], **shared)
            return await make_pivots(self.questions, dispatchers["student"], pivots=self.config.pivots, **shared)
        return await make_dual_cots(
            self.questions,
            dispatchers["teacher"],
            options=options,
            templates=self.templates,
            exemplars=self.exemplars,
            student=dispatchers.get("student"),
            labeller=dispatchers.get("labeller"),
            watcher=display,
        )

    def _provenance(self, stats: dict[str, DispatchStats]) -> Provenance:
        values = {name: value for name, value in self.config.values.items() if name not in _INCIDENTAL}
        options = self.config.options
        # The stages that a recipe has to ask for are told where it does.
        asked = {"label_steps": options.label == "steps", "critique": options.critique}
        names = [name for name in get_args(TemplateName) if asked.get(name, True)]
        names = ["student"] if self.teacher is None else names
        versions = {name: self.templates.version(name) for name in names}
        author = self.config.arguments.student if self.teacher is None else self.teacher.model
        discount = self.config.batch.batch_discount if self.config.arguments.teacher == "batch" else None
        return Provenance(str(author), stats, versions, values, discount)
