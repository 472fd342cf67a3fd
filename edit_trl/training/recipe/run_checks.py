"""Checks of all runs of a recipe before the first one starts: of this machine, and from stage to stage.

They are not part of `resolve_runs`, so that the memory of a run can be estimated on another machine than its own.
"""

from collections.abc import Sequence
from pathlib import Path

from edit_trl.common.errors import InputError, collect_problems, show
from edit_trl.common.hub_ids import refuse_missing_folder
from edit_trl.models.chat_templates import check_variables
from edit_trl.models.loading import load_config, load_tokenizer
from edit_trl.training.config import DualCoTConfig
from edit_trl.training.inherited_options import LOADING
from edit_trl.training.lora_targets import lora_config
from edit_trl.training.recipe.adapter_options import adapter_problems, is_adapter
from edit_trl.training.recipe.outline import Recipe
from edit_trl.training.recipe.resolving import RunArguments, by_stage
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
