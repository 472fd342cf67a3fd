"""The facts of a model card, saved as `card.json` beside the model.

With this file the card can be rewritten without the trainer: with earlier stages, with later evaluations, or for the
merged model. The file itself is not uploaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from edit_trl.common.errors import InputError
from edit_trl.common.files import write_whole
from edit_trl.common.hub_ids import HubDataset
from edit_trl.common.json_text import checker, read_json_file
from edit_trl.data.chains import turn_text
from edit_trl.data.pair_statistics import locate_pairs
from edit_trl.data.row import chain_text, is_chosen_alone, pairs_of
from edit_trl.key_steps import KeyStepMethod

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FACTS_FILE = "card.json"
Form = Literal["adapter", "model", "merged"]

OBJECTIVE_FIELDS = (
    "key_step_method",
    "key_step_seed",
    "max_key_fraction",
    "chosen_key_weight",
    "chosen_context_weight",
    "rejected_key_weight",
    "rejected_key_scope",
    "rejected_penalty",
    "normalization",
    "preference_weight",
    "preference_loss",
    "preference_scope",
    "preference_reduction",
    "preference_beta",
    "preference_margin",
    "dpop_lambda",
    "chosen_loss",
    "reference",
    "max_fork_confidence",
    "hardest_forks",
)
TRAINING_FIELDS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_decay_per_epoch",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_tokens_per_batch",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "layout",
    "bf16",
    "fp16",
    "seed",
)
# Options of the objective that the card shows as numbers.
_WEIGHTS = ("chosen_key_weight", "chosen_context_weight", "rejected_key_weight", "preference_weight")
LOGGED = ("loss", "key_accuracy", "completion_accuracy", "logps/chosen", "drift/chosen", "fork/confidence")


@dataclass(frozen=True)
class Example:
    """A pair of the training data: its texts, and the [start, end) characters of their key steps."""

    prompt: str
    chosen: str
    rejected: str
    chosen_spans: list[Annotated[list[int], 2]]
    rejected_spans: list[Annotated[list[int], 2]]


@dataclass(frozen=True)
class StageFacts:
    """One stage of training.

    Attributes:
        name: Name of the stage.
        base_model: Id or path of the model that was trained.
        revision: Revision of that model.
        adapter: Options of the adapter; None if all weights were trained.
        quantization: Quantization of the base model while training, such as "4-bit nf4"; None without.
        dataset: Id or path of the dual CoTs; a list for a mixture.
        rows: How many pairs were kept and dropped, in words, by dataset ("train", "eval").
        objective: Options of the loss.
        training: Options of the training.
        processes: Number of processes that trained together.
        logs: The metrics in `LOGGED`, with their `step`.
        results: Metrics of the whole run.
        examples: A few pairs of the training data.
        conversational: Whether the rows were messages.
        versions: Versions of the packages, by name.
    """

    name: str
    base_model: str
    revision: str | None
    adapter: dict[str, Any] | None
    quantization: str | None
    dataset: str | list[str] | None
    rows: dict[str, str]
    objective: dict[str, Any]
    training: dict[str, Any]
    processes: int = 1
    logs: list[dict[str, float]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    conversational: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """The id or path of every dataset."""
        return [self.dataset] if isinstance(self.dataset, str) else self.dataset or []


@dataclass(frozen=True)
class CardFacts:
    """The facts of a trained model.

    Attributes:
        form: An adapter, a model whose weights were all trained, or an adapter merged into its model.
        stages: The stages in order; the last one saved the model.
    """

    form: Form
    stages: list[StageFacts]

    @property
    def base_model(self) -> str:
        """The model that the first stage trained; empty if it was made in memory."""
        return self.stages[0].base_model

    def after(self, earlier: CardFacts) -> CardFacts:
        """Return these facts with the stages of `earlier` before their own."""
        return replace(self, stages=[*earlier.stages, *self.stages])


@dataclass(frozen=True)
class Evaluation:
    """A finished run of `edit-trl evaluate` or `suite`.

    Attributes:
        name: The name of the run in tables.
        kind: `evaluate` or `suite`.
        of_this_model: Whether the card's own model was measured, and not another one for comparison.
        items: Number of items.
        scores: The scores, by name; None for one that could not be computed.
        intervals: 95% confidence intervals, by name of the score.
        main: Name of the score that is shown first.
        tasks: Scores of each task, and its number of items as `items`.
        finished: When the run finished, UTC, ISO 8601.
        setup: How the model was asked, in a few words.
        hub_datasets: The dataset of each task whose questions are a whole split of a dataset on the Hub.
    """

    name: str
    kind: str
    of_this_model: bool
    items: int
    scores: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float]]
    main: str
    tasks: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    finished: str | None = None
    setup: str = ""
    hub_datasets: Mapping[str, HubDataset] = field(default_factory=dict)


def write_facts(folder: Path, facts: CardFacts) -> None:
    """Write `card.json`."""
    text = json.dumps(asdict(facts), indent=1, ensure_ascii=False, default=str)
    write_whole(folder / FACTS_FILE, text + "\n")


def read_facts(folder: Path) -> CardFacts | None:
    """Read `card.json`; return None if the folder has none.

    Raises:
        InputError: The file is not a valid `card.json`.
    """
    file = folder / FACTS_FILE
    if not file.is_file():
        return None
    values = read_json_file(file)
    if (problem := _problem_of(values)) is not None:
        raise InputError(f"{file} cannot be read{problem}; remove it, and the card stays as it is")
    return CardFacts(values["form"], [_stage_facts(stage) for stage in values["stages"]])


def _problem_of(values: Any) -> str | None:
    """Return what is wrong with the content of `card.json`; None if nothing is."""
    if (problem := checker(dict[str, Any])(values)) is not None:
        return problem
    for name, annotation in (("form", Form), ("stages", list[dict[str, Any]])):
        if (problem := checker(annotation)(values.get(name))) is not None:
            return f": {name}{problem}"
    if not values["stages"]:
        return ": there is no stage"
    for number, stage in enumerate(values["stages"]):
        problem = checker(StageFacts)(_fields_of_stage(stage))
        for name in () if problem else _WEIGHTS:
            problem = problem or _within("objective", name, checker(float)(stage["objective"].get(name, 0)))
        for index, log in enumerate(() if problem else stage.get("logs", ())):
            problem = problem or _within("logs", index, None if "step" in log else ": there is no step")
        if problem:
            return f": stages[{number}]{problem}"
    return None


def _within(name: str, key: Any, problem: str | None) -> str | None:
    return None if problem is None else f".{name}[{key!r}]{problem}"


def _fields_of_stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `StageFacts` of a stage in `card.json`, which another version may have written."""
    defaults = {"processes": 1, "logs": [], "results": {}, "examples": [], "conversational": False, "versions": {}}
    names = [f.name for f in fields(StageFacts)]
    return {name: value for name, value in (defaults | dict(stage)).items() if name in names}


