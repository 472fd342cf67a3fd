"""Checks on one GPU, in under 8 minutes, everything that this project claims for a GPU: one table, with the bars.

    python benchmarks/gpu_check.py [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--output FILE] [--only PART ...]
    python benchmarks/gpu_check.py --rehearse          # all parts with tiny shapes on a CPU; the figures mean nothing

Parts, in the order in which they run:

- `gradients`: the gradients of the tree against those of padded batches, of the student in float32.
- `agreement`: the log-probabilities of both layouts of the student in bfloat16.
- `student`: a real QLoRA run of the student on procedural pairs, to a falling loss.
- `answers`: answers per second by engine.
- `7b`: the peak memory of QLoRA (NF4, LoRA r 64) of a 7B shape with one pair of 2 x 1024 tokens.
- `8b`: pairs per second and peak memory of QLoRA of an 8B shape with one pair per batch, against TRL's DPOTrainer
  (precomputed reference, so one forward pass per step) and SFTTrainer (the correct chains alone).

The shapes have random weights. Each part is a process of its own. What cannot be measured is a row that says why: too
little memory, a package that is not installed, no time left. The estimate is that of `edit-trl train --dry_run` without
the CUDA context. The last line is one JSON object.
"""

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import memory_check
import train_speed
from inputs import count, run_benchmark
from machine import cpu_name

DPO_BAR = 1.7  # times the pairs per second of TRL's DPOTrainer
MEMORY_BAR = 8.0  # GB, of a pair of 2 x 1024 tokens at the 7B shape
ESTIMATE_BAR = 0.15
GRADIENT_BAR = 1e-4  # of the largest gradient
AGREEMENT_BAR = 0.1  # nats per token; as `edit_trl.models.pairs.scoring` demands of a run

SYSTEMS = {
    "dpo": "TRL DPO",
    "sft": "TRL SFT",
    "padded": "padded",
    "tree": "tree, SDPA",
    "tree_block": "tree, FlexAttention",
    "tree_dense": "tree, dense mask",
}
TREES = ("tree", "tree_block", "tree_dense")
ENGINES = {"padded": "ours", "continuous": "continuous", "vllm": "vllm"}  # with the names of evaluate_speed.py
ROW = "ROW "


@dataclass(frozen=True)
class Scale:
    """How large the measurements are.

    Attributes:
        device: `cuda` or `cpu`.
        shapes: Options of `LlamaConfig` by the name of the shape.
        tokens: Tokens of a chain, by importance; the first is that of the 7B shape.
        lora_r: Rank of the adapters.
        pairs: Pairs per run at a shape, one per step; the first two are a warm-up.
        student_pairs: Pairs of the student's QLoRA run, 4 per step.
        questions: Questions that each engine answers.
        max_new_tokens: Tokens of an answer.
    """

    device: str
    shapes: dict[str, Any]
    tokens: tuple[int, ...]
    lora_r: int
    pairs: int
    student_pairs: int
    questions: int
    max_new_tokens: int


@dataclass
class Row:
    """One row of the table.

    Attributes:
        part: The part that it belongs to.
        name: What is measured.
        value: The measurement in words; empty where there is none.
        bar: What is demanded of it, in words; empty where nothing is.
        holds: Whether it does what is demanded; None where nothing is, or there is no measurement.
        problem: Why there is no measurement.
        figures: The numbers.
    """

    part: str
    name: str
    value: str = ""
    bar: str = ""
    holds: bool | None = None
    problem: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def full_scale() -> Scale:
    """The scale on a GPU."""
    shapes = {name: memory_check.shape_config(name) for name in ("7b", "8b")}
    return Scale("cuda", shapes, (1024, 512, 2048), 64, 5, 96, 128, 128)


def rehearsal() -> Scale:
    """The scale of a rehearsal."""
    from transformers import LlamaConfig

    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny |= {"num_key_value_heads": 2, "vocab_size": 300, "architectures": ["LlamaForCausalLM"]}
    shapes = {name: LlamaConfig(**tiny) for name in ("7b", "8b")}
    return Scale("cpu", shapes, (32, 16), 4, 3, 24, 4, 8)


# --- The parts ---------------------------------------------------------------------------------

