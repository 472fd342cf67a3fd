"""Tiny models that have learnt responses with thoughts by heart, and tokenizers whose tokens mark the thoughts."""

import torch
from conftest import byte_level_tokenizer, tiny_llama
from tokenizers import AddedToken
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MARKERS = {
    "think": ["<think>", "</think>"],
    "mistral": ["[THINK]", "[/THINK]"],
    "gpt_oss": ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"],
    "gemma_4": ["<|channel>", "<channel|>"],
}


def thinking_tokenizer(markers: str, *, special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each of a model family's markers."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken(marker, special=special) for marker in MARKERS[markers]])
    return tokenizer


def taught(tokenizer: PreTrainedTokenizerFast, answers: dict[str, str], steps: int = 80) -> LlamaForCausalLM:
    """A model that answers each prompt with a response and EOS."""
    model = tiny_llama(len(tokenizer), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    encoded = [
        (tokenizer(prompt)["input_ids"], [*tokenizer(response)["input_ids"], tokenizer.eos_token_id])
        for prompt, response in answers.items()
    ]
    for _ in range(steps):
        for prompt, response in encoded:
            ids, labels = torch.tensor([prompt + response]), torch.tensor([[-100] * len(prompt) + response])
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
