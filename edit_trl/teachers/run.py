"""One generation from a recipe: check, ask, save (L3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from edit_trl.common.errors import InputError
from edit_trl.data.exemplars import Exemplar
from edit_trl.data.questions import Question
from edit_trl.models.chat.dispatch import Dispatcher, DispatchStats, stopped_by_signals
from edit_trl.models.chat.display import Display
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import Teacher
from edit_trl.teachers.card import Provenance
from edit_trl.teachers.export import save_generation
from edit_trl.teachers.generate_config import GenerateConfig
from edit_trl.teachers.generation import Generation
from edit_trl.teachers.pipeline import make_dual_cots
from edit_trl.teachers.pivots import make_pivots
from edit_trl.teachers.prompts import TemplateName, Templates

# What does not change what is made, and so is not told in the card: the same answers make the same card.
_INCIDENTAL = {"output_dir", "push_to_hub", "private", "max_cost", "timeout", "batch_size", "max_concurrency"}


_INCIDENTAL |= {"engine", "actors"}


class Prepared:
    """A recipe with everything it names, read and checked; nothing has been sent.

    Args:
        config: The recipe.

    Attributes:
        teacher: Who will be asked; None where the student alone is.
        questions: What.

    Raises:
        InputError: Questions, exemplars, templates or a teacher that cannot be used; all at once.
    """

    def __init__(self, config: GenerateConfig):
        self.config = config
        problems: list[str] = []

        def of(make: Callable[[], Any]) -> Any:
            try:
                return make()
            except InputError as error:
                problems.extend(error.problems)

        self.templates: Templates = of(config.templates)
        self.exemplars: Sequence[Exemplar] = of(config.exemplars)
        self.teacher: Teacher | None = of(config.make_teacher)
        self.questions: Sequence[Question] = of(lambda: config.questions(self.teacher))
        if problems:
            raise InputError(problems)

    def __str__(self) -> str:
        tasks = {question.task for question in self.questions}
        of_tasks = f" of {len(tasks)} tasks" if len(tasks) > 1 else ""
        questions = f"{len(self.questions)} questions{of_tasks}"
        if self.teacher is None:
            return f"{questions}; student {self.config.arguments.student!r}, no teacher"
        return (
            f"{questions}, {len(self.exemplars)} exemplars; teacher "
            f"{self.teacher.model!r} ({self.config.arguments.teacher})"
        )

    async def run(self, folder: Path) -> tuple[Generation, dict[str, int]]:
        """Make the dual CoTs and save them.

        Args:
            folder: For the result; the journal is in the recipe's `output_dir`.

        Returns:
            What was made, and the rows written by file.

        Raises:
            InputError: See `make_dual_cots` and `save_generation`.
        """
        config = self.config
        async with AsyncExitStack() as stack:
            teachers = {"teacher": self.teacher}
            teachers |= {"student": config.make_student(), "labeller": config.make_labeller()}
            teachers = {who: teacher for who, teacher in teachers.items() if teacher is not None}
            if config.arguments.engine == "ray":
                from edit_trl.models.cluster.chat import on_ray

                teachers = on_ray(teachers, config.arguments.actors, config.limits.max_concurrency)
            for teacher in teachers.values():
                stack.push_async_callback(teacher.close)
            await asyncio.gather(*(teacher.check() for teacher in teachers.values()))
            journal = stack.enter_context(Journal(config.arguments.output_dir))
            dispatchers = {
                who: Dispatcher(
                    teacher,
                    journal,
                    # Prices are the teacher's.
                    config.limits
                    if who == "teacher"
                    else replace(config.limits, prompt_price=None, completion_price=None, max_cost=None),
                )
                for who, teacher in teachers.items()
            }
            stack.enter_context(stopped_by_signals(list(dispatchers.values())))
            display = stack.enter_context(Display(list(dispatchers.values())))
            generation = await self._make(dispatchers, display)
            provenance = self._provenance({who: dispatcher.stats for who, dispatcher in dispatchers.items()})
        rows = save_generation(generation, folder, provenance, conversational=config.arguments.conversational)
        return generation, rows

    async def _make(self, dispatchers: dict[str, Dispatcher], display: Display) -> Generation:
        options = self.config.options
        if self.config.arguments.pivots:
            return await make_pivots(
                self.questions,
                dispatchers["student"],
                options=options,
                pivots=self.config.pivots,
                templates=self.templates,
                watcher=display,
            )
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
        names = ("student",) if self.teacher is None else get_args(TemplateName)
        versions = {name: self.templates.version(name) for name in names}
        author = self.config.arguments.student if self.teacher is None else self.teacher.model
        return Provenance(author, stats, versions, values)
