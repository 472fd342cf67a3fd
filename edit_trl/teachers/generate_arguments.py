"""The models, questions and files of `edit-trl generate`, as its recipes name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from edit_trl.common.checks import positive
from edit_trl.common.errors import collect_problems
from edit_trl.data.answers import AnswerType
from edit_trl.models.chat.connection import url_problem
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.cluster.cluster import Engine, engine_problems
from edit_trl.models.decoding import Batching, Dtype, check_batching
from edit_trl.teachers.chain_text import ThoughtsForm
from edit_trl.teachers.procedural_chat import share_problems

OwnPairs = Literal["closest", "pivots"]
TeacherKind = Literal["openai_compatible", "batch", "transformers_local", "procedural", "none"]


@dataclass(frozen=True)
class GenerateArguments(EndpointArguments):
    """The models that are asked, the questions, and where the result goes; beside `EndpointArguments`.

    Attributes:
        teacher: `openai_compatible` asks an endpoint; `batch` sends it the requests of each stage as a file, which it
            answers within a day for less (OpenAI's batch API; see `batch_discount`); `transformers_local` asks a model
            on this machine, `procedural` the embedded teacher, which only knows its own problems; `none` asks the
            student only (`pairs`).
        model: The teacher's name at the endpoint, or its path or Hub id.
        batch_size: Responses per batch of a local model. Default: 16 to 256, as many as have 32,768 tokens together
            with their prompts.
        batching: How a local model answers: padded, continuous (the scheduler of transformers, which takes no seeds),
            vllm, or auto: vllm if it is installed and there is a GPU, else continuous on a GPU for requests without
            `send_seed`, else padded.
        dtype: Number format of local models; bfloat16 on a GPU and float32 elsewhere by default.
        engine: `local`, or `ray`: machines of a running Ray cluster load the local models, which must have
            the same path on all of them, and ask each endpoint from a process of its own.
        actors: Number of processes of the Ray cluster that load local models. Default: one per GPU, or one
            per machine in a cluster without GPUs.
        dataset_name: Questions with answers: a .jsonl, .json, .csv or .parquet file, a folder saved by
            datasets, or a Hub id.
        dataset_config: Configuration of a Hub dataset. A list of them is read in order, and each names the
            task of its questions.
        dataset_split: Split of the dataset; "train" where there are several.
        column_mapping: Renames columns to question, answer, id, task, task_description, choices.
        answer_after: Text that precedes the answer in the answer column, such as "####".
        answer_type: Type of every answer: number, choice, yes_no, boolean, text, list or math; inferred from each
            answer where empty.
        task: Task of questions that do not name one.
        task_descriptions: A YAML file, task: description.
        limit: Maximum number of questions, per configuration.
        exemplars: A YAML or JSON Lines file of worked examples.
        templates: Your own prompt templates, name: text file.
        families: Families of the procedural teacher's problems; all by default. With `pairs` and without
            `dataset_name`, the questions come from them, too.
        rows: Number of problems that the procedural teacher makes.
        difficulty: Difficulty of its problems, 1 to 5; of several, each in turn. A question's id has it, as `/d2/`.
        wrong_share: Share of its annotations that are wrong chains; by difficulty as {1: 0.1, 3: 0.5}.
        student: A model on this machine whose own wrong chains are rectified too (on-policy dual CoTs); its
            name at the endpoint if `student_base_urls` is given.
        student_base_urls: Endpoints of the student.
        chat_template_kwargs: Values of the variables of the teacher's chat template, such as
            {"enable_thinking": false}. An endpoint, of the teacher and of the labeller, is sent them.
        student_chat_template_kwargs: The same for the student. Train it with the same values.
        pairs: Makes the pairs from the student's own chains, without a teacher. `closest`: each wrong chain, and the
            most similar right one of the same question. `pivots`: each wrong chain, and a right continuation from
            before the step that loses the answer; an endpoint of the student must be able to continue a partial
            answer (`continue_final_message` of vLLM and SGLang).
        labeller: Another model at the teacher's endpoints that labels and criticises the mistakes.
        output_dir: Folder for the journal, the dual CoTs and their card.
        conversational: Whether rows hold messages rather than plain strings.
        thoughts_as: Where messages have the thoughts that `thoughts: keep` keeps: in their `text`, between `<think>`
            and `</think>`, or in a field that the student's chat template reads.
        push_to_hub: Dataset repository to push the result to.
        private: Whether that repository is private.
        rounds: Number of rounds of generating and training. Each round uses the mistakes of the student of the round
            before.
        train_recipe: The recipe that each round trains with, on its pairs.
        control_recipe: A recipe of SFT that each round also trains with, from the same student, on the right chains
            alone (`warm_up.parquet`) and for as many steps: what the wrong chains are worth.
        dev_task: A task file of `edit-trl evaluate`, whose questions are none of the rounds. The student is measured on
            it before the first round and after each; the rounds stop when its accuracy falls.
    """

    teacher: TeacherKind = "openai_compatible"
    batch_size: int | None = None
    batching: Batching = "auto"
    dtype: Dtype | None = None
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
    difficulty: int | list[int] = 1
    wrong_share: float | dict[int, float] = 0.4
    student: str | None = None
    student_base_urls: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    student_chat_template_kwargs: dict[str, Any] | None = None
    pairs: OwnPairs | None = None
    labeller: str | None = None
    output_dir: str = "outputs/dual_cots"
    conversational: bool = True
    thoughts_as: ThoughtsForm = "text"
    push_to_hub: str | None = None
    private: bool | None = None
    rounds: int = 1
    train_recipe: str | None = None
    control_recipe: str | None = None
    dev_task: str | None = None

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        yield from super().errors()
        endpoint = self.teacher in ("openai_compatible", "batch")
        if self.pairs and self.teacher != "none":
            yield f"`pairs` asks no teacher: write `teacher: none`, or leave it out; got {self.teacher}"
        elif self.teacher == "none":
            if not self.pairs:
                yield "`teacher: none` needs `pairs: closest` or `pivots`: without it somebody must write the chains"
            if not self.student:
                yield "`student` is missing: the model whose own chains make the pairs, as a path or Hub id"
        elif self.teacher != "procedural":
            if not self.model:
                form = "as the endpoint names it" if endpoint else "as a path or Hub id"
                yield f"`model` is missing: the teacher, {form}"
            if not self.dataset_name:
                yield "`dataset_name` is missing: questions with answers, as a file, a folder or a Hub id"
        elif self.dataset_name:
            yield "`teacher: procedural` asks its own problems; leave out `dataset_name`, or change `teacher`"
        if endpoint and not self.base_urls:
            yield "`base_urls` is missing: where the teacher is, such as [http://127.0.0.1:8000/v1]"
        if self.labeller and not endpoint:
            yield "`labeller` is a model at the teacher's endpoints; it needs `teacher: openai_compatible` or `batch`"
        if self.teacher == "batch":
            if len(self.base_urls or ()) > 1:
                yield "`base_urls`: a batch stays at the endpoint that has its file; `teacher: batch` takes one URL"
            if self.engine == "ray":
                yield "`engine: ray` does nothing for `teacher: batch`, whose files are sent from here; leave it out"
        yield from (problem for url in self.student_base_urls or () if (problem := url_problem(url)))
        if self.student_base_urls and not self.student:
            yield "`student_base_urls` needs `student`, its name there"
        if self.student_chat_template_kwargs and not self.student:
            yield "`student_chat_template_kwargs` needs `student`; the teacher's are `chat_template_kwargs`"
        if self.thoughts_as != "text" and not self.conversational:
            yield f"`thoughts_as: {self.thoughts_as}` is a field of messages; it needs `conversational: true`"
        names = ("rows", "rounds", "limit")
        yield from positive(**{name: getattr(self, name) for name in names})
        problems: list[str] = []
        with collect_problems(problems):
            check_batching(self.batching, self.batch_size)
        yield from problems
        yield from engine_problems(self.engine, self.actors)
        yield from share_problems(self.difficulty, self.wrong_share)
        if self.engine == "ray" and self.teacher == "procedural":
            yield "`teacher: procedural` has nothing to do on other machines: leave out `engine: ray`"
        local = self.teacher == "transformers_local" or (self.student and not self.student_base_urls)
        if self.batching != "auto" and not local:
            yield "`batching` is for models that are loaded; an endpoint batches by itself"
        if self.actors is not None and not local:
            yield "`actors` is for models that are loaded; each endpoint has one process"
        if (self.rounds > 1 or self.train_recipe) and not (self.student and self.train_recipe):
            yield "`rounds` trains a student between generations: set `student` and `train_recipe`"
        if self.train_recipe and self.student_base_urls:
            yield "`train_recipe` trains the student, and one behind `student_base_urls` cannot be trained here"
        for name in ("control_recipe", "dev_task"):
            if getattr(self, name) and not self.train_recipe:
                yield f"`{name}` is for rounds: it needs `train_recipe`"
