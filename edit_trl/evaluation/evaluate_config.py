"""A recipe of `edit-trl evaluate` (L3): a YAML file, and command-line options over it, checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edit_trl.errors import InputError
from edit_trl.evaluation.decoding import Batching, Decoding, check_batching
from edit_trl.evaluation.tasks import MakeProblems, Tasks, read_tasks
from edit_trl.ray_pool import Engine, engine_problems

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EvaluateArguments:
    """Which model answers what, and how.

    Attributes:
        model: The model: a path or Hub id, of an adapter too; or its name at an endpoint.
        tasks: Task files, or names of files in `tasks/` beside the recipe.
        name: What tables and charts call the run; the model's last name by default.
        output_dir: The run's folder; outputs/evaluate/NAME by default. Run again, it goes on from there.
        limit: Only the first so many questions of each task.
        conversational: Ask by messages, through the chat template; false for base models without one.
        system_prompt: What every conversation begins with, instead of the tasks' own.
        max_new_tokens: Where a response is cut off.
        samples: Responses a question, of which the majority's answer counts (self-consistency; the paper: 8
            at temperature 0.7 and top_p 0.95).
        temperature: 0 is greedy.
        top_p: Nucleus sampling.
        seed: Of sampling.
        batch_size: Responses at once on this machine.
        batching: padded, continuous (transformers' own scheduler), vllm, or auto: vllm where it is installed
            and there is a GPU, else continuous on a GPU and padded on a CPU.
        dtype: Of the weights: float32, bfloat16 or float16; as they were saved by default.
        load_in_4bit: Load the model in NF4, as QLoRA trains on it, for a card that takes no more.
        device: Such as cuda:1 or cpu; a GPU where there is one.
        engine: local, or ray: on the machines of a Ray cluster that is running, which must all see the model
            under the same name. Batches and answers are the same.
        actors: How many models the Ray cluster loads; one a GPU, or where it has none one a machine.
        attn_implementation: As in transformers, such as flash_attention_2.
        trust_remote_code: Run code that comes with the model; only for models whose code you have read.
        history: The SQLite file that remembers the scores of every run; null for none.
        harness: Tasks of lm-evaluation-harness to run too, or instead; needs the extra `harness`.
        harness_include_path: A folder with task files of lm-evaluation-harness.
        harness_chat_template: Give its questions the model's chat template; off as in lm_eval itself.
    """

    model: str | None = None
    tasks: list[str] | None = None
    name: str | None = None
    output_dir: str | None = None
    limit: int | None = None
    conversational: bool = True
    system_prompt: str | None = None
    max_new_tokens: int = 512
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16
    batching: Batching = "auto"
    dtype: Dtype | None = None
    load_in_4bit: bool = False
    device: str | None = None
    engine: Engine = "local"
    actors: int | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    history: str | None = "outputs/history.sqlite"
    harness: list[str] | None = None
    harness_include_path: str | None = None
    harness_chat_template: bool = False

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError(problems)

    def _problems(self) -> Iterator[str]:
        if not self.model:
            yield "`model` is missing: a path, a Hub id, or the name of a model at `base_urls`"
        if not self.tasks and not self.harness:
            yield "`tasks` is missing: task files, or names of those in recipes/evaluate/tasks"
        if self.limit is not None and self.limit < 1:
            yield f"`limit` must be at least 1, got {self.limit}"
        yield from engine_problems(self.engine, self.actors, self.device)
        if self.engine == "ray" and self.harness:
            yield "`harness` needs the model on this machine: leave out `engine: ray`"
        for check in (lambda: self.decoding, lambda: check_batching(self.batching, self.batch_size)):
            try:
                check()
            except InputError as error:
                yield from error.problems

    @property
    def decoding(self) -> Decoding:
        """How responses are drawn."""
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.samples)

    @property
    def run_name(self) -> str:
        """What the run is called."""
        return self.name or Path(str(self.model)).name

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.output_dir or Path("outputs/evaluate") / self.run_name)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides an item's content beside the model and the questions.

        Batches and dtype too, which decide a response's last digits.
        """
        names = ("conversational", "batch_size", "batching", "dtype", "load_in_4bit")
        return asdict(self.decoding) | {name: getattr(self, name) for name in names}

    def read_tasks(self, recipe: Path | None, make_problems: MakeProblems) -> Tasks:
        """What is asked; see `edit_trl.evaluation.tasks.read_tasks`."""
        return read_tasks(
            self.tasks or [],
            beside=recipe.parent if recipe else None,
            conversational=self.conversational,
            system_prompt=self.system_prompt,
            limit=self.limit,
            make_problems=make_problems,
        )
