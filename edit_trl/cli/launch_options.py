"""The options of `accelerate launch` for a stage, and checks that its processes train together.

accelerate 1.15 launches several processes on a CPU only by `mpirun` or as if they were for GPUs; the latter
is done here. It supports FSDP and DeepSpeed on GPUs alone: on a CPU `AcceleratorState` leaves the distributed
type at MULTI_CPU, and each process would train a whole copy without a warning.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edit_trl.common.checks import at_least
from edit_trl.common.conversion import convert
from edit_trl.common.errors import InputError, brief, raise_problems
from edit_trl.common.yaml_file import read_words, read_yaml

if TYPE_CHECKING:
    from edit_trl.training.config import DualCoTConfig

# The types of the values of an accelerate configuration that are used here or would fail in `accelerate launch`.
_TYPES = {
    **dict.fromkeys(("num_processes", "num_machines", "machine_rank", "main_process_port"), int | None),
    **dict.fromkeys(("deepspeed_config", "fsdp_config", "dynamo_config"), dict[str, Any] | None),
    "use_cpu": bool | None,
    "gpu_ids": str | None,
    "distributed_type": str | None,
    "mixed_precision": Literal["no", "fp16", "bf16", "fp8"] | None,
}
_MOST_PROCESSES = 4096  # a number beyond any cluster would start that many on this machine
SHARDED = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}


def launch_options(
    accelerate_config: Path | None, num_processes: int | None, recipe: str | None, options: Sequence[str]
) -> list[str]:
    """Return the options for `accelerate launch`.

    Args:
        accelerate_config: accelerate's configuration file; None to use the devices of the machine.
        num_processes: The number of processes; None for that of the configuration or the machine.
        recipe: The recipe's file, which may set `use_cpu`.
        options: Options that win over the recipe.

    Raises:
        InputError: The options need more GPUs than there are, or sharding on a CPU.
    """
    import torch

    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    config = _read_config(accelerate_config)
    on_cpu = _asks_for_cpu(recipe, options) or bool(config.get("use_cpu"))
    on_cpu = on_cpu or (not gpus and not accelerate_config)
    processes = num_processes or config.get("num_processes") or (1 if on_cpu else max(gpus, 1))
    machines = config.get("num_machines") or 1
    _check_devices(accelerate_config, config, processes // machines, gpus, on_cpu)
    several = processes > 1
    if accelerate_config:
        chosen = ["--config_file", str(accelerate_config)]
        chosen += ["--num_processes", str(num_processes)] if num_processes else []
    else:
        # The defaults of accelerate launch, given explicitly so that it does not warn about them.
        chosen = ["--num_processes", str(processes), "--num_machines", "1", "--dynamo_backend", "no"]
        chosen += ["--mixed_precision", "no"]  # the recipe's bf16 or fp16 decides in the process
        chosen += ["--multi_gpu"] if gpus > 1 and several and not on_cpu else []
    if on_cpu and several:
        chosen += ["--multi_gpu", "--main_process_port", "0"]
        os.environ["ACCELERATE_USE_CPU"] = "true"  # read by the launched processes
    if "OMP_NUM_THREADS" not in os.environ and (on_cpu or not accelerate_config):
        # By default accelerate gives each process one CPU thread, however many cores there are.
        threads = max(torch.get_num_threads() // processes, 1)
        chosen += ["--num_cpu_threads_per_process", str(threads)]
    return chosen


def check_process_count(num_processes: int | None) -> None:
    """Raise an InputError if `--num_processes` is out of range."""
    if num_processes is not None and not 1 <= num_processes <= _MOST_PROCESSES:
        raise InputError(f"--num_processes must be from 1 to {_MOST_PROCESSES}, got {num_processes}")


def shards(accelerate_config: Path | None, num_processes: int | None) -> int:
    """Return the number of devices over which an accelerate configuration shards the memory of a run."""
    config = _read_config(accelerate_config)
    kind = str(config.get("distributed_type", "NO")).upper()
    whole = kind == "DEEPSPEED" and (config.get("deepspeed_config") or {}).get("zero_stage") != 3
    return 1 if kind not in SHARDED or whole else num_processes or config.get("num_processes") or 1


def _read_config(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    values = read_words(file, "accelerate configuration", again=True)
    config, problems = convert({name: value for name, value in values.items() if name in _TYPES}, _TYPES)
    problems += at_least(1, num_processes=config.get("num_processes"), num_machines=config.get("num_machines"))
    if (config.get("num_machines") or 1) > 1 and not values.get("main_process_ip"):
        problems.append("several machines need `main_process_ip`, the address of the first one")
    raise_problems(f"{file}: {problem}" for problem in problems)
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        load_config_from_file(str(file))  # its own checks, which would be a traceback of `accelerate launch`
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is no accelerate configuration: {brief(error)}") from error
    return config


def _asks_for_cpu(recipe: str | None, options: Sequence[str]) -> bool:
    """Return whether the options or the recipe set `use_cpu: true`; the launched processes check the value."""
    for place, word in enumerate(options):
        name, _, value = word.partition("=")
        if name in ("--use_cpu", "--use-cpu"):
            following = options[place + 1] if place + 1 < len(options) else "true"
            value = value or ("true" if following.startswith("--") else following)
            return value.lower() in ("true", "1", "yes")
    return recipe is not None and read_yaml(recipe, again=True).get("use_cpu") is True


def _check_devices(file: Path | None, config: dict[str, Any], processes: int, gpus: int, on_cpu: bool) -> None:
    kind = str(config.get("distributed_type", "NO")).upper()
    if on_cpu:
        if kind in SHARDED:
            raise InputError(
                f"{file} asks for {SHARDED[kind]}, which accelerate has for GPUs only; on a CPU "
                "every process would train a whole copy. Use `--accelerate_config cpu`, with --num_processes "
                "for several"
            )
        return
    ids = str(config.get("gpu_ids") or "all")
    allowed = gpus if ids == "all" else len(ids.split(","))
    # One process without a GPU takes the CPU, unless a GPU was asked for by its number.
    if processes > min(gpus, allowed) and not (processes == 1 and not gpus):
        there = f"{min(gpus, allowed)} of them" if gpus else "none"
        raise InputError(
            f"{processes} GPU{'s' if processes > 1 else ''} asked for by {file or '--num_processes'}, but this "
            f"machine has {there}; lower --num_processes, or `--use_cpu true --accelerate_config cpu "
            "--num_processes N` to train on the CPU"
        )


def check_processes(training: "DualCoTConfig") -> None:
    """Check that the launched processes train together.

    Raises:
        InputError: Each process would train alone, or would train a whole copy instead of a shard.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and training.world_size == 1:
        raise InputError(
            f"{launched} processes were launched, but there is no GPU for them and each would train alone; "
            "set `use_cpu: true` (or ACCELERATE_USE_CPU=true) to train together on the CPU"
        )
    sharded = [name for k, name in SHARDED.items() if os.environ.get(f"ACCELERATE_USE_{k}", "").lower() == "true"]
    if sharded and launched > 1 and training.device.type == "cpu" and training.use_cpu:
        raise InputError(
            f"launched for {sharded[0]}, which accelerate has for GPUs only; on a CPU every process would "
            "train a whole copy. Launch without it"
        )
