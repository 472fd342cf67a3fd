"""A run of two processes that is killed and resumed ends as one that was not, bit for bit.

On the CPU over gloo; FSDP2 as in `test_processes`, whose top says how.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from test_processes import FSDP2, shard_on_a_cpu
from test_resume import MANY_ROWS, Stop, history, make_trainer
from torch.distributed.tensor import DTensor

import edit_trl.training.resuming.checkpoints
from edit_trl import DualCoTTrainer
from edit_trl.training.resuming.checkpoints import MANIFEST, UNFINISHED, last_checkpoint

# Eleven rows: at the end of an epoch one process has a pair and the other none. The checkpoint that is gone
# on from is in the middle of an epoch (`padded` the second, `tree` the first) or at its end (`tokens`).
CASES = {
    "padded": {"layout": "padded", "gradient_accumulation_steps": 2, "save_steps": 2, "logging_steps": 3},
    "tree": {"layout": "tree", "reference": "precomputed", "preference_scope": "completion"},
    "tokens": {"layout": "tree", "max_tokens_per_batch": 450, "reference": "adapter_off"},
}
KINDS = {"ddp": ("padded", "tokens"), "fsdp2": ("padded", "tree")}
KILLED_AT = 5


def kill_run() -> None:
    """This process, the other one, and their launcher."""
    launcher = psutil.Process().parent()
    for process in (launcher, *(child for child in launcher.children() if child.pid != os.getpid())):
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, case: str, death: str) -> DualCoTTrainer:
    options = {"per_device_train_batch_size": 1, "num_train_epochs": 8} | CASES[case]
    trainer = make_trainer(folder / case, case == "tokens", MANY_ROWS, **options)
    if death == "step" and trainer.args.process_index == 1:
        trainer.add_callback(Stop(KILLED_AT, kill_run))
    if death == "saving":  # written by the first process, and not named yet
        flush = edit_trl.training.resuming.checkpoints._flush
        last = f"checkpoint-{KILLED_AT + 1}"
        edit_trl.training.resuming.checkpoints._flush = lambda path: kill_run() if path.name == last else flush(path)
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    return trainer


def outcome(trainer: DualCoTTrainer) -> dict:
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in weights.items()}
    return {"weights": {name: p.clone() for name, p in whole.items()}, "history": history(trainer)}


def launch(folder: Path, kind: str, cases: tuple[str, ...], death: str = "none") -> dict[str, dict] | None:
    """What each case ended with; None where the run was killed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | (FSDP2 | {"ACCELERATE_USE_FSDP": "true"} if kind == "fsdp2" else {})
    run = subprocess.run(
        [*command, __file__, str(folder), kind, death, *cases],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    expected = 0 if death == "none" else -signal.SIGKILL
    assert run.returncode == expected, run.stderr[-3000:]
    return torch.load(folder / "outcomes.pt") if death == "none" else None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_ends_with_the_same_weights_and_log(tmp_path, kind):
    cases = KINDS[kind]
    whole = launch(tmp_path / "whole", kind, cases)
    for case, death in zip(cases, ("step", "saving"), strict=True):
        launch(tmp_path / "killed", kind, (case,), death)
        run = tmp_path / "killed" / case / "run"
        at = last_checkpoint(run)
        assert at is not None
        assert json.loads((Path(at) / MANIFEST).read_text())["run"]["processes"] == 2
        assert (run / UNFINISHED / f"checkpoint-{KILLED_AT + 1}").is_dir() == (death == "saving")
    resumed = launch(tmp_path / "killed", kind, cases)
    for case in cases:
        assert whole[case]["history"] == resumed[case]["history"]
        assert len(whole[case]["weights"]) > 20
        for name, weight in whole[case]["weights"].items():
            assert torch.equal(weight, resumed[case]["weights"][name]), f"{case}: {name}"


if __name__ == "__main__":
    output, kind, death, *cases = sys.argv[1:]
    if kind == "fsdp2":
        shard_on_a_cpu()
    outcomes = {}
    for name in cases:
        trained = train(Path(output), name, death)
        outcomes[name] = outcome(trained)
    if trained.is_world_process_zero():
        torch.save(outcomes, Path(output) / "outcomes.pt")
