"""The options of `edit-trl evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from edit_trl.common.checks import at_least, not_negative, share
from edit_trl.common.errors import collect_problems, raise_problems
from edit_trl.evaluation.accuracy.tasks import Tasks, read_tasks
from edit_trl.evaluation.accuracy.votes import Votes, votes_problems
from edit_trl.evaluation.runs.measured_model import MeasuredModel
from edit_trl.evaluation.runs.schema import RunKind
from edit_trl.models.chat.limits import Limits
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.decoding import Against, Batching, Decoding, check_batching
from edit_trl.models.identity import model_hash


@dataclass(frozen=True)
class EvaluateArguments(MeasuredModel):
    """The model, the tasks and the settings of an evaluation.

    Attributes:
        tasks: Task files, dataset files (.jsonl, .csv, .parquet), or names of files in `tasks/` beside the recipe.
        limit: The most questions to ask of each task, from its beginning.
        conversational: Ask by messages, through the chat template; false for base models without one.
        system_prompt: System prompt of every conversation, instead of those of the tasks.
        max_new_tokens: Maximum number of tokens per response.
        max_thinking_tokens: Number of tokens at which a response that still thinks is cut off; an endpoint must report
            how many tokens of thoughts a response has.
        samples: Responses per question, which vote on the answer (self-consistency; the paper uses 8 at temperature
            0.7 and top_p 0.95).
        votes: The weight of each response in the vote: majority (1), likelihood (its probability, normalized by its
            length) or checked (how likely the student says "Yes" when asked whether it is right, as the view `check`
            trains). The last two are shown beside the majority of the same responses, with their cost in tokens.
        against: A model that is worse by intent, such as an adapter of the student trained on wrong chains: contrastive
            decoding prefers what the student finds more likely than it does (arXiv 2309.09117). Each token costs a
            second forward. Train it with recipes/baselines/wrong_chains.yaml.
        against_weight: How much the other model's log-probabilities count against a token.
        against_cutoff: Tokens below this share of the most likely token's probability are left out.
        temperature: Sampling temperature; 0 for greedy decoding. An endpoint is sent none if it is null.
        top_p: Probability mass of nucleus sampling. An endpoint is sent none if it is null.
        seed: Seed of sampling. An endpoint is sent none if it is null.
        allow_unanswered: At an endpoint, whether to finish although it did not answer some questions, which count
            as unparsed; `unanswered.jsonl` in the folder of the run lists them.
        batch_size: Responses per batch on this machine. Default: 16 to 256, as many as have 32,768 tokens together with
            their prompts.
        batching: padded, continuous (the scheduler of transformers), vllm, or auto: vllm if it is installed
            and there is a GPU, else continuous on a GPU and padded on a CPU.
        harness: Tasks of lm-evaluation-harness to run as well, or instead; needs the extra `harness`.
        harness_include_path: A folder with task files of lm-evaluation-harness.
        harness_chat_template: Apply the chat template of the model to the questions of lm-evaluation-harness;
            off as in lm_eval itself.
    """

    kind: ClassVar[RunKind] = "evaluate"

    tasks: list[str] | None = None
    limit: int | None = None
    conversational: bool = True
    system_prompt: str | None = None
    max_new_tokens: int = 512
    max_thinking_tokens: int | None = None
    samples: int = 1
    votes: Votes = "majority"
    against: str | None = None
    against_weight: float = 0.5
    against_cutoff: float = 0.1
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    seed: int | None = 0
    allow_unanswered: bool = False
    batch_size: int | None = None
    batching: Batching = "auto"
    harness: list[str] | None = None
    harness_include_path: str | None = None
    harness_chat_template: bool = False

    def errors(self) -> Iterator[str]:
        """See `MeasuredModel.errors`."""
        yield from super().errors()
        if not self.tasks and not self.harness:
            yield "`tasks` is missing: task files, or names such as gsm8k (`edit-trl recipes evaluate/tasks`)"
        yield from at_least(1, limit=self.limit)
        yield from votes_problems(self.votes, self.samples, batching=self.batching, engine=self.engine)
        if self.votes != "majority" and not self.tasks:
            yield f"`votes: {self.votes}` is for `tasks`; lm-evaluation-harness draws no samples that could vote"
        yield from self._against_errors()
        if self.engine == "ray" and self.harness:
            yield "`harness` needs the model on this machine: leave out `engine: ray`"
        if self.harness and self.chat_template_kwargs and not self.harness_chat_template:
            yield "`chat_template_kwargs` needs `harness_chat_template: true`, since `harness` applies no template else"
        if self.harness and not self.tasks and self.max_thinking_tokens is not None:
            yield "`max_thinking_tokens` is for `tasks`: lm-evaluation-harness limits thoughts and answer together"
        problems: list[str] = []
        with collect_problems(problems):
            _ = self.decoding
        with collect_problems(problems):
            check_batching(self.batching, self.batch_size)
        yield from problems

    def _against_errors(self) -> Iterator[str]:
        yield from not_negative(against_weight=self.against_weight)
        yield from share(against_cutoff=self.against_cutoff)
        if self.against is None:
            for name in ("against_weight", "against_cutoff"):
                if getattr(self, name) != getattr(type(self), name):
                    yield f"`{name}` is for `against`, the model that is decoded against"
            return
        if self.batching in ("continuous", "vllm"):
            yield f"`against` runs two models side by side, which `batching: {self.batching}` cannot; use padded"
        if self.engine == "ray":
            yield "`against` needs both models in one process: leave out `engine: ray`"
        if not self.tasks:
            yield "`against` is for `tasks`; lm-evaluation-harness decodes by itself"

    def check_place(self, endpoint: EndpointArguments, limits: Limits) -> None:
        """See `MeasuredModel.check_place`."""
        super().check_place(endpoint, limits)
        raise_problems(votes_problems(self.votes, self.samples, at_endpoint=bool(endpoint.base_urls)))
        if not endpoint.base_urls:
            raise_problems(
                f"`{name}: null` leaves it to an endpoint; a model that is loaded needs a number"
                for name in ("temperature", "top_p", "seed")
                if getattr(self, name) is None
            )

    @property
    def decoding(self) -> Decoding:
        """How responses are generated."""
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.samples, self.max_thinking_tokens)

    @property
    def measured_on(self) -> list[str]:
        """See `MeasuredModel.measured_on`."""
        return [Path(name).stem for name in self.tasks or ()] + [*(self.harness or ())]

    @property
    def contrast(self) -> Against | None:
        """The model that is decoded against, if any."""
        return Against(self.against, self.against_weight, self.against_cutoff) if self.against else None

    @property
    def settings(self) -> dict[str, Any]:
        """Everything on which the items depend, besides the model and the questions; rounding can change a response."""
        names = ("conversational", "batch_size", "batching", "dtype", "load_in_4bit")
        settings = asdict(self.decoding) | {name: getattr(self, name) for name in names}
        # A size that is not given is recorded as the default of earlier versions, whose runs are still those of the
        # same options: it changes responses by rounding alone.
        settings["batch_size"] = self.batch_size or 16
        del settings["max_thinking_tokens"]
        settings |= self.settings_where_given
        if self.against:
            contrast = {"weight": self.against_weight, "cutoff": self.against_cutoff}
            settings["against"] = {"model_hash": model_hash(self.against), **contrast}
        # The record of a run has a number as its seed, also where none is sent.
        return settings | ({"seed": None} if self.seed is None else {})

    def read_tasks(self, recipe_folder: Path) -> Tasks:
        """Read the questions; see `edit_trl.evaluation.accuracy.tasks.read_tasks`."""
        return read_tasks(
            self.tasks or [],
            beside=recipe_folder,
            conversational=self.conversational,
            system_prompt=self.system_prompt,
            limit=self.limit,
        )
