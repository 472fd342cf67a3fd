"""Merge an adapter into the weights of its model, and check that nothing was lost.

An adapter of a quantized model is merged into that model's full weights, since quantized weights would be
rounded once more. The merged model then differs from the trained one by the error of quantization, which is
measured and reported.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edit_trl.common.errors import InputError
from edit_trl.common.files import replacing, write_whole
from edit_trl.common.hub_ids import is_hub_id, refuse_missing_folder
from edit_trl.models.adapters import ADAPTER_CONFIG, adapter_base, find_adapter_weights, put_on, read_base_name
from edit_trl.models.folders import check_folder
from edit_trl.models.loading import ModelSource, load_config, load_tokenizer
from edit_trl.models.modelfile import MODELFILE, ollama_modelfile

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3}
"""The largest mean change of log-probabilities by merging that is allowed, in nats per token."""
HALF_TOLERANCE = 0.1
"""The same in bfloat16 and float16, in which the sum of two weights is rounded."""

_TEXTS = (
    "Tom has 3 apples and eats one. How many are left?\nHe had 3 and ate 1, so 3 - 1 = 2. The answer is 2.",
    "Sort the words: pear apple fig.\nThe order is apple, fig, pear. The answer is apple fig pear.",
    "What is not ( True ) and False?\nnot True is False. False and False is False. The answer is False.",
)
_LONGEST = 512


@dataclass(frozen=True)
class MergeReport:
    """The changes by merging, measured on the tokens of a few texts.

    Attributes:
        base_model: Path or Hub id of the model that the adapter was merged into.
        dtype: Dtype of the merged weights.
        tokens: How many tokens were compared.
        mean: Mean absolute difference per token between the log-probabilities of the merged model and of
            the adapter on its base model, in nats.
        largest: The largest such difference.
        tolerance: The limit of `mean`.
        quantized_mean: The same mean between the merged model and the quantized model that was trained; None
            if it was not quantized, or cannot be run here.
        notes: What a user of Ollama should know of the merged model's Modelfile, one sentence each.
    """

    base_model: str
    dtype: str
    tokens: int
    mean: float
    largest: float
    tolerance: float
    quantized_mean: float | None = None
    notes: tuple[str, ...] = ()


def merge_adapter(
    adapter: str,
    output: Path,
    *,
    base_model: str | None = None,
    quantization: str | None = None,
    texts: Sequence[str] = (),
    dtype: str | None = None,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge an adapter into its model's weights and save the result as a plain model, with a Modelfile for Ollama.

    The output folder appears only once everything in it is written.

    Args:
        adapter: Path or Hub id.
        output: The folder; must be empty or missing.
        base_model: Its base model, if that is elsewhere than the adapter's configuration says.
        quantization: How the base model was quantized for training, such as "4-bit nf4"; None if it was not.
        texts: Texts like those of the training, on which log-probabilities are compared; if empty, a few
            built-in ones.
        dtype: `float32`, `bfloat16` or `float16`. Where None, the base model's own; bfloat16 if it was
            quantized for training.
        tolerance: The largest mean change of log-probabilities that is allowed, in nats per token; see
            `TOLERANCES` and `HALF_TOLERANCE` where None.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        InputError: The output is not empty; there is no adapter, it is pickled, or belongs to another model; or
            the log-probabilities differ by more than the tolerance.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} exists and is not empty; choose another")
    base_model = _find_base_model(adapter, base_model)
    base = ModelSource(
        base_model, dtype=dtype or ("bfloat16" if quantization else None), trust_remote_code=trust_remote_code
    )
    tokenizer = load_tokenizer(adapter, base_model, trust_remote_code=trust_remote_code)
    batches = [tokenizer(text, return_tensors="pt").input_ids[:, :_LONGEST] for text in texts or _TEXTS]
    trained = _quantized_logps(replace(base, dtype=None, quantization=quantization), adapter, batches)
    model = put_on(_load_full_weights(base), adapter).eval()
    before = _logps(model, batches)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # weights that are not finite
        raise InputError(f"{adapter} cannot be merged: {error}") from error
    after = _logps(merged, batches)
    difference = (after - before).abs()
    report = MergeReport(
        base_model=base_model,
        dtype=str(merged.dtype).removeprefix("torch."),
        tokens=len(difference),
        mean=difference.mean().item(),
        largest=difference.max().item(),
        tolerance=tolerance if tolerance is not None else TOLERANCES.get(merged.dtype, HALF_TOLERANCE),
        quantized_mean=None if trained is None else (after - trained).abs().mean().item(),
    )
    if not report.mean <= report.tolerance:  # also where it is not a number
        raise InputError(
            f"the merged model is not the same as the adapter on {base_model}: log-probabilities differ by "
            f"{report.mean:.2g} nats per token, and {report.tolerance:g} are allowed. Merge in --dtype float32, "
            "or allow more with --tolerance"
        )
    modelfile = ollama_modelfile(tokenizer, _end_as_trained(merged, tokenizer))
    with replacing(output) as draft:
        merged.save_pretrained(draft, max_shard_size="5GB")  # so that an interrupted upload loses little
        tokenizer.save_pretrained(draft)
        write_whole(draft / MODELFILE, modelfile.text)
    return replace(report, notes=modelfile.notes)


def _end_as_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give a merged model the EOS token of the adapter's tokenizer, with which the adapter learned to end.

    As in TRL's `eos_token`, those of the base stay in the generation config: any of them ends an answer. They are
    returned.
    """
    eos, config = tokenizer.eos_token_id, model.generation_config
    own = [config.eos_token_id] if isinstance(config.eos_token_id, int) else list(config.eos_token_id or ())
    if eos is not None and eos not in own:
        model.config.get_text_config().eos_token_id = eos
        config.eos_token_id = [eos, *own] if own else eos
        own = [eos, *own]
    return own


