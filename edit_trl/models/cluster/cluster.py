"""A Ray cluster that is running: joining it, and how much room it has (L0). Ray is imported inside functions.

Read in ray 2.60: `ray.init`, `ray.nodes`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from typing import Literal

from edit_trl.common.checks import at_least
from edit_trl.common.errors import InputError

Engine = Literal["local", "ray"]

_START = "`ray start --head` starts one here, `ray start --address HEAD:6379` adds a machine"


def engine_problems(engine: Engine, actors: int | None, device: str | None = None) -> Iterator[str]:
    """What is wrong with these options, by themselves."""
    if actors is not None and engine != "ray":
        yield "`actors` is for `engine: ray`"
    yield from at_least(1, actors=actors)
    if engine == "ray" and device not in (None, "cpu", "cuda"):
        yield f"`device: {device}`: with `engine: ray` the cluster chooses; leave it out, or take cpu"


def connect() -> None:
    """Join the cluster: the one of `RAY_ADDRESS`, else the one that runs on this machine.

    The connection ends with the process, and with it all that was started through it.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    # What machines tell each other is nothing that a user can act on, and Ray prints it to stdout. Read by
    # ray as it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise InputError("`engine: ray` needs Ray: pip install 'edit_trl[ray]'") from error
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    path = os.environ.get("PYTHONPATH")
    try:
        _knock(address)
        ray.init(
            address="auto",
            log_to_driver=False,
            logging_level=logging.ERROR,
            # A machine finds the packages that this process finds.
            runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
        )
    except (OSError, ValueError, RuntimeError) as error:
        at = f"at RAY_ADDRESS={address}" if address else "on this machine, and RAY_ADDRESS is not set"
        raise InputError(f"no Ray cluster {at} ({error}). {_START}") from error


def _knock(address: str) -> None:
    """Ray itself tries an address that nobody answers at for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def places(actors: int | None, *, cpu: bool = False) -> tuple[int, dict[str, float]]:
    """How many actors a model has, and what each takes of its machine.

    Args:
        actors: How many are asked for; one a GPU, or where there are none one a machine with CPUs if None.
        cpu: Leave GPUs alone.

    Raises:
        InputError: More than there is room for.
    """
    nodes = list(nodes_of_cluster().values())
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and not cpu:
        if actors is not None and actors > gpus:
            raise InputError(f"`actors: {actors}`, and the Ray cluster has {gpus} GPUs")
        return actors or gpus, {"num_gpus": 1}
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus or (actors or 0) > sum(cpus):
        raise InputError(f"`actors: {actors or 1}`, and the Ray cluster has {sum(cpus)} CPUs")
    if actors is None:
        return len(cpus), {"num_cpus": min(cpus)}
    share = next(n for n in range(max(cpus), 0, -1) if sum(count // n for count in cpus) >= actors)
    return actors, {"num_cpus": share}


def nodes_of_cluster() -> dict[str, dict[str, float]]:
    """The machines of the cluster, and what each has."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
