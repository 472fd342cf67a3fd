"""Measures the speed of key-step learning against TRL's DPOTrainer and SFTTrainer on the same pairs.

    python benchmarks/train_speed.py --model outputs/quickstart/student [--data FILE.jsonl]
                                     [--systems dpo sft padded tree] [--tune full|lora|qlora]
                                     [--batch_size 4 --pairs 52 --repeats 3 --device auto --dtype float32]
    python benchmarks/train_speed.py --shape llama-8b --tokenizer PATH --tune qlora --pair_tokens 1024

Systems: `dpo` is TRL's DPOTrainer with precomputed reference log-probabilities, so that it runs one forward pass
per step, as ours does; `sft` is TRL's SFTTrainer on the correct chains, the lower bound per token; `padded`
and `tree` are our layouts; `tree_dense` and `tree_block` are the tree with a dense mask and with
FlexAttention. `--shape` uses random weights of a model's shape. `--pair_tokens N` makes pairs of 2 x N tokens
that share the prompt and half of the chain. Without `--data` and `--pair_tokens` the pairs are procedural.

Every run is a process of its own and uses the trainer's own loop, with the same micro-batches in the same
order. Ours keeps freed memory, as `edit-trl train` does. Systems take turns, and medians over the repeats are
reported. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inputs import count, read_columns, run_benchmark
from machine import cpu_name

SYSTEMS = ("dpo", "sft", "padded", "tree", "tree_dense", "tree_block")
SHAPES = {
    "smollm2-135m": (576, 1536, 30, 9, 3),
    "llama-7b": (4096, 11008, 32, 32, 32),
    "llama-8b": (4096, 14336, 32, 32, 8),
}
WARM_UP_STEPS = 2
RESULT = "RESULT "


def read_rows(args: argparse.Namespace) -> list[dict]:
    """The pairs, as many as asked for."""
    if args.data:
        sides = ("prompt", "chosen", "rejected")
        rows = read_columns(args.data, dict.fromkeys(sides, str | list[dict[str, Any]]))
        rows = [{side: row[side] for side in sides} for row in rows]
    elif args.pair_tokens:
        rows = made_up_rows(args)
    else:
        from edit_trl import ProceduralTeacher, generate_dual_cots

        made = generate_dual_cots(ProceduralTeacher(seed=0), args.pairs, conversational=True)
        rows = made.select_columns(["prompt", "chosen", "rejected"]).to_list()
    if args.max_length:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.model)
        rows = [row for row in rows if longest_chain(row, tokenizer) <= args.max_length]
    return rows[: args.pairs]


def longest_chain(row: dict, tokenizer) -> int:
    """The number of tokens of the prompt and the longer chain."""
    from edit_trl.data.tokenization import tokenize_dual_cot

    pair = tokenize_dual_cot(row, tokenizer)
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


def made_up_rows(args: argparse.Namespace) -> list[dict]:
    """Pairs of `pair_tokens` tokens per side: a quarter is the prompt, and half of each chain is shared."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
    words = [token[1:] for token in tokenizer.get_vocab() if re.fullmatch(r"[Ġ▁][a-z]{3,}", token)]
    rng = random.Random(0)
    prompt, shared = args.pair_tokens // 4, args.pair_tokens * 3 // 8

    def text(tokens: int) -> str:
        return " ".join(rng.choices(words, k=tokens))

    rows = []
    for _ in range(args.pairs):
        beginning = text(shared)
        ends = [text(args.pair_tokens - prompt - shared) for _ in range(2)]
        rows.append(
            {"prompt": text(prompt)}
            | {side: f" {beginning} {end}" for side, end in zip(("chosen", "rejected"), ends, strict=True)}
        )
    return rows


def shape_config(name: str):
    """A Llama of this shape, without the vocabulary of a tokenizer."""
    from transformers import LlamaConfig

    hidden, inner, layers, heads, key_heads = SHAPES[name]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
    )


def save_shape(config, tokenizer: str, folder: Path, four_bit: bool = False) -> None:
    """Save a Llama with random weights in bfloat16, and a tokenizer.

    All layers have the same weights: speed and memory do not depend on them, and 8 billion random numbers take minutes.

    Args:
        config: A `LlamaConfig`; its vocabulary becomes at least that of the tokenizer.
        tokenizer: Its folder or Hub id.
        folder: The folder to save to.
        four_bit: Whether the weights are saved in NF4: a third of the size, and loaded in a third of the time.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    config.vocab_size = max(config.vocab_size, len(words))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    drawn: dict[tuple[int, ...], Any] = {}
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:  # of a norm
            weights[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        if shape not in drawn:
            drawn[shape] = torch.randn(shape, dtype=torch.bfloat16) * config.initializer_range
        # Those in four bits are other tensors as soon as they are quantized; saving refuses tensors that are shared.
        weights[name] = drawn[shape] if four_bit and "layers" in name else drawn[shape].clone()
    options: dict[str, Any] = {"quantization_config": nf4()} if four_bit else {}
    model = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.bfloat16, use_safetensors=True, **options
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def nf4():
    """The quantization of QLoRA."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


