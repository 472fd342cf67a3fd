"""Checks of all runs of a recipe before the first one starts: of this machine, of the data, and from stage to stage.

They are not part of `resolve_runs`, so that the memory of a run can be estimated on another machine than its own.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset

from edit_trl.common.errors import InputError, collect_problems, raise_problems, show
from edit_trl.common.hub_ids import refuse_missing_folder
from edit_trl.data.dual_cots import DatasetSource
from edit_trl.data.mixture import Mixture
from edit_trl.data.row import chain_text, is_conversational, rows_of
from edit_trl.models.chat_templates import check_variables, is_chat_model
from edit_trl.models.loading import load_config, load_tokenizer
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.inherited_options import LOADING
from edit_trl.training.lora_targets import lora_config
from edit_trl.training.recipe.adapter_options import adapter_problems, is_adapter
from edit_trl.training.recipe.resolving import Recipe, RunArguments, by_stage
from edit_trl.training.requirements import requirement_problems
from edit_trl.training.student import check_token


def check_runs(recipe: Recipe, runs: Sequence[RunArguments]) -> None:
    """Check that this machine can train all runs, and that each can go on from the one before.

    Raises:
        InputError: All problems of all runs.
    """
    of_adapters = adapter_problems(runs)
    problems = [
        [*requirement_problems(run.training, run.model), *_student_problems(run), *of_adapter]
        for run, of_adapter in zip(runs, of_adapters, strict=True)
    ]
    if any(problems):
        raise InputError(by_stage(recipe, problems), heading=f"{recipe.path or 'command line'}:")


def _student_problems(run: RunArguments) -> list[str]:
    """Return the options that do not fit the student, where it is a model here: its files are small but the weights."""
    student, training = str(run.model.model_name_or_path), run.training
    problems: list[str] = []
    with collect_problems(problems):
        refuse_missing_folder(student, "model_name_or_path")
    if not (Path(student) / "config.json").is_file() or is_adapter(student):
        return problems
    remote = training.trust_remote_code
    with collect_problems(problems):
        config = load_config(student, trust_remote_code=remote, option="model_name_or_path")
        unknown = [name for name in training.model_init_kwargs or () if not (name in LOADING or hasattr(config, name))]
        if unknown:
            raise InputError(
                f"`model_init_kwargs` has {', '.join(map(show, unknown))}, which is no option of loading and none of "
                f"{type(config).__name__}; remove it"
            )
        coefficient = getattr(training, "router_aux_loss_coef", None)
        if coefficient and not hasattr(config.get_text_config(), "output_router_logits"):
            raise InputError(f"`router_aux_loss_coef: {coefficient}` is for a mixture of experts; {student} is none")
        lora_config(run.model, student, remote)
        tokens = {name: getattr(training, name, None) for name in ("eos_token", "pad_token")}
        values = getattr(training, "chat_template_kwargs", None)
        # A chat template that replaces the student's may bring its tokens and its variables.
        is_own = isinstance(training, DualCoTConfig) and training.chat_template_path is None
        if is_own and (any(tokens.values()) or values):
            tokenizer = load_tokenizer(student, trust_remote_code=remote)
            if tokenizer.chat_template is not None:  # a processor may have it instead
                check_variables(tokenizer, values)
            for name, token in tokens.items():
                if token is not None:
                    check_token(tokenizer, name, token)
    return problems


def sources_of(runs: Sequence[RunArguments]) -> list[DatasetSource | Mixture]:
    """Return every dataset that the runs would load, each once."""
    sources: list[DatasetSource | Mixture] = []
    for run in runs:
        sources.append(run.data.train_source)
        if run.training.eval_strategy != "no":
            sources.append(run.data.eval_source)
        if run.data.suite_eval_steps is not None:
            sources.append(run.data.suite_source)
    return [source for number, source in enumerate(sources) if source not in sources[:number]]


def data_problems(
    sources: Sequence[DatasetSource | Mixture],
    runs: Sequence[RunArguments],
    say: Callable[[str], object],
    warn: Callable[[str], object],
) -> list[str]:
    """Load datasets, and return what is wrong with their rows and with what each run selects of them.

    Args:
        sources: The datasets.
        runs: The runs that train on them.
        say: Called with a line about each dataset, and about each view of it.
        warn: Called with a line about rows that are probably not meant as they are.
    """
    problems: list[str] = []
    for source in sources:
        with collect_problems(problems):
            rows = source.load()
            say(f"{source.name}{f' ({source.split})' if source.split else ''}: {len(rows)} dual CoTs")
            for warning in _row_warnings(rows, [str(run.model.model_name_or_path) for run in runs]):
                warn(f"warning: {source.name}: {warning}")
            for run in runs:
                data, stage = run.data, f"stage {run.stage}" if run.stage else ""
                if data.train_source != source:
                    continue
                selection: list[str] = []
                with collect_problems(selection):
                    selected = data.train_view(rows, run.training.seed)
                    if (data.view_names, data.mistake, data.rows) != (["pairs"], None, None):
                        view = f"view {', '.join(data.view_names)}"
                        say(f"  {f'{stage}, ' if stage else ''}{view}: {len(selected)} rows")
                problems += [f"{stage}: {problem}" if stage else problem for problem in selection]
    return problems


def _row_warnings(rows: Dataset, students: Sequence[str]) -> Iterator[str]:
    """Yield what is probably wrong with plain rows, of which prompt and chain are concatenated as they are."""
    if is_conversational(rows[0]):
        return
    joined = [
        (row["prompt"], chain_text(row["chosen"]))
        for row in rows_of(rows.select_columns(["prompt", "chosen"]))
        if row["prompt"][-1:].strip() and row["chosen"][:1].strip()
    ]
    if joined:
        prompt, chain = joined[0]
        yield (
            f"in {len(joined)} of {len(rows)} rows the chain follows the prompt without a space or a line break, as in "
            f"{f'{prompt[-12:]}{chain[:12]}'!r}; end the prompts with a newline"
        )
    for student in dict.fromkeys(students):
        if is_chat_model(student):
            yield (
                f"the rows are plain text, and {student} is a chat model: it would be trained without its chat "
                "template, and `evaluate` asks through it. Write conversational rows, as `edit-trl generate` does, or "
                "evaluate with `--conversational false`"
            )


def check_data(recipe: Recipe, runs: Sequence[RunArguments]) -> None:
    """Check the data of all these runs, before the first of them trains.

    Raises:
        InputError: All that is wrong with the rows, and with what each run selects of them.
    """

    def ignore(_line: str) -> None:
        pass

    warn = partial(print, file=sys.stderr) if runs[0].training.process_index == 0 else ignore
    problems = data_problems(sources_of(runs), runs, ignore, warn)
    raise_problems(problems, str(recipe.path or "command line"))
