"""Responses drawn by vLLM, where it is installed: it loads the model and batches by itself.

Read in vllm 0.11: `LLM.generate`, `LLM.get_tokenizer`, `SamplingParams`, `LoRARequest`, `CompletionOutput`, whose
`token_ids` end with the EOS token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from edit_trl.common.errors import InputError
from edit_trl.models.adapters import adapter_base
from edit_trl.models.decoding import Decoding, Generated
from edit_trl.models.folders import one_line_errors
from edit_trl.models.generation import batch_seed
from edit_trl.models.loading import check_student
from edit_trl.models.responses import cut_thoughts, response_text

if TYPE_CHECKING:
    from vllm import CompletionOutput

# Prompts per batch: enough to keep vLLM busy, and what a killed run may lose.
_BATCH = 256


def vllm_is_faster() -> bool:
    """Whether vLLM is installed and has a GPU to run on."""
    return find_spec("vllm") is not None and torch.cuda.is_available()


class VllmGenerator:
    """The `Generator` of a model that vLLM loads.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter.
        decoding: How responses are drawn.
        dtype: Dtype of the weights.
        seed: The seed of sampling.

    Raises:
        InputError: vLLM is not installed.
    """

    batching = "vllm"

    def __init__(self, model: str, decoding: Decoding, *, dtype: str = "auto", seed: int = 0):
        if find_spec("vllm") is None:
            raise InputError("`batching: vllm` needs vLLM: pip install vllm; or leave `batching` out")
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        base = adapter_base(model)
        check_student(model)
        self._lora = LoRARequest("student", 1, model) if base else None
        with one_line_errors(f"`model: {model}`"):  # vLLM refuses a model of which weights are missing
            self._llm = LLM(base or model, dtype=dtype, seed=seed, enable_lora=base is not None)
        self._tokenizer = self._llm.get_tokenizer()
        self._decoding, self._seed, self._parameters = decoding, seed, SamplingParams

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        indexes = list(range(len(lengths)))
        return [indexes[start : start + _BATCH] for start in range(0, len(indexes), _BATCH)]

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
            outputs = self._llm.generate(inputs, settings, use_tqdm=False, lora_request=self._lora)
            drawn = [output.outputs for output in outputs]
            yield (
                batch,
                [[self._read(prompts[i], one) for one in samples] for i, samples in zip(batch, drawn, strict=True)],
            )

    def _read(self, prompt: list[int], sample: CompletionOutput) -> Generated:
        # Cut when it is whole: vLLM stops no response by what it says.
        cut = cut_thoughts(self._tokenizer, prompt, sample.token_ids, self._decoding.max_thinking_tokens)
        ids = list(sample.token_ids) if cut is None else cut
        cut_off = cut is not None or sample.finish_reason == "length"
        return Generated(response_text(self._tokenizer, prompt, ids), len(ids), cut_off)
