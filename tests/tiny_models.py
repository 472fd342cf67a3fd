"""Tiny models of many architectures, made from a configuration."""

from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TINY = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


# GPT-NeoX and Phi-3 have no size of a head of their own.
WITHOUT_HEAD_DIM = {name: value for name, value in TINY.items() if name != "head_dim"}

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

# The pairs have 60 to 110 tokens.
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

GEMMA = TINY | WINDOWS


def gemma_3_with_vision() -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=GEMMA, vision_config=vision, image_token_index=399, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY)),
    "qwen2_windows": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY, **WINDOWS, use_sliding_window=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY)),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**TINY, sliding_window=16)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "gemma3_vision": gemma_3_with_vision,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**WITHOUT_HEAD_DIM, sliding_window=16)),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**TINY)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**TINY)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WITHOUT_HEAD_DIM)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TINY, num_local_experts=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, **NO_DROPOUT)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**GEMMA, num_local_experts=4)),
}
