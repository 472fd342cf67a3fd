"""A dataset of dual CoTs, tokenized: pairs that cannot teach are dropped and counted."""

import inspect
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers.utils import logging

from edit_trl.common.alignment import common_prefix
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.data.row import is_conversational, pairs_of, with_template_values
from edit_trl.data.row_checks import validate_dual_cots
from edit_trl.data.tokenization import TokenizedRow, is_alone, tokenize_rows
from edit_trl.data.unused_columns import unused_columns
from edit_trl.key_steps import KeyStepMethod

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


logger = logging.get_logger(__name__)


class PreparationOptions(Protocol):
    """The options of a training run that decide about its rows, as `DualCoTConfig` has them."""

    key_step_method: KeyStepMethod
    key_step_seed: int
    max_length: int | None
    truncate_long: bool
    max_key_fraction: float
    eos_token: str | None
    dataset_num_proc: int | None
    chat_template_kwargs: Any


@dataclass
class PreparationReport:
    """How many pairs of a dataset were kept, dropped and cut, and why.

    Attributes:
        rows: Number of pairs before; a row with several wrong chains counts as several pairs.
        kept: Number of pairs after.
        dropped: Number of dropped pairs by reason, such as `no key token`.
        truncated: Pairs cut to `max_length`.
        truncated_key_tokens: Key tokens that were cut off with them.
        key_fraction: Mean share of key tokens in the kept pairs' completions.
        notes: How the text of pairs differs from TRL's, or from what a model is prompted with -> their number.
    """

    rows: int
    kept: int
    dropped: dict[str, int]
    truncated: int = 0
    truncated_key_tokens: int = 0
    key_fraction: float = 0.0
    notes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.kept} of {self.rows} pairs kept"]
        parts += [f"{count} dropped: {reason}" for reason, count in self.dropped.items()]
        if self.truncated:
            parts.append(f"{self.truncated} truncated, {self.truncated_key_tokens} key tokens cut off")
        parts.append(f"key fraction {self.key_fraction:.2f}")
        return "; ".join(parts)


