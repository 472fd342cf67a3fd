"""Checks, bit for bit, that a killed and resumed run ends with the weights and files of an uninterrupted one.

    python benchmarks/resume_check.py [--cases padded_lora tree_lora tree_full two_stages generate evaluate]
                                      [--repeats 20] [--real] [--student PATH] [--pairs 20] [--seed 0]

Each repetition kills a training process with SIGKILL, at a random moment of a random step or after the last step, so
that some processes die while they save. (A process that ends before its time is started again.) Then it runs the same
command until it finishes, and compares the bytes of the weights, and the log, with those of an uninterrupted run. The
cases differ in layout, batch size and accumulation, and use dropout. `two_stages` runs `edit-trl train` on a recipe
like the quickstart's and kills its process group at a random moment of either stage. Processes are forked from this
one, which has already imported the libraries; with `--real`, those of `two_stages` are started as from a shell. The
student is a tiny Llama, or `--student`. `generate` asks an endpoint on loopback and `evaluate` the student; both are
killed at a random moment, and the bytes of their rows and items are compared. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from inputs import count, run_benchmark

from edit_trl.common.hub_ids import refuse_missing_folder

RECIPE = """
learning_rate: 5.0e-3
max_length: 512
gradient_checkpointing: false
use_cpu: true
bf16: false
report_to: none
disable_tqdm: true
logging_steps: 2
save_steps: 3
save_total_limit: 2
num_train_epochs: 2
per_device_train_batch_size: 2
warmup_steps: 2
eval_strategy: epoch
"""
LORA = "use_peft: true\nlora_r: 4\nlora_dropout: 0.1\nlora_target_modules: all-linear\n"
CASES = {
    "padded_lora": LORA + "layout: padded\ngradient_accumulation_steps: 2\n",
    "tree_lora": LORA + "layout: tree\nmax_tokens_per_batch: 400\nreference: adapter_off\n",
    "tree_full": "layout: tree\nreference: precomputed\npreference_scope: completion\n",
}
STAGES = """
stages:
  - name: warm_up
    chosen_key_weight: 1.0
    preference_weight: 0.0
    normalization: step
  - name: key_steps
"""
COMMANDS = {
    "generate": "teacher: openai_compatible\nmodel: m\nmax_concurrency: 4\nrectify_check: none\n",
    "evaluate": "tasks: [task.yaml]\nconversational: false\nhistory: null\nmax_new_tokens: 16\nbatch_size: 2\n",
}
KILLED = -signal.SIGKILL
MOST_TRIES = 20


def make_student(folder: Path, texts: list[str]) -> None:
    """A tiny Llama with dropout, and a byte-level tokenizer learnt from the texts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(texts, learn)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        attention_dropout=0.1,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_inputs(folder: Path, student: Path | None, pairs: int) -> None:
    """The student, the pairs and a recipe of each case."""
    from edit_trl import ProceduralTeacher, generate_dual_cots

    families = ("object_counting", "arithmetic", "boolean_expressions")
    rows = generate_dual_cots(ProceduralTeacher(families, seed=0), pairs, conversational=False)
    rows = rows.select_columns(["prompt", "chosen", "rejected"]).to_list()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    if student is None:
        student = folder / "student"
        make_student(student, [text for row in rows for text in row.values()])
    head = f"model_name_or_path: {student}\ndataset_name: {folder / 'rows.jsonl'}\n"
    head += f"eval_dataset_name: {folder / 'rows.jsonl'}\n{RECIPE}"
    for name, text in CASES.items():
        (folder / f"{name}.yaml").write_text(head + text, encoding="utf-8")
    (folder / "two_stages.yaml").write_text(head + LORA + STAGES, encoding="utf-8")


