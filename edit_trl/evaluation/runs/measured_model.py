"""The options of a model that is measured, the same for every command that measures one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from edit_trl.common.files import content_hash
from edit_trl.evaluation.runs.schema import RunKind, RunRecord
from edit_trl.models.cluster.cluster import Engine
from edit_trl.models.loading import ModelSource

Dtype = Literal["float32", "bfloat16", "float16"]

# Options that do not change what is measured.
_INCIDENTAL = ("name", "output_dir", "history", "device", "batch_size", "batching", "harness")
_INCIDENTAL += ("engine", "actors")


@dataclass(frozen=True)
class MeasuredModel:
    """A model that is measured, and where the run is kept.

    Attributes:
        model: The model: a path or Hub id, of an adapter too; or its name at an endpoint.
        name: What tables and charts call the run; the model's last name by default.
        output_dir: The run's folder; outputs/evaluate/NAME or outputs/suite/NAME by default. Run again, it
            goes on from there.
        history: The SQLite file that remembers the scores of every run; null for none.
        dtype: Of the weights: float32, bfloat16 or float16; as they were saved by default.
        load_in_4bit: Load the model in NF4, as QLoRA trains on it, for a card that takes no more.
        device: Such as cuda:1 or cpu; a GPU where there is one.
        engine: local, or ray: on the machines of a Ray cluster that is running, which must all see the model
            under the same name. Batches and items are the same.
        actors: How many models the Ray cluster loads; one a GPU, or where it has none one a machine.
        attn_implementation: As in transformers, such as eager; the suite's tree takes no flash_attention_2,
            so that its chains are run a row each.
        trust_remote_code: Run code that comes with the model; only for models whose code you have read.
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

    @property
    def run_name(self) -> str:
        """The name of the run in tables and charts."""
        return self.name or Path(str(self.model)).name

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.output_dir or Path("outputs") / self.kind / self.run_name)

    @property
    def source(self) -> ModelSource:
        """Where the model is loaded from, and how."""
        return ModelSource(
            self.model,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
            load_in_4bit=self.load_in_4bit,
        )

    def record(
        self, *, model_hash: str, settings: dict[str, Any], tasks: dict[str, str], data_hash: str, seed: int
    ) -> RunRecord:
        """The record of the run that is about to be measured; see `RunRecord`."""
        options = {name: value for name, value in asdict(self).items() if name not in _INCIDENTAL}
        return RunRecord(
            kind=self.kind,
            name=self.run_name,
            model=self.model,
            model_hash=model_hash,
            settings=settings,
            tasks=tasks,
            data_hash=data_hash,
            recipe_hash=content_hash(options),
            seed=seed,
        )
