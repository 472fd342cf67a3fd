"""An adapter put into the weights of its model (L3), and the check that nothing was lost.

An adapter of a 4-bit model is merged into that model's full weights: 4-bit ones would be rounded anew. The
merged model is then a little different from the one that was trained, by what quantization had cost; that is
measured.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from edit_trl.common.errors import InputError
from edit_trl.models.loading import put_on, refuse_pickled_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCES = {torch.float32: 1e-3}
"""How far the mean log-probability of a token may move, in nats, by merging."""
HALF_TOLERANCE = 0.1
"""The same in bfloat16 and float16, in which the sum of two weights is rounded."""
QUANTIZATION_FACTOR = 2.0
"""How far it may be from the quantized model that was trained: so many times what quantization does to the
base model alone, which in a small model is much."""

_TEXTS = (
    "Tom has 3 apples and eats one. How many are left?\nHe had 3 and ate 1, so 3 - 1 = 2. The answer is 2.",
    "Sort the words: pear apple fig.\nThe order is apple, fig, pear. The answer is apple fig pear.",
    "What is not ( True ) and False?\nnot True is False. False and False is False. The answer is False.",
)
_LONGEST = 512


@dataclass(frozen=True)
class MergeReport:
    """What merging changed, over the tokens of a few texts.

    Attributes:
        base_model: What the adapter was merged into.
        dtype: Of the merged weights.
        tokens: How many were looked at.
        mean: Mean difference of a token's log-probability to the adapter on its model, in nats.
        largest: The largest.
        tolerance: What `mean` may be.
        quantized_mean: Mean difference to the quantized model that was trained; None where it was not
            quantized, or cannot be run here.
        quantization_cost: Mean difference of the base model alone, quantized and not; None likewise.
    """

    base_model: str
    dtype: str
    tokens: int
    mean: float
    largest: float
    tolerance: float
    quantized_mean: float | None = None
    quantization_cost: float | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter that is to be merged.

    Attributes:
        path: Path or Hub id.
        base_model: Path or Hub id of its model.
        quantization: How the base model was held in training, such as "4-bit nf4"; None for in full.
        texts: Texts like those it was trained on, on which the outputs are compared; a few of ours where
            there are none.
    """

    path: str
    base_model: str
    quantization: str | None = None
    texts: Sequence[str] = ()


def read_adapter(
    adapter: str,
    base_model: str | None = None,
    *,
    quantization: str | None = None,
    texts: Sequence[str] = (),
) -> Adapter:
    """Look at an adapter before anything is loaded.

    Args:
        adapter: Path or Hub id.
        base_model: Its model, where that is elsewhere than its configuration says.
        quantization: See `Adapter`.
        texts: See `Adapter`.

    Raises:
        InputError: No adapter, of pickled weights, or of another model than `base_model`.
    """
    from peft import PeftConfig

    from edit_trl.common.hub_ids import is_hub_id

    folder = Path(adapter).expanduser()
    if not folder.is_dir() and not is_hub_id(adapter):
        raise InputError(f"no such folder: {adapter!r} (looked in {Path.cwd()})")
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        whole = (folder / "config.json").is_file()
        raise InputError(
            f"{adapter} is {'a whole model, there is nothing to merge' if whole else 'no adapter'}"
        )
    refuse_pickled_adapter(adapter)
    try:
        named = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{adapter}: its adapter_config.json cannot be read: {error}") from error
    if base_model and is_hub_id(base_model) and is_hub_id(named) and base_model != named:
        raise InputError(f"{adapter} is an adapter of {named}, not of {base_model}")
    base = base_model or named
    if not base or (not Path(base).is_dir() and not is_hub_id(base)):
        raise InputError(f"the base model of {adapter} is not there: {base!r}; name it with --base_model")
    return Adapter(adapter, base, quantization, texts)


def merge_adapter(
    adapter: Adapter,
    output: Path,
    *,
    dtype: str | None = None,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge an adapter into its model's weights and save it as a plain model, whole or not at all.

    Args:
        adapter: See `read_adapter`.
        output: The folder; must not hold anything.
        dtype: `float32`, `bfloat16` or `float16`; the base model's own where None, and bfloat16 where it was
            quantized for training.
        tolerance: How far the mean log-probability may move, in nats; see `TOLERANCES` where None.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        InputError: An output that holds something, another base model, or outputs that differ by more.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} exists and is not empty; choose another")
    options = {"trust_remote_code": trust_remote_code}
    tokenizer = _tokenizer(adapter, options)
    texts = _encoded(adapter, tokenizer)
    trained = _quantized_logps(adapter, texts, options) if adapter.quantization else None
    model = put_on(_base_model(adapter, dtype, options), adapter.path).eval()
    before = _logps(model, texts)
    bare = _bare_logps(model, texts) if trained else None
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # weights that are not finite
        raise InputError(f"{adapter.path} cannot be merged: {error}") from error
    after = _logps(merged, texts)
    report = _report(adapter, merged, before, after, tolerance)
    if trained is not None and bare is not None:
        report = _check_quantized(report, adapter, after, bare, *trained)
    _save(merged, tokenizer, output)
    return report