@dataclass(frozen=True)
class RowPreparation:
    """How rows are tokenized, cut and selected; the function that `Dataset.map` applies.

    Attributes:
        tokenizer: The student's tokenizer.
        key_step_method: See `tokenize_dual_cot`.
        max_length: The most tokens that the prompt and the longer chain may have; None for no limit.
        truncate_long: Cut longer rows instead of dropping them.
        max_key_fraction: Drop pairs with a larger share of key tokens.
        key_step_seed: See `tokenize_dual_cot`.
        chat_template_kwargs: Values of the chat template's variables, for rows that do not set them.
    """

    tokenizer: "PreTrainedTokenizerBase"
    key_step_method: KeyStepMethod = "words"
    max_length: int | None = None
    truncate_long: bool = False
    max_key_fraction: float = 1.0
    key_step_seed: int = 0
    chat_template_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def of_options(cls, tokenizer: "PreTrainedTokenizerBase", options: "PreparationOptions") -> "RowPreparation":
        """Read the fields from the options of a training run, and set the tokenizer's EOS token to theirs."""
        if options.eos_token is not None:
            tokenizer.eos_token = options.eos_token
        names = [field.name for field in fields(cls) if field.name != "tokenizer"]
        return cls(tokenizer, **{name: getattr(options, name) for name in names})

    def __call__(self, rows: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        """Prepare rows given as columns; a row with several wrong chains becomes several pairs.

        Raises:
            InputError: Rows that the tokenizer or its chat template refuses; names them.
        """
        pairs = [
            (index, self._with_template_values(pair))
            for index, *values in zip(indices, *rows.values(), strict=True)
            for pair in pairs_of(dict(zip(rows, values, strict=True)))
        ]
        tokenized = tokenize_rows(
            [pair for _, pair in pairs],
            self.tokenizer,
            key_step_method=self.key_step_method,
            key_step_seed=self.key_step_seed,
        )
        prepared: list[dict[str, Any]] = []
        refusals: dict[int, str] = {}
        for (index, pair), outcome in zip(pairs, tokenized, strict=True):
            if isinstance(outcome, InputError):
                refusals.setdefault(index, str(outcome))
            else:
                prepared.append(self._prepare(pair, index, outcome))
        rows_of_refusal = defaultdict(list)
        for index, refusal in refusals.items():
            rows_of_refusal[refusal].append(index + 1)
        raise_problems(f"{name_rows(numbers)}: {refusal}" for refusal, numbers in rows_of_refusal.items())
        return {column: [pair[column] for pair in prepared] for column in prepared[0]}

    def fingerprint(self, dataset: "Dataset") -> str:
        """Return a hash of all that decides the outcome: rows, settings, tokenizer and this code.

        `datasets` would hash the tokenizer as an object, which changes while it is used.
        """
        from datasets.fingerprint import Hasher

        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        settings["tokenizer"] = _tokenizer_state(self.tokenizer)
        code = [inspect.getsource(sys.modules[name]) for name in _SOURCES]
        return Hasher.hash((dataset._fingerprint, settings, code))

    def _with_template_values(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_template_values(row, self.chat_template_kwargs) if is_conversational(row) else row

    def _prepare(self, row: Mapping[str, Any], index: int, outcome: TokenizedRow) -> dict[str, Any]:
        tokenized, _, notes = outcome
        output: dict[str, Any] = {**tokenized, "notes": notes, "row": index + 1, "row_id": row.get("id")}
        output["truncated_key_tokens"] = -1
        prompt = len(output["prompt_ids"])
        room = None if self.max_length is None else self.max_length - prompt
        longest = max(len(output["chosen_ids"]), len(output["rejected_ids"]))
        too_long = room is not None and longest > room
        if room is not None and too_long and self.truncate_long and room > 0:
            output["truncated_key_tokens"] = _truncate(output, room)
        chains = [output["chosen_ids"], output["rejected_ids"]]
        # The name that transformers' length-grouping sampler reads.
        output["length"] = prompt + max(map(len, chains))
        output["prompt_length"] = prompt
        output["unique_length"] = prompt + sum(map(len, chains)) - common_prefix(*chains)
        masks = output["chosen_key_mask"] + output["rejected_key_mask"]
        output["key_fraction"] = sum(masks) / len(masks)
        output["problem"] = self._problem(output, room, too_long, is_alone(row))
        return output

    def _problem(self, output: dict[str, Any], room: int | None, too_long: bool, alone: bool) -> str:
        if room is not None and room <= 0:
            return "prompt too long"
        if too_long and not self.truncate_long:
            return f"longer than max_length={self.max_length}"
        if output["key_fraction"] == 0 and not alone:
            return "no key token"
        if output["key_fraction"] > self.max_key_fraction:
            return f"key fraction over {self.max_key_fraction}"
        return ""


# The modules that decide what a prepared pair is; rows prepared by other code are not taken from the cache.
_SOURCES = (
    __name__,
    "edit_trl.key_steps",
    *("edit_trl.common.alignment", "edit_trl.common.spans", "edit_trl.common.steps", "edit_trl.common.thoughts"),
    *("edit_trl.data.chains", "edit_trl.data.conversation", "edit_trl.data.row", "edit_trl.data.tokenization"),
    "edit_trl.models.chat_templates",
)


def _tokenizer_state(tokenizer: "PreTrainedTokenizerBase") -> tuple:
    """Return the state of a tokenizer that decides about ids, without the parts that change while it is used."""
    if tokenizer.is_fast:
        # Truncation and padding come first. The rest is megabytes, which take long to parse.
        _, _, state = tokenizer.backend_tokenizer.to_str().partition('"added_tokens":')
    else:
        state = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return type(tokenizer).__name__, state, special, tokenizer.chat_template


def _truncate(output: dict[str, Any], room: int) -> int:
    """Cut both completions to `room` tokens in place; return how many key tokens were cut off."""
    lost = 0
    for side in ("chosen", "rejected"):
        lost += sum(output[f"{side}_key_mask"][room:])
        for name in ("ids", "key_mask", "fork_mask"):
            output[f"{side}_{name}"] = output[f"{side}_{name}"][:room]
    output["fork"] = min(output["fork"], len(output["chosen_ids"]) - 1)
    return lost


def prepare_dual_cots(
    dataset: "Dataset", preparation: RowPreparation, *, name: str = "train", num_proc: int | None = None
) -> tuple["Dataset", PreparationReport]:
    """Tokenize a dataset and drop the pairs that cannot teach.

    `datasets` caches the result, also for rows in memory, so a second run with the same rows and settings
    tokenizes nothing.

    Args:
        dataset: Validated dual CoTs.
        preparation: How each row is tokenized.
        name: The dataset's name in progress bars and messages.
        num_proc: Number of processes.

    Returns:
        The prepared dataset, one pair per row (columns of `TokenizedDualCoT`, `row`, `row_id`, lengths), and
        the report of what was dropped.

    Raises:
        InputError: Rows that the chat template refuses, or whose prompt alone fills `max_length` (rows named); or no
            row left.
    """
    try:
        prepared = _map(dataset, preparation, f"Tokenizing {name} dataset", num_proc)
    except InputError as error:
        raise InputError([f"{name} dataset, {problem}" for problem in error.problems]) from error
    problems = prepared["problem"][:]
    prompts = [row for row, problem in zip(prepared["row"], problems, strict=True) if "prompt" in problem]
    if prompts:
        raise InputError(
            f"{name} dataset: the prompt alone fills max_length={preparation.max_length} in "
            f"{len(prompts)} of {len(problems)} pairs ({name_rows(prompts)}), so nothing of the chains would "
            "be left; raise `max_length` or remove these rows"
        )
    remaining = prepared.select([i for i, problem in enumerate(problems) if not problem])
    cut = [lost for lost in remaining["truncated_key_tokens"] if lost >= 0]
    report = PreparationReport(
        rows=len(problems),
        kept=len(remaining),
        dropped=dict(Counter(filter(None, problems))),
        truncated=len(cut),
        truncated_key_tokens=sum(cut),
        key_fraction=sum(remaining["key_fraction"][:]) / max(len(remaining), 1),
        notes=dict(Counter(note for notes in remaining["notes"] for note in notes)),
    )
    if not len(remaining):
        raise InputError(f"{name} dataset: no pair is left to train on ({report})")
    return remaining.remove_columns(["problem", "notes", "key_fraction", "truncated_key_tokens"]), report


def prepare_for_training(
    dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", options: "PreparationOptions", name: str
) -> tuple["Dataset", PreparationReport]:
    """Check and prepare the rows of a training run, and log what was dropped.

    The main process works and the others read its cache. The tokenizer gets the EOS token of the options.

    Raises:
        InputError: Rows that are not dual CoTs, or none that can teach.
    """
    from accelerate import PartialState

    validate_dual_cots(dataset, source=f"{name} dataset")
    if options.chat_template_kwargs and not is_conversational(dataset[0]):
        raise InputError(
            f"`chat_template_kwargs` has no effect: the rows of the {name} dataset are plain text, which no chat "
            "template renders; remove it, or give messages"
        )
    preparation = RowPreparation.of_options(tokenizer, options)
    with PartialState().main_process_first():
        prepared, report = prepare_dual_cots(dataset, preparation, name=name, num_proc=options.dataset_num_proc)
    if PartialState().is_main_process:
        log = logger.warning if report.dropped or report.truncated else logger.info
        log(f"{name} dataset: {report}")
        for note, count in report.notes.items():
            some = "" if count == report.kept else f", {count} of {report.kept} pairs"
            logger.warning(f"{name} dataset{some}: {note}")
        conversational = is_conversational(dataset[0])
        if unused := unused_columns(dataset.column_names, options.key_step_method, conversational=conversational):
            logger.warning_once(f"{name} dataset: {unused}")
    return prepared, report


def map_datasets(
    datasets: "Dataset | dict[str, Dataset] | None", function: Callable[["Dataset", str], "Dataset"]
) -> "Dataset | dict[str, Dataset] | None":
    """Apply a function of (dataset, name) to an evaluation dataset, to each of a dict of them, or to none."""
    if not datasets:
        return datasets
    if isinstance(datasets, dict):
        return {name: function(dataset, name) for name, dataset in datasets.items()}
    return function(datasets, "eval")


def name_rows(rows: Iterable[int], most: int = 10) -> str:
    """Return row numbers for a message: "rows 3, 7, ..."."""
    numbers = sorted(set(rows))
    listed = ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
    return f"{'rows' if len(numbers) > 1 else 'row'} {listed}"


def _map(dataset: "Dataset", preparation: RowPreparation, desc: str, num_proc: int | None) -> "Dataset":
    import datasets

    fingerprint = preparation.fingerprint(dataset)
    cache_file = None
    if datasets.is_caching_enabled():
        # A dataset in memory has no folder of its own; its fingerprint is that of its content.
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "edit_trl"
        if dataset.cache_files:
            folder = Path(dataset.cache_files[0]["filename"]).parent
        folder.mkdir(parents=True, exist_ok=True)
        cache_file = str(folder / f"dual-cots-{fingerprint}.arrow")
    prepared = dataset.map(
        preparation,
        with_indices=True,
        batched=True,
        batch_size=100,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        cache_file_name=cache_file,
        new_fingerprint=fingerprint,
        desc=desc,
    )
    # A transform (`with_transform`) has made the rows that were tokenized; it is not for the tokens.
    return prepared if prepared.format["type"] is None else prepared.with_format(None)
