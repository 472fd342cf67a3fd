"""What options need of the libraries and of this machine, found out before a model is loaded.

The optimizer is made for a toy parameter: what torch and bitsandbytes say of its options is said first. Private
names were read in transformers 5.24.
"""

import difflib
from collections.abc import Iterator

import torch
from transformers import TrainingArguments
from transformers.integrations.hub_kernels import is_kernel
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    is_azureml_available,
    is_flytekit_available,
)
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS, OptimizerContext
from transformers.training_args import OptimizerNames
from transformers.utils import (
    is_kernels_available,
    is_liger_kernel_available,
    is_psutil_available,
    is_torch_xla_available,
)
from trl import ModelConfig

from edit_trl.common.errors import InputError, brief, collect_problems
from edit_trl.training.option_checks import schedule_problems
from edit_trl.training.quantization import check_bitsandbytes

_PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit"}


def requirement_problems(training: TrainingArguments, model: ModelConfig | None = None) -> list[str]:
    """Return what the options of a run need and this machine does not have."""
    problems = [*_tracker_problems(training), *_package_problems(training)]
    with collect_problems(problems):
        check_bitsandbytes(model or ModelConfig(), training)
    if not problems:
        problems += [*_optimizer_problems(training), *schedule_problems(training)]
    given = getattr(training, "model_init_kwargs", None)
    kwargs = given if isinstance(given, dict) else {}
    named = None if model is None else model.attn_implementation
    for attention in dict.fromkeys((named, kwargs.get("attn_implementation"))):
        problems += _attention_problems(attention)
    if kwargs.get("use_kernels") and not is_kernels_available():
        problems.append(_not_installed("`model_init_kwargs: {use_kernels: true}`", "kernels", "remove it"))
    return problems


def check_requirements(training: TrainingArguments, model: ModelConfig | None = None) -> None:
    """Check that a run has what its options need.

    Raises:
        InputError: All that is missing.
    """
    problems = requirement_problems(training, model)
    if problems:
        raise InputError(problems)


def _not_installed(option: str, package: str, otherwise: str) -> str:
    return f"{option} needs {package}, which is not installed here; `pip install {package}`, or {otherwise}"


def _tracker_problems(training: TrainingArguments) -> Iterator[str]:
    installed = [*get_available_reporting_integrations(), *(["azure_ml"] if is_azureml_available() else [])]
    installed += ["flyte"] if is_flytekit_available() else []
    for tracker in training.report_to or ():
        if isinstance(tracker, str) and tracker not in INTEGRATION_TO_CALLBACK:
            close = difflib.get_close_matches(tracker, INTEGRATION_TO_CALLBACK, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"`report_to: {tracker}` is no tracker; there are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}{hint}"
        elif tracker not in installed:
            yield _not_installed(f"`report_to: {tracker}`", _PACKAGES.get(tracker, tracker), "set `report_to: none`")


def _package_problems(training: TrainingArguments) -> Iterator[str]:
    if training.use_liger_kernel and not is_liger_kernel_available():
        yield _not_installed("`use_liger_kernel: true`", "liger-kernel", "remove it")
    if not training.skip_memory_metrics and not is_psutil_available():
        yield _not_installed("`skip_memory_metrics: false`", "psutil", "remove it")
    debug = [getattr(option, "value", option) for option in training.debug]
    if "tpu_metrics_debug" in debug and not is_torch_xla_available():
        yield "`debug: tpu_metrics_debug` needs a TPU; remove it"


def _attention_problems(name: str | None) -> Iterator[str]:
    # Without what is for generation alone, and what edit_trl registers itself
    known = [key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if not key.startswith(("paged|", "dual_cot"))]
    known = ["eager", *known]
    option = f"`attn_implementation: {name}`"
    if name is None:
        return
    if not isinstance(name, str):
        yield f"{option} must be a text"
    elif is_kernel(name):
        if not is_kernels_available():
            yield _not_installed(option, "kernels", "use `sdpa`")
    elif name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        yield f"{option}: expected one of {', '.join(known)}, or a kernel of the Hub{hint}"
    elif name.startswith("flash_attention_"):
        version = FLASH_ATTENTION_COMPATIBILITY_MATRIX[int(name[-1])]
        if not version["general_availability_check"]() and not is_kernels_available():
            yield f"{option} needs its package and a GPU that has it, and they are not here; use `sdpa`"


class _ReadKeys(dict):
    """A mapping that remembers which of its keys were read."""

    def __init__(self, items: dict[str, str]):
        super().__init__(items)
        self.unread = set(items)

    def __getitem__(self, key):
        self.unread.discard(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.unread.discard(key)
        return super().get(key, default)

    def pop(self, key, *default):
        self.unread.discard(key)
        return super().pop(key, *default)

    def __iter__(self):  # dict.update and ** read everything
        self.unread.clear()
        return super().__iter__()


def _optimizer_problems(training: TrainingArguments) -> Iterator[str]:
    """Make the optimizer for a toy parameter; where it needs the model, only its packages are looked for."""
    option, arguments = f"`optim: {OptimizerNames(training.optim).value}`", training.optim_args or ""
    pairs = [item.split("=") for item in arguments.replace(" ", "").split(",") if item]
    if any(len(pair) != 2 for pair in pairs):
        yield f"`optim_args: {arguments}` must be `key=value, key=value`"
        return
    given, adam = _ReadKeys(dict(pairs)), {"betas": (training.adam_beta1, training.adam_beta2)}
    context = OptimizerContext(
        training, None, {"lr": training.learning_rate}, adam | {"eps": training.adam_epsilon}, given
    )
    try:
        cls, kwargs = _OPTIMIZER_HANDLERS[training.optim](context)
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer):
            cls([torch.nn.Parameter(torch.zeros(1))], **kwargs)
    except ImportError as error:
        yield f"{option}: {brief(error)}"
        return
    except (ValueError, TypeError, AttributeError) as error:
        if "model" not in str(error) or "optim_target_modules" in str(error):
            yield f"{option}{f' with `optim_args: {arguments}`' if arguments else ''}: {brief(error)}"
            return
    for key in sorted(given.unread):
        yield f"`optim_args: {arguments}`: {option} does not read {key!r}; remove it"