def _tokenizer(adapter: Adapter, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    for place in (adapter.path, adapter.base_model):
        try:
            return AutoTokenizer.from_pretrained(place, **options)
        except (OSError, ValueError):
            continue
    raise InputError(f"neither {adapter.path} nor {adapter.base_model} has a tokenizer that can be loaded")


def _encoded(adapter: Adapter, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    texts = adapter.texts or _TEXTS
    return [tokenizer(text, return_tensors="pt").input_ids[:, :_LONGEST] for text in texts]


def _base_model(adapter: Adapter, dtype: str | None, options: dict[str, Any]) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(adapter.base_model, **options)
        if getattr(config, "quantization_config", None):
            raise InputError(
                f"{adapter.base_model} is saved in a quantized form; name the model it was made from with "
                "--base_model"
            )
        wanted = dtype or ("bfloat16" if adapter.quantization else "auto")
        model = AutoModelForCausalLM.from_pretrained(
            adapter.base_model,
            config=config,
            dtype=wanted if wanted == "auto" else getattr(torch, wanted),
            use_safetensors=True,
            **options,
        )
    except OSError as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError(f"the base model {adapter.base_model} cannot be loaded: {reason}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _quantized_logps(
    adapter: Adapter, texts: Sequence[torch.Tensor], options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """With and without the adapter, of its model as it was held in training; None where it cannot be run."""
    from transformers import BitsAndBytesConfig

    bits, _, kind = str(adapter.quantization).partition(" ")
    if bits not in ("4-bit", "8-bit"):
        return None
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    if bits == "4-bit":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind or "nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        base = AutoModelForCausalLM.from_pretrained(
            adapter.base_model, quantization_config=quantization, use_safetensors=True, **options
        )
        model = put_on(base, adapter.path).eval()
        logps = _logps(model, texts), _bare_logps(model, texts)
    except (ImportError, RuntimeError) as error:  # bitsandbytes is missing, or not for this machine or model
        print(f"the {bits} model cannot be run here, so it is not compared with: {error}")
        return None
    del base, model
    gc.collect()
    return logps


@torch.inference_mode()
def _logps(model: Any, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Log-probability of every token but the first of each text, shape (tokens,), float32 on the CPU."""
    found = []
    for ids in texts:
        ids = ids.to(model.device)
        logps = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        found.append(logps.gather(-1, ids[:, 1:, None]).flatten().cpu())
    return torch.cat(found)


def _bare_logps(model: PeftModel, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    with model.disable_adapter():
        return _logps(model, texts)


def _report(
    adapter: Adapter,
    merged: PreTrainedModel,
    before: torch.Tensor,
    after: torch.Tensor,
    tolerance: float | None,
) -> MergeReport:
    limit = tolerance if tolerance is not None else TOLERANCES.get(merged.dtype, HALF_TOLERANCE)
    difference = (after - before).abs()
    report = MergeReport(
        base_model=adapter.base_model,
        dtype=str(merged.dtype).removeprefix("torch."),
        tokens=len(difference),
        mean=difference.mean().item(),
        largest=difference.max().item(),
        tolerance=limit,
    )
    if not report.mean <= limit:  # also where it is not a number
        raise InputError(
            f"the merged model is not what the adapter is on {adapter.base_model}: log-probabilities differ "
            f"by {report.mean:.2g} nats a token, and may by {limit:g}. Merge in --dtype float32, or allow "
            "more with --tolerance"
        )
    return report


def _check_quantized(
    report: MergeReport,
    adapter: Adapter,
    after: torch.Tensor,
    bare: torch.Tensor,
    trained: torch.Tensor,
    trained_bare: torch.Tensor,
) -> MergeReport:
    """That the merged model is no further from the trained one than quantization explains."""
    mean, cost = (after - trained).abs().mean().item(), (bare - trained_bare).abs().mean().item()
    limit = QUANTIZATION_FACTOR * cost + report.tolerance
    if not mean <= limit:
        raise InputError(
            f"the merged model is not what was trained on {adapter.quantization} weights: log-probabilities "
            f"differ by {mean:.2g} nats a token, and may by {limit:.2g}: quantization alone makes {cost:.2g}"
        )
    return replace(report, quantized_mean=mean, quantization_cost=cost)


def _save(merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    draft = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    # Of a size that an upload which broke can lose without much harm.
    merged.save_pretrained(draft, max_shard_size="5GB")
    tokenizer.save_pretrained(draft)
    if output.exists():
        output.rmdir()
    draft.rename(output)