def die_at(step: int, seconds: float) -> None:
    """Have this process kill itself so long after a step begins; step -1 is when training has ended."""
    from transformers import TrainerCallback, trainer

    def die_soon():
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    class Die(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                die_soon()

        def on_train_end(self, args, state, control, **kwargs):
            if step == -1:
                die_soon()

    trainer.DEFAULT_CALLBACKS.append(Die)


def fork(function: Callable[[], int], log: Path) -> int:
    """Run a function in a process of its own, which has the libraries already; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = function()
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_stage(case: str, folder: Path, output: Path, death: tuple[int, float] | None = None) -> int:
    """A recipe without stages; killed at a moment of a step. Returns the exit code."""
    from edit_trl.cli.main import run_command
    from edit_trl.cli.train import train_stage

    def run() -> int:
        if death is not None:
            die_at(*death)
        return run_command(train_stage, ["--config", str(folder / f"{case}.yaml"), "--output_dir", str(output)])

    return exit_code(fork(run, folder / "log.txt"))


def run_stages(folder: Path, output: Path, real: bool, death: tuple[str, float] | None = None) -> int:
    """The whole recipe by `edit-trl train`; killed so long after a stage has begun to train."""
    from edit_trl.cli import main, train

    arguments = ["train", "--config", str(folder / "two_stages.yaml"), "--output_dir", str(output)]

    def launch_forked(_own: argparse.Namespace, options: Sequence[str]) -> int:
        return exit_code(os.fork() or os._exit(main.run_command(train.train_stage, options)))

    def run() -> int:
        train.launch = launch_forked
        return main.main(arguments)

    if real:
        command = [sys.executable, "-m", "edit_trl.cli.main", *arguments]
        with (folder / "log.txt").open("a") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True).pid
    else:
        child = fork(run, folder / "log.txt")
    if death is not None:
        stage, seconds = death
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if (output / stage / "run.json").is_file():
                time.sleep(seconds)
                os.killpg(child, signal.SIGKILL)
                break
            time.sleep(0.01)
    return exit_code(child)


def outcome(output: Path) -> tuple[dict[str, bytes], dict[str, list]]:
    """The weights a run ended with, and its log without the times."""
    folders = [output, output / "warm_up", output / "key_steps"]
    files = [file for folder in folders for file in folder.glob("*model.safetensors")]
    weights = {str(file.relative_to(output)): file.read_bytes() for file in files}
    logs = {}
    for file in [state for folder in folders for state in folder.glob("trainer_state.json")]:
        history = json.loads(file.read_text(encoding="utf-8"))["log_history"]
        logs[str(file.relative_to(output))] = [
            {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in history
        ]
    return weights, logs


def command_inputs(folder: Path, student: Path | None, url: str) -> None:
    """Questions, a task and the recipes of generate and evaluate."""
    questions = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "id": str(n)} for n in range(40)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    (folder / "task.yaml").write_text("dataset_name: questions.jsonl\n", encoding="utf-8")
    own = {
        "generate": f"base_urls: [{url}]\ndataset_name: questions.jsonl\n",
        "evaluate": f"model: {student or 'student'}\n",
    }
    for name, text in COMMANDS.items():
        (folder / f"{name}.yaml").write_text(text + own[name], encoding="utf-8")


def measure_command(case: str, folder: Path, args: argparse.Namespace, chance: random.Random) -> dict[str, float]:
    """Kill and resume a command so often; how many ended with the files of the run that was left alone."""
    from edit_trl.cli.main import main

    def run(output: Path, seconds: float | None = None) -> int:
        words = [case, "--config", str(folder / f"{case}.yaml"), "--output_dir", str(output)]
        child = fork(lambda: os.chdir(folder) or main(words), folder / "log.txt")
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        return exit_code(child)

    def files(output: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (*output.glob("*.parquet"), *output.glob("items.jsonl"))}

    whole, output = folder / f"{case}-whole", folder / f"{case}-killed"
    started = time.perf_counter()
    if code := run(whole):
        raise SystemExit(f"{case}: exit code {code}\n{(folder / 'log.txt').read_text()[-3000:]}")
    alone, identical = time.perf_counter() - started, 0
    for _ in range(args.repeats):
        for _ in range(MOST_TRIES):
            shutil.rmtree(output, ignore_errors=True)
            if run(output, chance.uniform(0, alone)) == KILLED:
                break
        code = run(output)
        same = code == 0 and files(output) == files(whole)
        identical += same
        if not same:
            print(f"{case}: not identical, exit code {code}", file=sys.stderr)
    seconds = {"seconds_alone": round(alone, 1), "seconds": round(time.perf_counter() - started, 1)}
    return {"repeats": args.repeats, "identical": identical, "same_log": identical, "steps": 40} | seconds


def measure(case: str, folder: Path, args: argparse.Namespace, chance: random.Random) -> dict[str, float]:
    """Kill and resume so often; how many ended as the run that was left alone."""
    counts = {"repeats": args.repeats, "identical": 0, "same_log": 0}
    whole, output = folder / f"{case}-whole", folder / f"{case}-killed"
    two_stages = case == "two_stages"

    def run(folder_of_run: Path, death=None) -> int:
        if two_stages:
            return run_stages(folder, folder_of_run, args.real, death)
        return run_stage(case, folder, folder_of_run, death)

    started = time.perf_counter()
    code = run(whole)
    if code:
        raise SystemExit(f"{case}: exit code {code}\n{(folder / 'log.txt').read_text()[-3000:]}")
    seconds = time.perf_counter() - started
    expected = outcome(whole)
    states = [*whole.glob("trainer_state.json"), *whole.glob("*_*/trainer_state.json")]
    steps = json.loads(states[0].read_text(encoding="utf-8"))["global_step"]

    def killed_run() -> tuple[str | int, float]:
        """Start anew until one is killed before it ends; when it was to be."""
        for _ in range(MOST_TRIES):
            shutil.rmtree(output, ignore_errors=True)
            if two_stages:
                death = chance.choice(("warm_up", "key_steps")), chance.uniform(0, seconds / 2)
            else:
                death = chance.choice((*range(steps), -1)), chance.uniform(0, 0.15)
            if run(output, death) == KILLED:
                return death
        raise SystemExit(f"{case}: {MOST_TRIES} runs in a row ended before they were to be killed")

    for _ in range(args.repeats):
        death = killed_run()
        code = run(output)
        weights, logs = outcome(output)
        same = code == 0 and weights == expected[0]
        counts["identical"] += same
        counts["same_log"] += code == 0 and logs == expected[1]
        if not same:
            print(f"{case}: not identical, killed at {death}, exit code {code}", file=sys.stderr)
    whole_run = time.perf_counter() - started
    return counts | {"steps": steps, "seconds_alone": round(seconds, 1), "seconds": round(whole_run, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = (*CASES, "two_stages", *COMMANDS)
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=count, default=20)
    parser.add_argument("--student", type=Path, help="A model of one's own instead of the tiny one.")
    parser.add_argument("--pairs", type=count, default=20, help="To train on, twice, in batches of two.")
    parser.add_argument("--real", action="store_true", help="Start `edit-trl train` anew for two_stages.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments to kill at.")
    args = parser.parse_args()
    if args.student:
        refuse_missing_folder(str(args.student), "student")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        make_inputs(folder, args.student and args.student.resolve(), args.pairs)
        from robustness_cases.endpoint import Endpoint, solve

        import edit_trl.training.recipe.resolving
        import edit_trl.training.trainer  # noqa: F401 (once, for all forks)

        print("| case | ended identical | same log | steps | seconds |\n|---|---|---|---|---|")
        for case in args.cases:
            chance = random.Random(args.seed)
            if case in COMMANDS:
                with Endpoint(lambda number, body: time.sleep(0.02) or solve(number, body)) as endpoint:
                    command_inputs(folder, args.student and args.student.resolve(), endpoint.url)
                    result = results[case] = measure_command(case, folder, args, chance)
            else:
                result = results[case] = measure(case, folder, args, chance)
            shares = " | ".join(f"{result[key]} of {result['repeats']}" for key in ("identical", "same_log"))
            print(f"| {case} | {shares} | {result['steps']} | {result['seconds']} |", flush=True)
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    print(
        json.dumps(
            {
                "benchmark": "resume_check",
                "cases": results,
                "seed": args.seed,
                "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            }
        )
    )


if __name__ == "__main__":
    run_benchmark(main)
