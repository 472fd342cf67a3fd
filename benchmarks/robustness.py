"""Tries bad inputs of every kind on every command, and counts what comes of them.

    python benchmarks/robustness.py [--jobs 2] [--only PATTERN] [--list] [--json FILE] [--keep FOLDER]

Everything is made here: a tiny model, an adapter, runs, histories, endpoints on loopback. A case is clean if the
command ends with exit code 2 and a message that names what is wrong, leaves nothing half-written and pays for nothing;
or, where there is a right result, if it gives that. It is silent if the command succeeds in spite of the fault or gives
a wrong result; a traceback if it ends in one, hangs or is killed; unclear if the message or what is left behind is not
as it should be. Commands run in forks of processes that have imported the libraries. Full disks, devices and missing
rights need root; elsewhere those cases are skipped. The last line is one JSON object. Exits with 1 if a case is silent
or a traceback.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from machine import cpu_name
from robustness_cases import child
from robustness_cases.all_cases import all_cases
from robustness_cases.case import CONTROL, VERDICTS, Case
from robustness_cases.material import make_material
from robustness_cases.worker import Report, can_mount, run_case

from edit_trl.common.terminal import visible


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Commands that run at once.")
    parser.add_argument("--only", metavar="PATTERN", help="Only cases whose title this regular expression matches.")
    parser.add_argument("--list", action="store_true", help="Print the titles of the cases, and run none.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the verdict on each case.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep the folders of the cases in this new folder.")
    return parser.parse_args(argv)


def choose(pattern: str | None) -> list[Case]:
    """The cases whose title matches, without those that this machine cannot run."""
    rooted = can_mount()
    cases = [case for case in all_cases().values() if rooted or not case.needs_root]
    return [case for case in cases if pattern is None or re.search(pattern, case.title)]


def run_cases(cases: Sequence[Case], folder: Path, jobs: int, keep: bool) -> dict[str, Report]:
    """Run the cases in processes that are forked from this one, and return the reports by title."""
    material = folder / "material"
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), child.warm_up, (folder / "log.txt",)) as pool:
        pool.submit(make_material, material).result()
        waiting = {}
        for number, case in enumerate(cases):
            own = folder / f"{number:03}"
            own.mkdir()
            waiting[pool.submit(run_case, case.title, material, own, keep)] = case.title
        reports = {}
        for done in as_completed(waiting):
            reports[waiting[done]] = done.result()
            print(f"\r{len(reports)} of {len(cases)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return reports


def table(cases: Sequence[Case], reports: dict[str, Report], by: str) -> str:
    """How many cases of each kind, or of each command, had each verdict."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        if case.kind != CONTROL:
            counts.setdefault(getattr(case, by), Counter())[reports[case.title].verdict] += 1
    counts["all"] = sum(counts.values(), Counter())
    rows = [f"| {by} | tried | {' | '.join(VERDICTS)} |", "|---" * (len(VERDICTS) + 2) + "|"]
    for name, verdicts in counts.items():
        numbers = " | ".join(str(verdicts[verdict]) for verdict in VERDICTS)
        rows.append(f"| {name} | {verdicts.total()} | {numbers} |")
    return "\n".join(rows)


def listed(cases: Sequence[Case], reports: dict[str, Report]) -> str:
    """Every case that is not clean, what was wrong, and how to repeat it."""
    blocks = []
    for case in cases:
        report = reports[case.title]
        if report.verdict != "clean":
            again = shlex.join(["python", "benchmarks/robustness.py", "--only", f"^{re.escape(case.title)}$"])
            blocks.append(f"{report.verdict}: {case.title}\n  {visible(report.wrong)}\n  {report.line}\n  {again}\n")
    return "\n".join(blocks)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    cases = choose(args.only)
    if args.list or not cases:
        print("\n".join(case.title for case in cases) or f"no case matches {args.only!r}")
        return 0 if cases else 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="robustness-", ignore_cleanup_errors=True) as name:
        folder = args.keep or Path(name)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        reports = run_cases(cases, folder.resolve(), args.jobs, args.keep is not None)
    print(listed(cases, reports))
    print(table(cases, reports, "kind"), table(cases, reports, "command"), sep="\n\n")
    verdicts = Counter(reports[case.title].verdict for case in cases if case.kind != CONTROL)
    broken = [case.title for case in cases if case.kind == CONTROL and reports[case.title].verdict != "clean"]
    if args.json:
        args.json.write_text(json.dumps({title: asdict(report) for title, report in sorted(reports.items())}, indent=1))
    figures = {
        "benchmark": "robustness",
        "tried": verdicts.total(),
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
    }
    machine = {"processor": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps(figures | {"seconds": round(time.monotonic() - started), "machine": machine}))
    return int(bool(broken or verdicts["silent"] or verdicts["traceback"]))


if __name__ == "__main__":
    sys.exit(main())
