"""A real student that is trained in seconds and slips: a switch that is flipped, kept or held."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import CHAT_TEMPLATE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UPDATES = 220
# Of the switch: kept or flipped once to four times, then held.
ALL_TURNS = [
    [*turns, *["hold"] * (4 - count)]
    for count in range(1, 5)
    for turns in itertools.product(("keep", "flip"), repeat=count)
]


def toy_problem(turns: Sequence[str], rng: random.Random | None = None) -> tuple[str, str, str]:
    """A switch that is flipped, kept or held: question, chain, answer; slips are drawn, and carried on.

    Nobody slips where it is held.
    """
    states, truth = [False], False
    for turn in turns:
        truth ^= turn == "flip"
        slip = rng is not None and turn != "hold" and rng.random() < 0.25
        states.append(states[-1] ^ (turn == "flip") ^ slip)
    steps = [
        f"{_word(before)}, {turn}: {_word(after)}."
        for before, turn, after in zip(states, turns, states[1:], strict=False)
    ]
    conclusion = f"#### {_word(states[-1])}"
    return f"{', '.join(turns)}?", " ".join([*steps, conclusion]), _word(truth)


def _word(state: bool) -> str:
    return "on" if state else "off"


def toy_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "keep", "flip", "hold"]
    words += ["on", "off", "####"]
    words += [*",.:? \n"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s|#+|[^\w\s]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_toy_student(folder: Path) -> Path:
    """Save a Llama of 80 thousand parameters that is trained here on chains with slips."""
    torch.manual_seed(0)
    rng, tokenizer = random.Random(0), toy_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, bos_token_id=None, **sizes)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, UPDATES, pct_start=0.1)
    for _ in range(UPDATES):
        rows = []
        for _ in range(32):
            question, chain, _ = toy_problem(rng.choice(ALL_TURNS), rng)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            rows.append([tokenizer(text)["input_ids"] for text in (prompt, f"{chain}<|im_end|>")])
        longest = max(len(prompt) + len(chain) for prompt, chain in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for number, (prompt, chain) in enumerate(rows):
            ids[number, : len(prompt) + len(chain)] = torch.tensor(prompt + chain)
            labels[number, len(prompt) : len(prompt) + len(chain)] = torch.tensor(chain)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_question_file(path: Path, first: int = 0, last: int | None = None) -> Path:
    """Write some of the 30 questions, with their answers."""
    problems = [toy_problem(turns) for turns in ALL_TURNS[first:last]]
    path.write_text("".join(json.dumps({"question": question, "answer": a}) + "\n" for question, _, a in problems))
    return path