# --- One run, in a process of its own ----------------------------------------------------------


def make_trainer(args: argparse.Namespace, system: str, rows: list[dict], folder: str):
    """The trainer of a system, with the same model, rows and batches as those of the other systems."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from edit_trl import DualCoTConfig, DualCoTTrainer

    attention = "flex_attention" if system == "tree_block" else "sdpa"
    dtype = getattr(torch, args.dtype)
    options = {
        "output_dir": folder,
        "per_device_train_batch_size": args.batch_size,
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "gradient_checkpointing": args.gradient_checkpointing,
        "use_cpu": args.device == "cpu",
        "bf16": False,
        "dataloader_drop_last": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": dtype, "attn_implementation": attention},
    }
    if args.tune == "qlora":
        options["model_init_kwargs"]["quantization_config"] = nf4()
    common = {
        "model": str(args.model),
        "processing_class": AutoTokenizer.from_pretrained(args.model),
        "peft_config": None
        if args.tune == "full"
        else LoraConfig(r=args.lora_r, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    }
    if system == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        config = SFTConfig(**options, shuffle_dataset=False)
        return SFTTrainer(args=config, train_dataset=Dataset.from_list(rows), **common)
    dataset = Dataset.from_list(rows)
    if system == "dpo":
        config = DPOConfig(**options, precompute_ref_log_probs=True)
        return DPOTrainer(args=config, train_dataset=dataset, **common)
    layout = "padded" if system == "padded" else "tree"
    trainer = DualCoTTrainer(args=DualCoTConfig(**options, layout=layout), train_dataset=dataset, **common)
    if system == "tree_dense":
        from edit_trl.models.pairs.tree_attention import TreeAttention

        trainer.score_pairs.tree = TreeAttention(trainer.model, kind="dense")
    return trainer


def run_system(args: argparse.Namespace, system: str) -> dict[str, float]:
    """Train one epoch; returns the speed, the peak memory and the share of time outside the model."""
    import torch
    from transformers import TrainerCallback

    from edit_trl.common.malloc import keep_freed_memory

    if system not in ("dpo", "sft"):
        keep_freed_memory()  # as `edit-trl train` does; TRL's commands do not
    held = 0
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()  # by an earlier run of this process
    rows = read_rows(args)
    parts = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    steps: list[dict[str, float]] = []
    tokens = 0

    def timed(name, function):
        def call(*arguments, **options):
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                parts[name] += time.perf_counter() - started

        return call

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.last, self.parts = time.perf_counter(), dict(parts)

        def on_step_end(self, *_, **__):
            if args.device != "cpu":
                torch.cuda.synchronize()
            now = time.perf_counter()
            spent = {name: parts[name] - self.parts[name] for name in parts}
            steps.append({"step": now - self.last} | spent)
            self.last, self.parts = now, dict(parts)

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, system, rows, folder)
        trainer.add_callback(Clock())
        trainer.model.forward = timed("forward", trainer.model.forward)
        trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
        trainer.accelerator.clip_grad_norm_ = timed("optimizer", trainer.accelerator.clip_grad_norm_)
        create = trainer.create_optimizer

        def create_optimizer(*arguments, **options):
            optimizer = create(*arguments, **options)
            optimizer.step = timed("optimizer", optimizer.step)
            return optimizer

        trainer.create_optimizer = create_optimizer
        prepare = trainer._prepare_inputs

        def counting(batch):
            nonlocal tokens
            if len(steps) >= WARM_UP_STEPS:
                layout = batch.get("layout")
                tokens += layout.tokens[1] if layout else int(batch["attention_mask"].sum())
            return prepare(batch)

        trainer._prepare_inputs = counting
        trainer.train()
        check_layout(trainer, system)
    measured = steps[WARM_UP_STEPS:]
    seconds = sum(step["step"] for step in measured)
    inside = sum(step[name] for step in measured for name in parts)
    if args.device == "cpu":
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        memory = (torch.cuda.max_memory_allocated() - held) / 2**30
    return {
        "pairs_per_second": len(measured) * args.batch_size / seconds,
        "tokens_per_second": tokens / seconds,
        "seconds_per_step": seconds / len(measured),
        "overhead": 1 - inside / seconds,
        "peak_memory_gib": memory,
    }


def check_layout(trainer, system: str) -> None:
    """Refuse a run of the tree layout that has fallen back to the padded one."""
    if system.startswith("tree") and (reason := trainer.score_pairs.given_up):
        raise RuntimeError(reason)


def gradient_difference(args: argparse.Namespace, tree_system: str = "tree") -> dict[str, float]:
    """The largest difference between the gradients of a tree and padded, over the largest gradient."""
    import torch

    torch.manual_seed(0)
    gradients = []
    for system in ("padded", tree_system):
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(args, system, read_rows(args)[: args.batch_size], folder)
            trainer.model.eval()  # no dropout
            if args.tune != "full":
                generator = torch.Generator().manual_seed(0)
                for name, parameter in trainer.model.named_parameters():
                    if "lora_B" in name:  # zero at the start, which would hide the gradients of lora_A
                        noise = torch.randn(parameter.shape, generator=generator) * 0.01
                        parameter.data.copy_(noise)
            batch = next(iter(trainer.get_train_dataloader()))
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
            check_layout(trainer, system)
            named = trainer.model.named_parameters()
            gradients.append({name: p.grad.float().cpu() for name, p in named if p.grad is not None})
    padded, tree = gradients
    largest = max(gradient.abs().max() for gradient in padded.values())
    difference = max((padded[name] - tree[name]).abs().max() for name in padded)
    return {"gradient_difference": (difference / largest).item()}


# --- All runs ----------------------------------------------------------------------------------


def in_a_process(argv: list[str], job: str) -> dict[str, float]:
    command = [sys.executable, __file__, *argv, "--job", job]
    environment = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not results:
        raise SystemExit(f"{job} failed:\n{done.stderr[-4000:]}")
    return json.loads(results[0].removeprefix(RESULT))


def measure(args: argparse.Namespace, argv: list[str]) -> dict[str, dict[str, float]]:
    runs: dict[str, list[dict[str, float]]] = {system: [] for system in args.systems}
    for repeat in range(args.repeats):
        for system in args.systems:
            runs[system].append(in_a_process(argv, system))
            rate = runs[system][-1]["pairs_per_second"]
            print(f"repeat {repeat + 1}: {system} {rate:.3f} pairs/s", file=sys.stderr, flush=True)
    return {
        system: {name: statistics.median(run[name] for run in results) for name in results[0]}
        for system, results in runs.items()
    }


def print_table(systems: dict[str, dict[str, float]]) -> None:
    peer = systems.get("dpo", {}).get("pairs_per_second")
    print(f"{'system':<12}{'pairs/s':>10}{'x dpo':>8}{'tokens/s':>10}{'s/step':>9}{'overhead':>10}{'GiB':>7}")
    for name, row in systems.items():
        ratio = f"{row['pairs_per_second'] / peer:.2f}" if peer else "-"
        print(
            f"{name:<12}{row['pairs_per_second']:>10.3f}{ratio:>8}{row['tokens_per_second']:>10.0f}"
            f"{row['seconds_per_step']:>9.3f}{row['overhead']:>10.1%}{row['peak_memory_gib']:>7.2f}"
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of --model")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, for --shape")
    parser.add_argument("--data", type=Path, help="JSON Lines of dual CoTs")
    parser.add_argument("--pair_tokens", type=count, help="made-up pairs of this many tokens per side")
    parser.add_argument("--max_length", type=count, help="leave out pairs with a chain of more tokens than this")
    parser.add_argument("--pairs", type=count, default=52)
    parser.add_argument("--batch_size", type=count, default=4, help="pairs per batch")
    parser.add_argument("--tune", choices=("full", "lora", "qlora"), default="lora")
    parser.add_argument("--lora_r", type=count, default=64, help="rank of the adapters")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["dpo", "sft", "padded", "tree"])
    parser.add_argument("--repeats", type=count, default=3, help="interleaved repeats; medians are reported")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.model is None) == (args.shape is None):
        parser.error("give --model or --shape")
    if args.shape and not args.tokenizer:
        parser.error("--shape needs --tokenizer")
    if args.pairs < (WARM_UP_STEPS + 1) * args.batch_size:
        parser.error(f"--pairs must be at least {WARM_UP_STEPS + 1} batches")
    return args


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.job or args.device != "cpu":
        import torch

        if args.device == "auto":
            args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.job:
        result = gradient_difference(args) if args.job == "gradients" else run_system(args, args.job)
        print(RESULT + json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            save_shape(shape_config(args.shape), args.tokenizer, Path(folder), args.tune == "qlora")
            argv = [*without(argv, "--shape", "--tokenizer"), "--model", folder]
        systems = measure(args, argv)
        gradients = in_a_process(argv, "gradients")
    print_table(systems)
    print(f"gradients, tree against padded: {gradients['gradient_difference']:.1e} of the largest apart")
    device = cpu_name()
    if args.device == "cuda":
        device = torch.cuda.get_device_name()
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    print(
        json.dumps(
            {
                "benchmark": "train_speed",
                "arguments": {name: str(value) for name, value in vars(args).items() if value is not None},
                "systems": systems,
                **gradients,
                "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
                "machine": {"device": device, "cores": os.cpu_count()},
            }
        )
    )


def without(argv: list[str], *options: str) -> list[str]:
    """The arguments without some options and their values."""
    rest = list(argv)
    for option in options:
        if option in rest:
            position = rest.index(option)
            del rest[position : position + 2]
    return rest


if __name__ == "__main__":
    run_benchmark(main)
