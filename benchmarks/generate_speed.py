"""Measures how fast requests are sent and answers are journaled, compared with an ideal client.

    python benchmarks/generate_speed.py [--concurrency 64 256] [--delay 0.05] [--requests 4000]
                                        [--memory 50000]

A server in a process of its own answers each request after `--delay` seconds with fixed text. The ideal is
concurrency / delay requests per second. `bare` is the same client (`openai`) in a loop without our pacing and
journal: the limit of the client and the machine. `--memory` sends that many requests and reports the growth of
the process. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from inputs import count, run_benchmark

from edit_trl.models.chat.dispatch import Answer, Dispatcher, Limits
from edit_trl.models.chat.endpoint import OpenAICompatibleTeacher
from edit_trl.models.chat.journal import Journal
from edit_trl.models.chat.protocol import ChatRequest, Sampling

SERVER = Path(__file__).parents[1] / "tests" / "chat_server.py"
MODEL = "test-model"
PROMPT = "A question of some length, so that a request is what requests are. " * 10


def requests(count: int) -> Iterator[ChatRequest]:
    for number in range(count):
        yield ChatRequest("annotate", str(number), "v1", (("user", f"{PROMPT}{number}"),), Sampling())


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def ours(url: str, count: int, concurrency: int, folder: str) -> dict[str, float]:
    """Run the dispatcher with its journal; the time includes the first answers, while it finds its pace."""
    teacher = OpenAICompatibleTeacher(MODEL, [url])
    with Journal(folder) as journal:
        dispatcher = Dispatcher(teacher, journal, Limits(max_concurrency=concurrency))
        answered, memory = 0, []
        started, cpu = time.perf_counter(), cpu_seconds()
        async for outcome in dispatcher.run(requests(count)):
            answered += isinstance(outcome, Answer)
            if answered % max(count // 10, 1) == 0:
                memory.append(resident_mib())
        seconds, spent = time.perf_counter() - started, cpu_seconds() - cpu
        assert answered == count == len(journal)
    await teacher.close()
    return {
        "requests_per_second": count / seconds,
        "cpu_ms_per_request": 1000 * spent / count,
        "memory_first_mib": memory[0],
        "memory_last_mib": memory[-1],
    }


async def bare(url: str, count: int, concurrency: int) -> dict[str, float]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    source = requests(count)

    async def work() -> None:
        for request in source:
            messages = [{"role": role, "content": text} for role, text in request.messages]
            await client.chat.completions.create(model=MODEL, messages=messages, temperature=0.2)

    started, cpu = time.perf_counter(), cpu_seconds()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    seconds, spent = time.perf_counter() - started, cpu_seconds() - cpu
    await client.close()
    return {"requests_per_second": count / seconds, "cpu_ms_per_request": 1000 * spent / count}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=count, nargs="+", default=[16, 64, 256])
    parser.add_argument("--delay", type=float, default=0.05, help="seconds until the server answers")
    parser.add_argument("--requests", type=count, default=4000)
    parser.add_argument("--memory", type=int, default=0, help="number of requests of the run that measures memory")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    command = [sys.executable, str(SERVER), "--delay", str(args.delay)]
    rows: dict[str, dict[str, float]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        try:
            for concurrency in args.concurrency:
                rows[f"bare {concurrency}"] = asyncio.run(bare(url, args.requests, concurrency))
                with tempfile.TemporaryDirectory() as folder:
                    rows[f"ours {concurrency}"] = asyncio.run(ours(url, args.requests, concurrency, folder))
            if args.memory:
                with tempfile.TemporaryDirectory() as folder:
                    rows["memory"] = asyncio.run(ours(url, args.memory, args.concurrency[-1], folder))
        finally:
            server.terminate()
    print(f"{'':<10}{'ideal/s':>9}{'reached/s':>11}{'of ideal':>10}{'CPU ms/request':>16}{'MiB':>16}")
    for name, row in rows.items():
        concurrency = int(name.split()[1]) if " " in name else args.concurrency[-1]
        ideal = concurrency / args.delay
        memory = ""
        if "memory_first_mib" in row:
            memory = f"{row['memory_first_mib']:.0f} -> {row['memory_last_mib']:.0f}"
        reached = row["requests_per_second"]
        cpu = row["cpu_ms_per_request"]
        print(f"{name:<10}{ideal:>9.0f}{reached:>11.0f}{reached / ideal:>10.1%}{cpu:>16.2f}{memory:>16}")
    print(
        json.dumps(
            {
                "benchmark": "generate_speed",
                "arguments": vars(args),
                "rows": rows,
                "versions": {"python": platform.python_version(), "openai": version("openai")},
                "machine": {"device": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            }
        )
    )


if __name__ == "__main__":
    run_benchmark(main)