# A part maps the names of its rows to the functions that measure them. A function returns the row, without its name.
Checks = dict[str, Callable[[], Row]]


def gradient_checks(scale: Scale, model: str, folder: Path) -> Checks:
    """Of all weights of the student, in float32."""

    def check(system: str) -> Row:
        words = ["--model", model, "--tune", "full", "--device", scale.device, "--batch_size", "2", "--pairs", "6"]
        difference = train_speed.gradient_difference(train_speed.parse_args(words), system)["gradient_difference"]
        return Row(
            "gradients",
            "",
            f"{difference:.1e} of the largest gradient apart",
            f"at most {GRADIENT_BAR:.0e}",
            difference <= GRADIENT_BAR,
            figures={"difference": difference},
        )

    return {f"{SYSTEMS[system]} against padded": partial(check, system) for system in TREES[:2]}


def agreement_checks(scale: Scale, model: str, folder: Path) -> Checks:
    """Of the log-probabilities of pairs, in bfloat16; the padded layout in float32 shows what bfloat16 costs."""
    import torch
    from accelerate.utils import send_to_device
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edit_trl import DualCoTCollator, ProceduralTeacher, generate_dual_cots
    from edit_trl.data.tokenization import tokenize_dual_cot
    from edit_trl.models.pairs.scoring import Layout, make_pair_scorer

    def logps(layout: Layout, attention: str, dtype: torch.dtype) -> torch.Tensor:
        tokenizer = AutoTokenizer.from_pretrained(model)
        rows = generate_dual_cots(ProceduralTeacher(seed=0), 4, conversational=True)
        examples: list[dict[str, Any]] = [{**tokenize_dual_cot(row, tokenizer), "row": 0} for row in rows]
        student: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation=attention, use_safetensors=True
        )
        student = student.to(scale.device).eval()
        collator = DualCoTCollator(tokenizer.pad_token_id)
        scorer = make_pair_scorer(student, collator, layout, check_example=None, with_best=True)
        with torch.no_grad():
            scored = scorer(student, send_to_device(collator(examples), scale.device))
        if scorer.given_up:
            raise RuntimeError(scorer.given_up)
        return torch.cat([scored.chosen, scored.rejected], dim=1)

    def check(layout: Layout, attention: str, dtype: torch.dtype, bar: float | None) -> Row:
        apart = (logps(layout, attention, dtype) - logps("padded", "sdpa", torch.bfloat16)).abs()
        mean = (apart.sum() / (apart > 0).sum().clamp(min=1)).item()
        return Row(
            "agreement",
            "",
            f"{mean:.1e} nats per token apart",
            "" if bar is None else f"at most {bar:g}",
            None if bar is None else mean <= bar,
            figures={"mean_difference": mean, "largest_difference": apart.max().item()},
        )

    return {
        "tree, SDPA against padded": partial(check, "tree", "sdpa", torch.bfloat16, AGREEMENT_BAR),
        "tree, FlexAttention against padded": partial(check, "tree", "flex_attention", torch.bfloat16, AGREEMENT_BAR),
        "float32 against bfloat16, padded": partial(check, "padded", "sdpa", torch.float32, None),
    }


