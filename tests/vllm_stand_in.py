"""A thin stand-in of vLLM's engine, which cannot be installed everywhere: `LLM`, `SamplingParams` and `LoRARequest`.

It takes what vllm 0.11 documents, and answers with the model itself through transformers.
"""

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

from edit_trl.models.decoding import Decoding
from edit_trl.models.generation import Engine
from edit_trl.models.loading import ModelSource


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    stop: list[str] | None = None


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Answers one prompt at a time; `asked` has the parameters of each, and the adapter it was asked with."""

    made: ClassVar["list[LLM]"] = []

    def __init__(self, model: str, *, dtype: str = "auto", seed: int = 0, enable_lora: bool = False):
        self.model, self.enable_lora, self.asked = model, enable_lora, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))
        self._engines = {}
        self.made.append(self)

    def get_tokenizer(self):
        return ModelSource(self.model).load_tokenizer()

    def generate(self, prompts, sampling_params, *, use_tqdm=True, lora_request=None):
        assert lora_request is None or self.enable_lora
        path = lora_request.lora_path if lora_request else self.model
        if path not in self._engines:
            self._engines[path] = Engine(*ModelSource(path).load())
        engine = self._engines[path]
        outputs = []
        for prompt, settings in zip(prompts, sampling_params, strict=True):
            self.asked.append((settings, lora_request))
            decoding = Decoding(settings.max_tokens, settings.temperature, settings.top_p)
            ids = prompt["prompt_token_ids"]
            (response,) = engine.generate([ids], decoding, seeds=[settings.seed or 0], stop=settings.stop or ())
            kept, ended = engine.split_at_eos(response)
            completion = SimpleNamespace(
                token_ids=response[: len(kept) + ended], finish_reason="stop" if ended else "length"
            )
            outputs.append(SimpleNamespace(outputs=[completion]))
        return outputs


def install(monkeypatch) -> type[LLM]:
    """Let `import vllm` find the stand-in, and return its engine."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    modules["vllm"].LLM, modules["vllm"].SamplingParams = LLM, SamplingParams
    modules["vllm.lora.request"].LoRARequest = LoRARequest
    monkeypatch.setattr(LLM, "made", [])
    return LLM