def _stage_facts(stage: Mapping[str, Any]) -> StageFacts:
    values = _fields_of_stage(stage)
    return StageFacts(**values | {"examples": [Example(**example) for example in values["examples"]]})


def plain_options(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the options of a config as JSON values, without those that are None."""
    values = {name: getattr(config, name) for name in names}
    return {name: getattr(value, "value", value) for name, value in values.items() if value is not None}


def adapter_options(model: Any) -> dict[str, Any]:
    """Return the options of a `PeftModel`'s active adapter."""
    config = model.peft_config[model.active_adapter]
    options = {"peft_type": getattr(config.peft_type, "value", config.peft_type)}
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "modules_to_save"):
        value = getattr(config, name, None)
        if value is not None and value is not False:
            names = value if isinstance(value, set | list | tuple) else None
            # PEFT expands `all-linear` to a list of all layers.
            options[name] = value if names is None else ", ".join(sorted({n.split(".")[-1] for n in names}))
    return options


def quantization_name(quantization: Any) -> str:
    """Return the name of a quantization, such as "4-bit nf4"."""
    options = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if options.get("load_in_4bit"):
        return f"4-bit {options.get('bnb_4bit_quant_type', '')}".strip()
    return "8-bit" if options.get("load_in_8bit") else str(options.get("quant_method", "quantized"))


def plain_logs(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the metrics in `LOGGED` from the trainer's log history, without values that are not finite."""
    names = {*LOGGED, *(f"eval_{name}" for name in LOGGED)}
    entries = [
        {"step": entry["step"]} | {name: entry[name] for name in names & entry.keys() if math.isfinite(entry[name])}
        for entry in log_history
        if "step" in entry
    ]
    return [entry for entry in entries if len(entry) > 1]


def pick_examples(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None, method: KeyStepMethod, count: int = 3
) -> list[Example]:
    """Pick the shortest pairs of different tasks among the first 300 rows, with their key steps.

    Args:
        dataset: Validated dual CoTs.
        tokenizer: The student's tokenizer, for methods that align tokens.
        method: How key steps are located.
        count: Maximum number of pairs.
    """
    rows = dataset.select(range(min(len(dataset), 300)))
    pairs = [pair for row in rows if not is_chosen_alone(row) for pair in pairs_of(row)]
    pairs.sort(key=lambda pair: sum(len(chain_text(pair[side])) for side in ("chosen", "rejected")))
    picked: list[Mapping[str, Any]] = []
    for one_a_task in (True, False):
        for pair in pairs:
            taken = [other.get("task") for other in picked]
            if len(picked) < count and pair not in picked and not (one_a_task and pair.get("task") in taken):
                picked.append(pair)
    examples = []
    for located in locate_pairs(picked, method, tokenizer):
        messages = [{"content": located.prompt}] if isinstance(located.prompt, str) else located.prompt
        prompt = "\n\n".join(map(turn_text, messages)).strip()
        chosen_spans, rejected_spans = (
            [list(span) for span in spans] for spans in (located.chosen_spans, located.rejected_spans)
        )
        examples.append(Example(prompt, located.chosen, located.rejected or "", chosen_spans, rejected_spans))
    return examples