def student_checks(scale: Scale, model: str, folder: Path) -> Checks:
    """A run as a user's: NF4, LoRA, a learning rate that learns."""

    def check() -> Row:
        from peft import LoraConfig

        from edit_trl import DualCoTConfig, DualCoTTrainer, ProceduralTeacher, generate_dual_cots

        config = DualCoTConfig(
            str(folder / "run"),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            learning_rate=5e-4,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=scale.device == "cpu",
            bf16=scale.device != "cpu",
        )
        trainer = DualCoTTrainer(
            model,
            args=config,
            train_dataset=generate_dual_cots(ProceduralTeacher(seed=0), scale.student_pairs, conversational=True),
            quantization_config=train_speed.nf4(),
            peft_config=LoraConfig(r=scale.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        share = max(len(losses) // 4, 1)
        first, last = (sum(part) / share for part in (losses[:share], losses[-share:]))
        layout = trainer.data_collator.layout
        return Row(
            "student",
            "",
            f"loss {first:.3f} -> {last:.3f} in {len(losses)} steps, {seconds:.0f} s, layout {layout}",
            "falls",
            last < first,
            figures={"losses": losses, "seconds": seconds, "layout": layout},
        )

    return {f"QLoRA of {Path(model).name}": check}


def answer_checks(scale: Scale, model: str, folder: Path) -> Checks:
    """Greedy answers to procedural problems."""

    def check(engine: str) -> Row:
        if engine == "vllm" and find_spec("vllm") is None:
            return Row("answers", "", problem="vLLM is not installed")
        answer = vllm_answers() if engine == "vllm" else transformers_answers(ENGINES[engine])
        started = time.perf_counter()
        tokens = answer()
        seconds = time.perf_counter() - started
        rate = scale.questions / seconds
        figures = {"answers_per_second": rate, "tokens_per_second": tokens / seconds}
        return Row("answers", "", f"{rate:.1f} answers/s, {tokens / seconds:.0f} tokens/s", figures=figures)

    def transformers_answers(way: str) -> Callable[[], int]:
        import evaluate_speed

        words = ["--model", model, "--rows", str(scale.questions), "--max_new_tokens", str(scale.max_new_tokens)]
        words += ["--dtype", "float32" if scale.device == "cpu" else "bfloat16", "--ways", way]
        return evaluate_speed.ways_of(evaluate_speed.read_args(words))[way]

    def vllm_answers() -> Callable[[], int]:
        import evaluate_speed
        from transformers import AutoTokenizer

        from edit_trl import ProceduralTeacher, generate_dual_cots
        from edit_trl.evaluation.accuracy.problems import encode, problems_of
        from edit_trl.models.decoding import Decoding
        from edit_trl.models.generation_with_vllm import VllmEngine, VllmGenerator

        rows = generate_dual_cots(
            ProceduralTeacher(evaluate_speed.FAMILIES, seed=1), scale.questions, conversational=True
        )
        tokenizer, tokens = AutoTokenizer.from_pretrained(model), scale.max_new_tokens
        prompts = encode(problems_of(list(rows)), tokenizer, max_new_tokens=tokens, positions=None)
        generator = VllmGenerator(VllmEngine(model, dtype="bfloat16"), Decoding(tokens))
        batches = generator.plan([len(prompt) for prompt in prompts])
        return lambda: sum(one.tokens for _, drawn in generator.run(prompts, batches) for (one,) in drawn)

    return {engine: partial(check, engine) for engine in ENGINES}


def shape_run(scale: Scale, shape: str, system: str, tokens: int, folder: Path) -> dict[str, float]:
    """Run a system at a shape; our layouts also come with `estimate_gib` and `estimate_off`."""
    from transformers import AutoTokenizer

    from edit_trl.data.tokenization import tokenize_dual_cot

    words = ["--model", str(folder), "--tune", "qlora", "--lora_r", str(scale.lora_r), "--dtype", "bfloat16"]
    words += ["--pair_tokens", str(tokens), "--pairs", str(scale.pairs), "--batch_size", "1"]
    args = train_speed.parse_args([*words, "--gradient_checkpointing", "--device", scale.device])
    gc.collect()  # an earlier run in this process
    if scale.device == "cuda":
        import torch

        torch.cuda.empty_cache()
    figures = train_speed.run_system(args, system)
    if system in ("dpo", "sft"):
        return figures
    options = memory_check.QLORA | {"model_name_or_path": str(folder), "per_device_train_batch_size": 1}
    options |= {"lora_r": scale.lora_r, "layout": "padded" if system == "padded" else "tree", "bf16": False}
    options |= {"use_cpu": scale.device == "cpu", "output_dir": str(folder / "out")}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = [{**tokenize_dual_cot(row, tokenizer), "row": 0} for row in train_speed.read_rows(args)[:1]]
    device: Any = scale.device
    parts = memory_check.estimate_of(options, examples, device).parts
    estimate = sum(size for part, size in parts.items() if part != "overhead") / 2**30
    return figures | {"estimate_gib": estimate, "estimate_off": estimate / figures["peak_memory_gib"] - 1}


def saved_shape(scale: Scale, shape: str, model: str, folder: Path) -> Path:
    """The folder of a shape in NF4; made where it is not there yet."""
    path = folder / shape
    if not (path / "config.json").exists():
        train_speed.save_shape(scale.shapes[shape], model, path, four_bit=True)
    return path


def memory_checks(scale: Scale, model: str, folder: Path) -> Checks:
    """One pair at the 7B shape."""

    def check(system: str) -> Row:
        figures = shape_run(scale, "7b", system, scale.tokens[0], saved_shape(scale, "7b", model, folder))
        peak = figures["peak_memory_gib"] * 2**30 / 1e9
        off = figures["estimate_off"]
        return Row(
            "7b",
            "",
            f"{peak:.2f} GB (estimate {off:+.0%})",
            f"under {MEMORY_BAR:g} GB, estimate within {ESTIMATE_BAR:.0%}",
            peak < MEMORY_BAR and abs(off) <= ESTIMATE_BAR,
            figures=figures,
        )

    return {f"2 x {scale.tokens[0]} {SYSTEMS[system]}": partial(check, system) for system in TREES[:2]}


def speed_checks(scale: Scale, model: str, folder: Path) -> Checks:
    """Pairs per second and peak memory at the 8B shape."""
    runs: dict[tuple[int, str], dict[str, float]] = {}

    def check(tokens: int, system: str) -> Row:
        figures = runs[tokens, system] = shape_run(scale, "8b", system, tokens, saved_shape(scale, "8b", model, folder))
        value = f"{figures['pairs_per_second']:.2f} pairs/s"
        row = Row("8b", "", figures=figures)
        bars, holds = [], []
        if system != "dpo" and (tokens, "dpo") in runs:
            ratio = figures["pairs_per_second"] / runs[tokens, "dpo"]["pairs_per_second"]
            value += f", {ratio:.2f} x DPO"
            figures["times_dpo"] = ratio
        if system in TREES[:2]:
            bars.append(f"{DPO_BAR} x DPO")
            if "times_dpo" in figures:
                holds.append(figures["times_dpo"] >= DPO_BAR)
        value += f", {figures['peak_memory_gib']:.1f} GiB"
        if "estimate_off" in figures:
            value += f" (estimate {figures['estimate_off']:+.0%})"
            bars.append(f"estimate within {ESTIMATE_BAR:.0%}")
            holds.append(abs(figures["estimate_off"]) <= ESTIMATE_BAR)
        row.value, row.bar, row.holds = value, ", ".join(bars), all(holds) if holds else None
        return row

    def fastest(tokens: int) -> Row:
        """What would decide which attention `layout: auto` asks of a model on a GPU."""
        rates = {system: runs[tokens, system]["pairs_per_second"] for system in TREES if (tokens, system) in runs}
        if len(rates) < 2:
            return Row("8b", "", problem="fewer than two kinds of the tree were measured")
        order = sorted(rates, key=rates.__getitem__, reverse=True)
        value = " > ".join(f"{SYSTEMS[system].removeprefix('tree, ')} {rates[system]:.2f}" for system in order)
        return Row("8b", "", value + " pairs/s", figures={"fastest": order[0]})

    checks: Checks = {}
    for tokens in scale.tokens:
        for system in SYSTEMS:
            checks[f"2 x {tokens} {SYSTEMS[system]}"] = partial(check, tokens, system)
        checks[f"2 x {tokens} attention of the tree"] = partial(fastest, tokens)
    return checks


@dataclass(frozen=True)
class Part:
    """A part: its checks, and the seconds after which it is ended (all that is left where None)."""

    checks: Callable[[Scale, str, Path], Checks]
    seconds: float | None


PARTS = {
    "gradients": Part(gradient_checks, 90),
    "agreement": Part(agreement_checks, 60),
    "student": Part(student_checks, 90),
    "answers": Part(answer_checks, 100),
    "7b": Part(memory_checks, 90),
    "8b": Part(speed_checks, None),
}


# --- One part, in a process of its own ---------------------------------------------------------


def measured(part: str, name: str, check: Callable[[], Row]) -> Row:
    """The row of a check, or the row that says why there is none."""
    import torch

    try:
        row = check()
    except torch.OutOfMemoryError:
        row = Row(part, name, problem="out of memory on this GPU")
    except Exception as error:  # whatever it is, the other rows can still be measured
        words = str(error).strip().splitlines() or [""]
        row = Row(part, name, problem=f"{type(error).__name__}: {words[0]}")
    row.name = name
    return row


def run_part(part: str, scale: Scale, model: str, folder: Path) -> Iterator[Row]:
    """Measure the rows of a part, one after another."""
    for name, check in PARTS[part].checks(scale, model, folder).items():
        yield measured(part, name, check)


# --- All parts ---------------------------------------------------------------------------------


def run_in_a_process(part: str, argv: list[str], names: list[str], seconds: float) -> list[Row]:
    """The rows of a part; those that its process left out say why."""
    command = [sys.executable, __file__, *argv, "--part", part]
    environment = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        try:
            problem = f"its process ended with code {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            problem = f"not reached within {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the processes that it has left: vLLM's engine is one
            process.wait()
        out.seek(0)
        err.seek(0)
        rows = [Row(**json.loads(line.removeprefix(ROW))) for line in out if line.startswith(ROW)]
        words = err.read().strip()
    missing = names[len(rows) :]
    if missing and "ended" in problem and words:
        problem += f": {words.splitlines()[-1]}"
    if any(row.problem for row in rows) or missing:
        print(words[-4000:], file=sys.stderr)
    return rows + [Row(part, name, problem=problem) for name in missing]


def line_of(row: Row) -> str:
    verdict = {True: "yes", False: "NO", None: ""}[row.holds]
    return f"{row.part:<10} {row.name:<36} {row.problem or row.value:<58} {row.bar:<40} {verdict}".rstrip()


def versions() -> dict[str, str]:
    """Of the packages that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for package in ("edit_trl", "torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "vllm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def rehearsal_student(folder: Path) -> str:
    """The folder of a tiny student, which needs no network."""
    from effect_matrix.student import FromScratch, make_student

    from edit_trl import ProceduralTeacher, generate_dual_cots

    rows = generate_dual_cots(ProceduralTeacher(seed=0), 60, conversational=True).to_list()
    make_student(FromScratch(64, 2, 4, 128, 600), rows, 0, folder)
    return str(folder)


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="student: a Hub id or folder")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--minutes", type=count, default=8, help="what is not measured by then is left out")
    parser.add_argument("--rehearse", action="store_true", help="all parts on a CPU, with tiny shapes")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    import torch

    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        print("error: there is no GPU here; `--rehearse` runs all parts with tiny shapes on the CPU", file=sys.stderr)
        return 2
    scale = rehearsal() if args.rehearse else full_scale()
    if args.part:
        for row in run_part(args.part, scale, args.model, args.folder):
            print(ROW + json.dumps(asdict(row)), flush=True)
        return 0
    device = cpu_name() if args.rehearse else torch.cuda.get_device_name()
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = rehearsal_student(folder / "student") if args.rehearse else args.model
        words = ["--model", model, "--folder", name, *(["--rehearse"] if args.rehearse else [])]

        def rows_of(part: str) -> list[Row]:
            left = args.minutes * 60 - (time.monotonic() - started)
            names = list(PARTS[part].checks(scale, model, folder))
            return run_in_a_process(part, words, names, max(min(left, PARTS[part].seconds or left), 1))

        print(line_of(Row("part", "what", "measured", "bar")) + "  holds")
        with ThreadPoolExecutor(2 if args.rehearse else 1) as pool:  # figures of a GPU are those of one process alone
            for done in pool.map(rows_of, args.only):
                print("\n".join(map(line_of, done)), flush=True)
                rows += done
    seconds = time.monotonic() - started
    missed = [row for row in rows if row.holds is False]
    unread = sum(row.problem is not None for row in rows)
    print(
        f"{device}: {len(missed)} of {sum(bool(row.bar) for row in rows)} bars missed, {unread} rows not measured",
        end="",
    )
    print(f", {seconds:.0f} s" + ("; a rehearsal, whose figures mean nothing" if args.rehearse else ""))
    record = json.dumps(
        {
            "benchmark": "gpu_check",
            "rehearsal": args.rehearse,
            "rows": [asdict(row) for row in rows],
            "seconds": seconds,
            "versions": versions(),
            "machine": {"device": device, "cores": os.cpu_count()},
        }
    )
    if args.output:
        args.output.write_text(record + "\n", encoding="utf-8")
    print(record)
    return 0


if __name__ == "__main__":
    run_benchmark(main)
