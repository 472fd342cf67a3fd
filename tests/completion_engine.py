"""`/completions` as vLLM answers it, with a tiny model in this process."""

import json

import torch
from conftest import byte_level_tokenizer, tiny_llama


class Engine:
    """`/completions` as vLLM has it, with a model in this process."""

    def __init__(self, change=lambda choice: choice):
        self.model, self.tokenizer, self.change = tiny_llama().eval(), byte_level_tokenizer(), change

    @torch.no_grad()
    def __call__(self, body: dict) -> str:
        ids, written = body["prompt"], []
        while len(written) < body["max_tokens"] and self.tokenizer.eos_token_id not in written:
            logits = self.model(input_ids=torch.tensor([ids + written])).logits[0]
            written.append(logits[-1].argmax().item())
        ended = self.tokenizer.eos_token_id in written
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(written, skip_special_tokens=True),
            "finish_reason": "stop" if ended else "length",
        }
        if body.get("echo"):
            choice["logprobs"] = self.logprobs(ids + written)
        return json.dumps({"object": "text_completion", "choices": [self.change(choice)]})

    def logprobs(self, ids: list[int]) -> dict:
        logps = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        texts = [self.tokenizer.decode([token]) for token in ids]
        tops = [None]
        for place, token in enumerate(ids[1:]):
            best = logps[place].argmax().item()
            # The token itself comes too, where it is not the best.
            tops.append({texts[place + 1]: logps[place, token].item()})
            tops[-1][self.tokenizer.decode([best])] = logps[place, best].item()
        return {
            "tokens": texts,
            "token_logprobs": [None, *(logps[n, token].item() for n, token in enumerate(ids[1:]))],
            "top_logprobs": tops,
        }
