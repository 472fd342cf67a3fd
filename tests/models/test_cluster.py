"""Work on a Ray cluster of two nodes, one of which is killed half-way, ends as it does on one machine."""

import asyncio
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from chat_server import MODEL, ChatServer, running
from completion_engine import Engine
from generate_runs import recipe as generate_recipe
from generate_runs import solve

from edit_trl.cli.main import main
from edit_trl.common.errors import InputError
from edit_trl.models.cluster.calls import RayCalls
from edit_trl.models.cluster.cluster import connect, places
from edit_trl.models.cluster.pool import RayPool

COMMAND = [sys.executable, "-m", "edit_trl.cli.main"]
STORE = 80 * 2**20


@pytest.fixture(scope="module")
def cluster():
    """One node; `second_node` is the other."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    # A socket's path must be short.
    folder = tempfile.mkdtemp(prefix="ray-")
    # Where Ray notes its newest cluster, whatever the folder; it does not make this one itself.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    here = [str(folder) for folder in Path(__file__).parents[:2]]  # this module, and those beside its folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        started = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": STORE,
                "include_dashboard": False,
                "temp_dir": folder,
            },
        )
        patch.setenv("RAY_ADDRESS", started.address)
        yield started
        ray.shutdown()
        started.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def second_node(cluster):
    # One that an earlier test lost is counted until the cluster has missed it for long enough.
    cluster.wait_for_nodes(timeout=300)
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes(timeout=300)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


@pytest.fixture
def recipe(tmp_path, saved_student):
    """Enough to answer that a node can be killed half-way."""
    task = {"version": 1, "families": ["object_counting", "arithmetic"], "rows": 30}
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    options = {"model": str(saved_student), "tasks": ["sums.yaml"], "history": None}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(options | {"max_new_tokens": 120, "batch_size": 2}))
    return file


def start(*words) -> subprocess.Popen:
    """The command; what it says goes to a file, which can be read while it runs."""
    said = tempfile.NamedTemporaryFile("w+", suffix=".err")  # noqa: SIM115
    process = subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=said, text=True)
    process.said = said
    return process


def errors_of(process: subprocess.Popen) -> str:
    return Path(process.said.name).read_text(encoding="utf-8")


def finished(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, errors_of(process)[-3000:]
    return output, errors_of(process)


def wait_for(process: subprocess.Popen, happened) -> None:
    while not happened():
        assert process.poll() is None, errors_of(process)[-3000:]
        time.sleep(0.02)


def lose(cluster, node, process: subprocess.Popen) -> None:
    """Kill a node, and see that the command has noticed."""
    cluster.remove_node(node, allow_graceful=False)
    wait_for(process, lambda: "its work is done again elsewhere" in errors_of(process))


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def made(folder: Path) -> dict[str, bytes]:
    files = ("dual.parquet", "warm_up.parquet", "README.md", "report.json")
    return {name: (folder / name).read_bytes() for name in files}


def responses(folder: Path) -> list[tuple]:
    with sqlite3.connect(folder / "journal-0.sqlite") as journal:
        return journal.execute("SELECT key, body FROM responses ORDER BY key").fetchall()


@pytest.mark.slow
def test_evaluate_with_a_node_lost(cluster, second_node, recipe, tmp_path):
    words = ("evaluate", "--config", recipe, "--output_dir")
    assert main([*map(str, words), str(tmp_path / "one")]) == 0
    process = start(*words, tmp_path / "two", "--engine", "ray")
    wait_for(process, lambda: lines(tmp_path / "two" / "items.jsonl") >= 8)
    lose(cluster, second_node, process)
    output, errors = finished(process)
    assert "raylet" not in (output + errors).lower()
    items = (tmp_path / "one" / "items.jsonl").read_bytes()
    assert (tmp_path / "two" / "items.jsonl").read_bytes() == items
    records = [json.loads((tmp_path / run / "evaluation.json").read_text()) for run in ("one", "two")]
    for name in ("scores", "settings", "recipe_hash", "data_hash"):
        assert records[0][name] == records[1][name]


@pytest.mark.slow
def test_evaluate_killed_on_the_cluster_and_taken_up_without_it(cluster, recipe, tmp_path):
    words = ("evaluate", "--config", recipe, "--samples", 2, "--temperature", 0.7, "--output_dir")
    process = start(*words, tmp_path / "two", "--engine", "ray")
    wait_for(process, lambda: lines(tmp_path / "two" / "items.jsonl") >= 4)
    process.kill()
    process.wait()
    before = lines(tmp_path / "two" / "items.jsonl")
    assert 4 <= before < 30
    assert main([*map(str, words), str(tmp_path / "two")]) == 0
    assert main([*map(str, words), str(tmp_path / "one")]) == 0
    items = (tmp_path / "one" / "items.jsonl").read_bytes()
    assert (tmp_path / "two" / "items.jsonl").read_bytes() == items


@pytest.mark.slow
def test_suite_with_a_node_lost_and_the_command_killed(cluster, second_node, saved_student, tmp_path):
    words = ("suite", "--model", saved_student, "--rows", 40, "--history", "null", "--batch_size", 2)
    words = (*words, "--max_new_tokens", 60, "--output_dir")
    assert main([*map(str, words), str(tmp_path / "one")]) == 0
    items = tmp_path / "two" / "items.jsonl"
    process = start(*words, tmp_path / "two", "--engine", "ray")
    wait_for(process, lambda: lines(items) >= 8)
    lose(cluster, second_node, process)
    process.kill()
    process.wait()
    assert lines(items) < 40
    finished(start(*words, tmp_path / "two", "--engine", "ray"))
    assert items.read_bytes() == (tmp_path / "one" / "items.jsonl").read_bytes()


@pytest.mark.slow
def test_a_suite_at_endpoints(cluster, saved_student, tmp_path):
    first, second = ChatServer(Engine(), delay=0.1), ChatServer(Engine(), delay=0.1)
    with running(first) as one, running(second) as two:
        words = ("suite", "--model", MODEL, "--rows", 8, "--history", "null", "--batch_size", 2)
        words += ("--max_new_tokens", 4, "--tokenizer", saved_student, "--base_urls", one, two)
        finished(start(*words, "--output_dir", tmp_path / "two", "--engine", "ray"))
        seen = first.seen + second.seen
        assert main([*map(str, words), "--output_dir", str(tmp_path / "one")]) == 0
        assert first.seen + second.seen == 2 * seen
    items = (tmp_path / "one" / "items.jsonl").read_bytes()
    assert (tmp_path / "two" / "items.jsonl").read_bytes() == items


@pytest.mark.slow
def test_generate_with_a_node_lost_and_the_command_killed(cluster, second_node, tmp_path):
    """What is asked twice was under way to the node or to the command: at most `max_concurrency` each."""
    first, second = (ChatServer(solve, delay=0.2) for _ in range(2))
    with running(first) as one, running(second) as two:
        file = generate_recipe(tmp_path, one, 40, base_urls=[one, two], max_concurrency=4)
        words = ("generate", "--config", file, "--output_dir")
        assert main([*map(str, words), str(tmp_path / "one")]) == 0
        assert sum((first.paid + second.paid).values()) == 80
        first.paid.clear()
        second.paid.clear()

        process = start(*words, tmp_path / "two", "--engine", "ray")
        wait_for(process, lambda: first.paid.total() >= 10 and second.paid.total() >= 10)
        first.delay = second.delay = 5  # or a slow machine is done before it notices
        lose(cluster, second_node, process)
        paid = first.paid.total() + second.paid.total()
        process.kill()
        process.wait()
        first.delay = second.delay = 0.2
        # All but what was under way to the node, and to the command.
        assert 80 > len(responses(tmp_path / "two")) >= paid - 2 * 4
        finished(start(*words, tmp_path / "two", "--engine", "ray"))
        asked = first.paid + second.paid
        assert len(asked) == 80
        assert asked.total() <= 80 + 2 * 4
    assert made(tmp_path / "two") == made(tmp_path / "one")


@pytest.mark.slow
def test_an_endpoint_that_breaks_off_is_left_alone(cluster, tmp_path):
    good, bad = ChatServer(solve), ChatServer(solve, fault=lambda number, body: "reset")
    with running(good) as one, running(bad) as two:
        file = generate_recipe(tmp_path, one, 60, base_urls=[two, one], max_concurrency=8)
        finished(start("generate", "--config", file, "--engine", "ray"))
    assert len(good.paid) == 120
    assert bad.seen <= 2 * 8


@pytest.mark.slow
def test_models_of_the_cluster_generate_as_one_here(cluster, saved_student, tmp_path):
    """Teacher and student, which share the actors."""
    options = {"teacher": "transformers_local", "student": str(saved_student), "model": str(saved_student)}
    options |= {"temperature": 0.0, "student_temperature": 0.0, "max_tokens": 8, "base_urls": None}
    file = generate_recipe(tmp_path, "", 6, **options)
    words = ("generate", "--config", file, "--output_dir")
    # The untrained ones write nothing that a pair could be made of.
    assert main([*map(str, words), str(tmp_path / "one")]) == 2
    process = start(*words, tmp_path / "two", "--engine", "ray", "--actors", 1)
    assert "no pair is left" in finished(process, code=2)[1]
    assert len(responses(tmp_path / "one")) == 12
    assert responses(tmp_path / "two") == responses(tmp_path / "one")


@pytest.mark.slow
def test_an_endpoint_evaluated_on_the_cluster(cluster, recipe, tmp_path):
    with running(ChatServer(lambda body: "Therefore, the answer is 4.")) as url:
        words = ("evaluate", "--config", recipe, "--base_urls", url, "--model", "test-model", "--limit", 5)
        finished(start(*words, "--output_dir", tmp_path / "two", "--engine", "ray"))
        assert main([*map(str, words), "--output_dir", str(tmp_path / "one")]) == 0
    items = (tmp_path / "one" / "items.jsonl").read_bytes()
    assert (tmp_path / "two" / "items.jsonl").read_bytes() == items


class Ill:
    """What goes wrong in an actor."""

    def __init__(self, how: str = ""):
        if how == "leaves":
            os._exit(1)
        if how == "refuses":
            raise InputError("no such model")
        if how == "fails":
            raise KeyError("a bug")

    def double(self, number: int) -> int:
        if number == 3:
            raise KeyError("a bug")
        if number == 4:
            raise InputError("bad input")
        if number == 5:
            os._exit(1)
        return 2 * number


@pytest.mark.slow
def test_what_goes_wrong_in_an_actor_is_told(cluster, second_node, capsys):
    connect()
    assert places(None) == (2, {"num_cpus": 1})
    assert places(1) == (1, {"num_cpus": 1})
    with pytest.raises(InputError, match="`actors: 3`, and the Ray cluster has 2 CPUs"):
        places(3)
    two = [Ill, Ill], {"num_cpus": 1}
    assert sorted(RayCalls(*two).run("double", [(1,), (2,)])) == [(0, 2), (1, 4)]
    with pytest.raises(KeyError, match="a bug"):
        list(RayCalls(*two).run("double", [(1,), (3,)]))
    with pytest.raises(InputError, match="bad input"):
        list(RayCalls(*two).run("double", [(4,)]))
    with pytest.raises(InputError, match="4 processes of the Ray cluster ended over the same work"):
        list(RayCalls([Ill], {}).run("double", [(5,)]))
    for how, error, said in (
        ("refuses", InputError, f"on {socket.gethostname()}, in the Ray cluster: no such model"),
        ("fails", KeyError, "a bug"),
        ("leaves", InputError, "no process of the Ray cluster lives until it is ready"),
    ):
        with pytest.raises(error, match=said):
            RayCalls([partial(Ill, how)], {}).ask("double", 1)


@pytest.mark.slow
def test_readiness_of_everyone_and_of_the_first(cluster):
    async def ready(makers, everyone: bool) -> None:
        pool = RayPool(makers, {})
        try:
            await pool.ready(everyone)
        finally:
            pool.close()

    with pytest.raises(InputError, match="no such model"):
        asyncio.run(ready([Ill, partial(Ill, "refuses")], everyone=True))
    asyncio.run(ready([partial(Ill, "leaves"), Ill], everyone=False))
    for everyone in (True, False):  # with no place left, neither the first nor everyone will be
        with pytest.raises(InputError, match="no process of the Ray cluster lives until it is ready"):
            asyncio.run(ready([partial(Ill, "leaves")], everyone))


@pytest.mark.slow
def test_other_weights_on_a_machine_are_refused(cluster, saved_student):
    from edit_trl.evaluation.accuracy.generators import load_generator
    from edit_trl.evaluation.accuracy.generators_on_ray import RayGenerator
    from edit_trl.models.loading import ModelSource

    source = ModelSource(str(saved_student))
    with pytest.raises(InputError, match="has other weights than where the command runs"):
        RayGenerator(partial(load_generator, source), source, "of another", None)


def test_no_cluster(recipe, tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        words = ["--config", str(recipe), "--engine", "ray", "--output_dir", str(tmp_path / "run")]
        assert main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:" in error
    assert "`ray start --head`" in error
    assert not (tmp_path / "run").exists()


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray: pip install 'edit_trl\[ray\]'"):
        connect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "rya"], "did you mean 'ray'"),
        (["--actors", "2"], "`actors` is for `engine: ray`"),
        (["--engine", "ray", "--actors", "0"], "`actors` must be at least 1, got 0"),
        (["--engine", "ray", "--device", "cuda:1"], "`device: cuda:1`: with `engine: ray`"),
        (["--engine", "ray", "--harness", "x"], "`harness` needs the model on this machine"),
        (
            ["--engine", "ray", "--actors", "2", "--base_urls", "http://127.0.0.1:9/v1"],
            "`actors` is for models that are loaded",
        ),
    ],
)
def test_bad_options_of_evaluate(recipe, tmp_path, capsys, options, message):
    words = ["--config", str(recipe), "--output_dir", str(tmp_path / "run"), "--limit", "2"]
    assert main(["evaluate", *words, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actors", "2"], "`actors` is for `engine: ray`"),
        (["--engine", "ray", "--actors", "2"], "each endpoint has one process"),
        (["--engine", "ray", "--teacher", "procedural"], "has nothing to do on other machines"),
    ],
)
def test_bad_options_of_generate(tmp_path, capsys, options, message):
    file = generate_recipe(tmp_path, "http://127.0.0.1:9/v1", 2)
    assert main(["generate", "--config", str(file), *options]) == 2
    assert message in capsys.readouterr().err


def test_nothing_of_ray_is_imported_without_it(recipe, tmp_path):
    words = ["evaluate", "--config", str(recipe), "--limit", "2", "--max_new_tokens", "2"]
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], *words, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time" in line}
    assert "edit_trl.models.cluster.cluster" in imported
    assert "torch" in imported
    assert not {name for name in imported if name.split(".")[0] == "ray"}
