"""A running Ray cluster: how to join it, and how much room it has. Ray is imported inside functions.

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
    """Yield the error messages of these options, as far as they depend on no cluster."""
    if actors is not None and engine != "ray":
        yield "`actors` is for `engine: ray`"
    yield from at_least(1, actors=actors)
    if engine == "ray" and device not in (None, "cpu", "cuda"):
        yield f"`device: {device}`: with `engine: ray` the cluster chooses; leave it out, or take cpu"


def connect() -> None:
    """Join the cluster at `RAY_ADDRESS`, else the one on this machine.

    The connection ends with the process, and everything started through it ends too.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    # Ray prints the machines' log lines to stdout, and no user can act on them. Ray reads this variable when
    # it is imported.
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
            # The machines find the same packages as this process.
            runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
        )
    except (OSError, ValueError, RuntimeError) as error:
        at = f"at RAY_ADDRESS={address}" if address else "on this machine, and RAY_ADDRESS is not set"
        raise InputError(f"no Ray cluster {at} ({error}). {_START}") from error


def _knock(address: str) -> None:
    """Raise at once if nobody answers at an address, which Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def places(actors: int | None, *, cpu: bool = False) -> tuple[int, dict[str, float]]:
    """Return how many actors a model gets, and the resources that each takes.

    Args:
        actors: How many the recipe sets. Where None, one per GPU; in a cluster without GPUs, one per machine with CPUs.
        cpu: Use CPUs only.

    Returns:
        The number of actors, and the resources of each as options of Ray.

    Raises:
        InputError: There is no room for so many.
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
    """Return the resources of each machine of the cluster, by its node id."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
