"""Good inputs of every command, made once: each case gets a copy and breaks something.

student/, adapter/                  a tiny Llama with its tokenizer, and a LoRA adapter of it
rows.jsonl, q.jsonl, t.yaml         dual CoTs, questions, a task file
run_a/, run_b/, suite_a/, suite_b/  finished runs of evaluate and suite
trained/, generated/, judged/       what train, generate and judge have written
history.sqlite                      the two runs of evaluate
COMMAND.yaml                        a recipe of train, generate, evaluate, suite and judge
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robustness_cases import child
from robustness_cases.endpoint import Endpoint, solve

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    {
        "prompt": f"What is {n} + 1?\n",
        "chosen": f"One more than {n} is {n + 1}. Therefore, the answer is {n + 1}.",
        "rejected": f"One more than {n} is {n + 3}. Therefore, the answer is {n + 3}.",
        "answer": str(n + 1),
        "id": f"row{n}",
        "task": "sums",
    }
    for n in range(4)
]
QUESTIONS = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "id": f"q{n}"} for n in range(6)]

ENDPOINT = {"model": "m", "base_urls": ["@URL@"], "api_key_env": None}
RECIPES: dict[str, dict[str, Any]] = {
    "train": {
        "model_name_or_path": "student",
        "dataset_name": "rows.jsonl",
        "output_dir": "out",
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 3,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "logging_steps": 1,
    },
    "generate": ENDPOINT | {"dataset_name": "q.jsonl", "output_dir": "out", "max_attempts": 2},
    "evaluate": {"model": "student", "tasks": ["t.yaml"], "max_new_tokens": 4, "history": None, "output_dir": "out"},
    "suite": {
        "model": "student",
        "dataset_name": "rows.jsonl",
        "max_new_tokens": 4,
        "history": None,
        "output_dir": "out",
    },
    "judge": ENDPOINT | {"runs": ["run_a", "run_b"], "output_dir": "out", "max_attempts": 2},
}


def recipe(command: str, **changes: Any) -> str:
    """The recipe of a command as text, a line for each option, with changes; `...` leaves an option out."""
    values = {name: value for name, value in (RECIPES[command] | changes).items() if value is not ...}
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())


def lines(rows: list[dict[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_material(folder: Path) -> None:
    """Make everything in a folder; needs `child.warm_up`."""
    folder.mkdir()
    _in_a_child(lambda: _make_models(folder))
    for command in RECIPES:
        (folder / f"{command}.yaml").write_text(recipe(command), encoding="utf-8")
    (folder / "rows.jsonl").write_text(lines(ROWS), encoding="utf-8")
    (folder / "q.jsonl").write_text(lines(QUESTIONS), encoding="utf-8")
    (folder / "t.yaml").write_text("dataset_name: q.jsonl\nanswer_type: number\n")
    _in_a_child(lambda: _make_runs(folder))
    with Endpoint(solve) as endpoint:
        _run(folder, "train", "--config", "train.yaml", "--output_dir", "trained")
        for command, output in (("generate", "generated"), ("judge", "judged")):
            _run(folder, command, "--config", f"{command}.yaml", "--output_dir", output, "--base_urls", endpoint.url)
    for path in folder.rglob("*"):  # for commands without the rights of root; weights are saved for their owner alone
        path.chmod(0o777 if path.is_dir() else 0o666)


def _in_a_child(make) -> None:
    """Use torch in a process of its own: commands are forked from one that has no threads."""
    process = os.fork()
    if not process:
        child.finish(lambda: make() or 0)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the material could not be made; see the log")


def _run(folder: Path, *words: str) -> None:
    place = folder.parent / f"made-{words[0]}"
    place.mkdir()
    (place / "typed").touch()
    code = child.wait(child.start(words, folder, place, nobody=False), 120)
    if code:
        raise RuntimeError(f"edit-trl {' '.join(words)}: exit code {code}\n{(place / 'err').read_text()[-2000:]}")


def _make_models(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    learnt.train_from_iterator([json.dumps(ROWS)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learnt, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=256
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=2, pad_token_id=0, bos_token_id=None))
    model.save_pretrained(folder / "student")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = "student"
    adapted.save_pretrained(folder / "adapter")
    for name in ("student", "adapter"):
        tokenizer.save_pretrained(folder / name)


def _make_runs(folder: Path) -> None:
    from edit_trl.evaluation.runs.history import record_run

    for name, right in (("run_a", (True, True, False, True)), ("run_b", (True, False, False, True))):
        items = [_item(number, "correct" if one else "wrong") for number, one in enumerate(right)]
        record_run(_finish_run(folder / name, "evaluate", items), folder / "history.sqlite")
    for name, margins in (("suite_a", (1.0, -1.0)), ("suite_b", (1.0, 2.0))):
        _finish_run(folder / name, "suite", [_pair(number, margin) for number, margin in enumerate(margins)])


def _finish_run(path: Path, kind: Any, items: list[dict[str, Any]]):
    from edit_trl.evaluation.runs.folder import RunFolder
    from edit_trl.evaluation.runs.schema import RunRecord, key_of
    from edit_trl.evaluation.runs.scores import run_scores

    settings = {"decoding": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "samples": 1}}
    record = RunRecord(kind, path.name, "student", "m1", settings, {"sums": "1"}, "d1")
    folder = RunFolder(path, record)
    folder.append(items)
    return folder.finish([key_of(item) for item in items], *run_scores(items, kind))


def _item(number: int, verdict: str) -> dict[str, Any]:
    value = str(number + (1 if verdict == "correct" else 3))
    graded = {"verdict": verdict, "value": value, "lenient_verdict": verdict, "lenient_value": value}
    sample = graded | {"response": f"The answer is {value}.", "span": None, "lenient_span": None}
    return graded | {
        "task": "sums",
        "id": str(number),
        "prompt": f"What is {number} + 1?",
        "answer": str(number + 1),
        "answer_type": "number",
        "mistake": None,
        "source": None,
        "cut_off": 0,
        "samples": [sample | {"cut_off": False, "tokens": 5}],
    }


def _pair(number: int, margin: float) -> dict[str, Any]:
    logps = {"chosen": margin - 2.0, "rejected": -2.0, "chosen_key": None, "rejected_key": None}
    return {
        "task": "sums",
        "id": str(number),
        "prompt": f"What is {number} + 1?",
        "chosen": "1 + 1 = 2",
        "rejected": "1 + 1 = 3",
        "answer": "2",
        "mistake": None,
        "source": None,
        "logps": logps,
        "margin": margin,
        "chosen_key_spans": [[8, 9]],
        "rejected_key_spans": [[8, 9]],
        "preferred": margin > 0,
        "key_margin": None,
        "key_preferred": None,
        "first_wrong": None,
        "greedy": None,
        "tokens": {"chosen": [], "rejected": []},
    }
