"""The options of a model that is measured, the same for every command that measures one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from edit_trl.common.checks import seed_range
from edit_trl.common.errors import InputError
from edit_trl.common.files import content_hash
from edit_trl.common.hub_ids import HubDataset, is_hub_id, looks_like_file
from edit_trl.common.options import Options
from edit_trl.evaluation.runs.schema import RunKind, RunRecord
from edit_trl.models.chat.limits import Limits
from edit_trl.models.chat.options import EndpointArguments
from edit_trl.models.cluster.cluster import Engine, engine_problems
from edit_trl.models.decoding import Dtype
from edit_trl.models.loading import NF4, ModelSource

# Options that do not change what is measured.
_INCIDENTAL = (
    *("name", "output_dir", "history", "device", "batch_size", "batching", "harness", "engine", "actors"),
    "allow_unanswered",
)

# Options that are recorded only where they are given, so that the runs of earlier versions can be resumed.
_WHERE_GIVEN = ("chat_template_kwargs", "max_thinking_tokens", "votes", "against", "against_weight", "against_cutoff")

# Characters of the names of tasks in the name of a default folder.
_LONGEST_NAME = 60

_OF_LOADED_MODELS = ("against", "actors", "batching", "dtype", "load_in_4bit", "device", "attn_implementation")


@dataclass(frozen=True)
class MeasuredModel(Options):
    """A model that is measured, and where the run is saved.

    Attributes:
        model: A path or Hub id, of a model or an adapter; or the model's name at an endpoint.
        name: The run's name in tables and charts; the last part of the model's name by default.
        output_dir: The run's folder, from which an interrupted run resumes; by default it is in outputs/evaluate or
            outputs/suite and is named after the model (or `name`) and what it is measured on.
        history: The SQLite file with the scores of every run; null for none.
        dtype: Dtype of the weights: float32, bfloat16 or float16; the one they were saved in by default.
        load_in_4bit: Load the model in NF4, as QLoRA trains, to fit a small GPU.
        device: Such as cuda:1 or cpu; the GPU by default if there is one.
        engine: local, or ray for the machines of a running Ray cluster, which must all have the model under
            the same name. Batches and items are the same.
        actors: How many copies of the model the Ray cluster loads; by default one per GPU, or one per
            machine if there are no GPUs.
        attn_implementation: As in transformers, such as eager. The tree layout of suites does not support
            flash_attention_2, so each chain then takes a row of its own.
        trust_remote_code: Run code that comes with the model; only for models whose code you have read.
        chat_template_kwargs: Values of the chat template's variables, such as {"enable_thinking": false}. Those of a
            row win.
        seed: Seed of sampling in `evaluate`, and of the procedural problems in `suite`.
    """

    kind: ClassVar[RunKind]

    model: str | None = None
    name: str | None = None
    output_dir: str | None = None
    history: str | None = "outputs/history.sqlite"
    dtype: Dtype | None = None
    load_in_4bit: bool = False
    device: str | None = None
    engine: Engine = "local"
    actors: int | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    seed: int | None = 0

    def errors(self) -> Iterator[str]:
        """See `Options.errors`."""
        if not self.model:
            yield "`model` is missing: a path, a Hub id, or the name of a model at `base_urls`"
        yield from seed_range(seed=self.seed)
        yield from engine_problems(self.engine, self.actors, self.device)

    def check_place(self, endpoint: EndpointArguments, limits: Limits) -> None:
        """Check that the model is either loaded or behind an endpoint, by the options that only one of them uses.

        Raises:
            InputError: An option would have no effect.
        """
        if endpoint.base_urls:
            names = _changed(self, _OF_LOADED_MODELS)
            reason = "for models that are loaded, and this one is behind `base_urls`"
        else:
            names = _changed(endpoint, ("api_key_env", "timeout", "extra_body")) + _changed(limits)
            reason = "for a model behind an endpoint, and `base_urls` is missing"
        if names:
            raise InputError(f"`{'`, `'.join(names)}` {'is' if len(names) == 1 else 'are'} {reason}")

    @property
    def run_name(self) -> str:
        """The name of the run in tables and charts."""
        return self.name or Path(str(self.model)).name

    @property
    def settings_where_given(self) -> dict[str, Any]:
        """The settings that are part of a run's record only where they are given."""
        given = {name: getattr(self, name, None) for name in _WHERE_GIVEN}
        return {name: value for name, value in given.items() if value and value != getattr(type(self), name)}

    @property
    def measured_on(self) -> list[str]:
        """The names of the tasks, or of the dataset, for the name of the folder."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        if self.output_dir:
            return Path(self.output_dir)
        model, names = self.name or label_of_path(str(self.model)), self.measured_on
        data = "+".join(names)
        if len(data) > _LONGEST_NAME:
            data = f"{names[0][:_LONGEST_NAME]}+{len(names) - 1}-{content_hash(names)[:6]}"
        return Path("outputs") / self.kind / f"{model}-{data}"

    @property
    def source(self) -> ModelSource:
        """Where the model is loaded from, and how."""
        assert self.model is not None  # `errors` refuses options without a model
        return ModelSource(
            self.model,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
            quantization=NF4 if self.load_in_4bit else None,
        )

    def record(
        self,
        *,
        model_hash: str,
        settings: dict[str, Any],
        tasks: dict[str, str],
        data_hash: str,
        hub_datasets: dict[str, HubDataset] | None = None,
    ) -> RunRecord:
        """Make the record of the run that is about to be measured; see `RunRecord`."""
        options = {
            name: value
            for name, value in asdict(self).items()
            if name not in _INCIDENTAL and (name not in _WHERE_GIVEN or name in self.settings_where_given)
        }
        return RunRecord(
            kind=self.kind,
            name=self.run_name,
            model=self.source.model,
            model_hash=model_hash,
            settings=settings,
            tasks=tasks,
            data_hash=data_hash,
            recipe_hash=content_hash(options),
            seed=self.seed or 0,
            hub_datasets=hub_datasets or {},
        )


def label_of_path(name: str) -> str:
    """Return a name for the folder of a run: the last part of a Hub id, the last parts of a local path.

    The stages of all recipes have the same names, and so have checkpoints, so the folder around them is part of it:
    outputs/my-student/key_steps becomes my-student-key_steps.
    """
    if is_hub_id(name) and not looks_like_file(Path(name)):
        return Path(name).name
    path = Path(name).expanduser()
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    if parts and looks_like_file(Path(parts[-1])):
        parts[-1] = Path(parts[-1]).stem
    count = 3 if parts and parts[-1].startswith("checkpoint-") else 2
    last = [part for part in parts[-count:-1] if part != "outputs"] + parts[-1:]
    return "-".join(last) or path.resolve().name


def _changed(options: Any, names: Collection[str] = ()) -> list[str]:
    """Return the names of options, or of some of them, that do not have their defaults."""
    return [
        field.name
        for field in fields(options)
        if getattr(options, field.name) != field.default and (not names or field.name in names)
    ]
