"""Prompts in, responses out (L3): greedy or sampled, in batches that are the same however often a run is
taken up.

Three ways to batch. `padded`: prompts of like lengths together, the longest first. `continuous`: the
scheduler of transformers, which fills the place of a response that has ended; the faster one on a GPU, and
the slower one on a CPU (`python benchmarks/evaluate_speed.py`). `vllm`: vLLM, where it is installed.

Read in transformers 5.23: `ContinuousMixin.generate_batch`; in vllm 0.11: `LLM.generate`, `SamplingParams`,
`LoRARequest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from transformers import GenerationConfig

from edit_trl.common.errors import InputError
from edit_trl.models.decoding import Batching, Decoding, Generated, check_batching

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# A scheduler needs a supply to fill its places from, and a killed run loses at most as much.
_CHUNK = 8


class ModelGenerator:
    """A model in memory; its mode, its settings and the random state are left as they were found.

    Args:
        model: A causal language model, or a PEFT model of one.
        tokenizer: Its tokenizer.
        decoding: How responses are drawn.
        batch_size: Responses at once.
        batching: `auto` is `continuous` on a GPU and `padded` elsewhere.
        seed: Of sampling.

    Raises:
        InputError: No EOS token, an unknown way of batching, or a batch too small for the samples.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        batch_size: int = 16,
        batching: Batching = "auto",
        seed: int = 0,
    ):
        check_batching(batching, batch_size)
        # The scheduler knows these attentions alone; a model just trained has that of the tree layout.
        attention = model.config._attn_implementation or ""
        schedulable = attention in ("sdpa", "eager") or attention.startswith("flash")
        schedulable = schedulable and not is_peft_model(model)
        if batching == "auto":
            batching = "continuous" if model.device.type == "cuda" and schedulable else "padded"
        if batching == "continuous" and not schedulable:
            raise InputError(
                f"`batching: continuous` cannot run {type(model).__name__} with attention {attention!r}; use "
                "`batching: padded`"
            )
        self.batching = batching
        self._model, self._tokenizer = model, tokenizer
        self._samples, self._seed = decoding.samples, seed
        self._prompts = max(1, batch_size // decoding.samples) * (_CHUNK if batching == "continuous" else 1)
        self._eos = eos_ids(model, tokenizer)
        self._config = generation_config(decoding, self._eos, tokenizer)

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        # Batches of like lengths pad little; the longest first, so that memory runs out at once or never.
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        return [order[start : start + self._prompts] for start in range(0, len(order), self._prompts)]

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`."""
        for batch in batches:
            # Not around the loop: what is done between batches is not ours to make undone.
            # No inference mode: weights that FSDP gathers in it could not be trained afterwards.
            with undisturbed(self._model, self._config), torch.no_grad():
                # Of the batch alone: a run that is taken up draws as one that was left alone.
                torch.manual_seed(batch_seed(self._seed, prompts[batch[0]]))
                outputs = self._generate([prompts[index] for index in batch for _ in range(self._samples)])
            samples = [self._read(ids) for ids in outputs]
            size = self._samples
            yield batch, [samples[start : start + size] for start in range(0, len(samples), size)]

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        if self.batching == "padded":
            inputs = left_pad(prompts, self._config.pad_token_id, self._model.device)
            output = self._model.generate(**inputs, generation_config=self._config)
            return output[:, inputs["input_ids"].size(1) :].tolist()
        outputs = self._model.generate_batch(prompts, generation_config=self._config, warmup=False)
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) < len(prompts):
            raise RuntimeError(
                f"continuous batching answered {len(outputs) - len(failed)} of {len(prompts)} prompts "
                f"({failed[:1]}); use `batching: padded`"
            )
        return [output.generated_tokens for output in outputs.values()]

    def _read(self, ids: list[int]) -> Generated:
        end = next((place for place, token in enumerate(ids) if token in self._eos), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        return Generated(text, len(ids) if end is None else end + 1, end is None)


class VllmGenerator:
    """A model that vLLM loads; it batches by itself.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter.
        decoding: How responses are drawn.
        dtype: Of the weights.
        seed: Of sampling.

    Raises:
        InputError: vLLM is not installed.
    """

    batching = "vllm"

    def __init__(self, model: str, decoding: Decoding, *, dtype: str = "auto", seed: int = 0):
        if find_spec("vllm") is None:
            raise InputError("`batching: vllm` needs vLLM: pip install vllm; or leave `batching` out")
        from vllm import LLM, SamplingParams

        base, self._lora = _vllm_adapter(model)
        self._engine = LLM(base, dtype=dtype, seed=seed, enable_lora=self._lora is not None)
        self._decoding, self._seed, self._parameters = decoding, seed, SamplingParams

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        size = 256  # enough to keep it busy, and what a killed run may lose
        return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`."""
        decoding = self._decoding
        for batch in batches:
            settings = [
                self._parameters(
                    n=decoding.samples,
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    max_tokens=decoding.max_new_tokens,
                    seed=batch_seed(self._seed, prompts[index]),
                )
                for index in batch
            ]
            inputs = [{"prompt_token_ids": prompts[index]} for index in batch]
            outputs = self._engine.generate(inputs, settings, use_tqdm=False, lora_request=self._lora)
            yield (
                batch,
                [
                    [
                        Generated(one.text.strip(), len(one.token_ids), one.finish_reason == "length")
                        for one in output.outputs
                    ]
                    for output in outputs
                ],
            )


def vllm_is_faster() -> bool:
    """Whether vLLM is here and has a GPU to run on."""
    return find_spec("vllm") is not None and torch.cuda.is_available()


def _vllm_adapter(model: str) -> tuple[str, Any]:
    if not (Path(model) / "adapter_config.json").is_file():
        return model, None
    from peft import PeftConfig
    from vllm.lora.request import LoRARequest

    return PeftConfig.from_pretrained(model).base_model_name_or_path, LoRARequest("student", 1, model)


def generation_config(
    decoding: Decoding, eos: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """transformers' settings for a way of drawing responses; none is left to the model's own."""
    drawn = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    return GenerationConfig(
        use_cache=True,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(eos),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0],
        **(drawn if decoding.temperature else {"do_sample": False}),
    )


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the model's, and the one it was trained to end with.

    Raises:
        InputError: There is none.
    """
    known = model.generation_config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else list(known)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError("neither the model nor the tokenizer has an EOS token, so no response would end")
    return ids


def batch_seed(seed: int, ids: Sequence[int]) -> int:
    """A seed that depends on the run's and on a prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed} {list(ids)}".encode()).digest()[:4], "big")


def left_pad(sequences: Sequence[list[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of shape (sequences, longest)."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(sequence)) + sequence for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@contextmanager
def undisturbed(model: PreTrainedModel, config: GenerationConfig | None = None) -> Iterator[None]:
    """Eval mode and these generation settings inside; all as before, and the random state, outside.

    `generate` fills what its config leaves open from the model's own (transformers 5.23), so that a
    repetition penalty or beams set there would take part: the model's is out of the way meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    # With an adapter, both the wrapper and the model inside may hold one.
    own = [(m, m.generation_config) for m, _ in modes if "generation_config" in vars(m)]
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    for module, _ in own if config is not None else ():
        module.generation_config = config
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, settings in own:
            module.generation_config = settings
        for module, training in modes:
            module.training = training
