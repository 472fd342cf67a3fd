"""Responses drawn by vLLM, where it is installed: it loads the model and batches by itself.

Read in vllm 0.11: `LLM.generate`, `LLM.get_tokenizer`, `SamplingParams`, `LoRARequest`, `CompletionOutput`, whose
`token_ids` end with the EOS token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from transformers import GenerationConfig

from edit_trl.models.adapters import adapter_base
from edit_trl.models.decoding import Decoding, Generated, check_batching
from edit_trl.models.folders import one_line_errors
from edit_trl.models.generation import batch_seed
from edit_trl.models.loading import check_student
from edit_trl.models.responses import ResponseReader, eos_ids_of

# Prompts per batch: enough to keep vLLM busy, and what a killed run may lose.
_BATCH = 256


def vllm_is_faster() -> bool:
    """Whether vLLM is installed and has a GPU to run on."""
    return find_spec("vllm") is not None and torch.cuda.is_available()


class VllmEngine(ResponseReader):
    """Draws responses from a model that vLLM loads; it batches by itself, and computes a common prompt once.

    Args:
        model: A path or Hub id, of a model or of a PEFT adapter, which vLLM applies by itself.
        dtype: Dtype of the weights.
        seed: The seed of what is drawn without one.

    Raises:
        InputError: vLLM is not installed, it cannot load the model, or there is no EOS token.
    """

    def __init__(self, model: str, *, dtype: str = "auto", seed: int = 0):
        check_batching("vllm", None)
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        base = adapter_base(model)
        check_student(model)
        self._lora = LoRARequest("student", 1, model) if base else None
        with one_line_errors(f"`model: {model}`"):  # vLLM refuses a model of which weights are missing
            self._llm = LLM(base or model, dtype=dtype, seed=seed, enable_lora=base is not None)
        self._parameters = SamplingParams
        tokenizer = self._llm.get_tokenizer()
        super().__init__(tokenizer, eos_ids_of(_settings_of(base or model), tokenizer))
        self.pad_id = tokenizer.pad_token_id
        self.positions: int | None = self._llm.llm_engine.model_config.max_model_len

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        seeds: Sequence[int | None],
        stop: Sequence[str] = (),
    ) -> list[list[int]]:
        """Draw one response for each prompt; see `edit_trl.models.generation.Engine.generate`.

        Args:
            prompts: Token ids of each prompt.
            decoding: How responses are drawn; its `samples` are ignored.
            seeds: The seed of each response; None for vLLM's own.
            stop: Texts that end a response.

        Returns:
            The new token ids of each response, in the order of the prompts, with the EOS token.
        """
        settings = [
            self._parameters(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.max_new_tokens,
                seed=seed,
                stop=list(stop) or None,
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, settings, use_tqdm=False, lora_request=self._lora)
        return [list(output.outputs[0].token_ids) for output in outputs]


class VllmGenerator:
    """The `Generator` of a model that vLLM loads.

    Args:
        engine: The model.
        decoding: How responses are drawn.
        seed: The seed of sampling.
    """

    batching = "vllm"

    def __init__(self, engine: VllmEngine, decoding: Decoding, *, seed: int = 0):
        self.engine, self._decoding, self._seed = engine, decoding, seed

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """See `edit_trl.models.decoding.Generator.plan`."""
        indexes = list(range(len(lengths)))
        return [indexes[start : start + _BATCH] for start in range(0, len(indexes), _BATCH)]

    def run(
        self, prompts: Sequence[list[int]], batches: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], list[list[Generated]]]]:
        """See `edit_trl.models.decoding.Generator.run`."""
        size = self._decoding.samples
        read = partial(self.engine.generated, decoding=self._decoding)
        for batch in batches:
            drawn_for = [prompts[index] for index in batch for _ in range(size)]
            seeds = [batch_seed(self._seed, [sample, *prompts[index]]) for index in batch for sample in range(size)]
            # Thoughts are cut when a response is whole: vLLM stops no response by what it says.
            samples = list(map(read, drawn_for, self.engine.generate(drawn_for, self._decoding, seeds=seeds)))
            yield batch, [samples[start : start + size] for start in range(0, len(samples), size)]


def _settings_of(model: str) -> GenerationConfig:
    """Return the generation settings that a model was saved with, if any."""
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return GenerationConfig()