def _find_base_model(adapter: str, base_model: str | None) -> str:
    """Check an adapter before anything is loaded, and return its base model."""
    refuse_missing_folder(adapter, "adapter")
    folder = Path(adapter).expanduser()
    if folder.is_dir() and not (folder / ADAPTER_CONFIG).is_file():
        whole = (folder / "config.json").is_file()
        raise InputError(f"{adapter} is {'a whole model, there is nothing to merge' if whole else 'no adapter'}")
    check_folder(adapter, "adapter")
    find_adapter_weights(adapter)
    named = read_base_name(adapter)
    if base_model is None:
        try:
            base_model = adapter_base(adapter)
        except InputError as error:
            raise InputError(f"{error}; or name it with --base_model") from error
        assert base_model is not None  # it is an adapter: its weights were found
        return base_model
    check_folder(base_model, "base_model")
    if is_hub_id(base_model) and is_hub_id(named) and base_model != named:
        raise InputError(f"{adapter} is an adapter of {named}, not of {base_model}")
    return base_model


def _load_full_weights(base: ModelSource) -> PreTrainedModel:
    config = load_config(base.model, trust_remote_code=base.trust_remote_code, option="base_model")
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"{base.model} is saved in a quantized form; name the model it was made from with --base_model"
        )
    return base.load_whole(f"the base model {base.model}")


def _quantized_logps(base: ModelSource, adapter: str, batches: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return `_logps` of the model as it was trained; None if it was not quantized, or cannot be run here."""
    if base.quantization is None:
        return None
    try:
        model = put_on(base.load_whole(f"`model: {base.model}`"), adapter).eval()
        logps = _logps(model, batches)
    # bitsandbytes is missing, or does not support this machine or model.
    except (InputError, RuntimeError) as error:
        logger.warning(f"the {base.quantization} model cannot be run here, so it is not compared: {error}")
        return None
    del model
    gc.collect()
    return logps


@torch.inference_mode()
def _logps(model: PreTrainedModel | PeftModel, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the log-probability of every token but the first of each text, shape (tokens,), float32 on the CPU."""
    values = []
    for ids in batches:
        ids = ids.to(model.device)
        logps = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        values.append(logps.gather(-1, ids[:, 1:, None]).flatten().cpu())
    return torch.cat(values)
