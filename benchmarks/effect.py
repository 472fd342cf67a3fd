"""Measures the effect of methods: methods x students x seeds, compared with SFT of as many steps.

    python benchmarks/effect.py benchmarks/effect_small.yaml --output outputs/effect [--jobs 2]

Every method starts from the warm-up checkpoint of its seed and gets the same number of optimizer steps; its learning
rate and strength are chosen on a dev set. The same command resumes from the cells that are done. Prints tables and, as
the last line, one JSON object; `--report` writes them from the cells that are done so far.
"""

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from effect_matrix.cells import clear, list_cells, read_cell, settle
from effect_matrix.checks import check_options, check_power, detectable, items_of
from effect_matrix.config import read_matrix
from effect_matrix.data import make_sets
from effect_matrix.kept import keep, take_up, with_missing
from effect_matrix.matrix import Matrix
from effect_matrix.pool import Ended, run_cells
from inputs import run_benchmark

from edit_trl.common.errors import InputError
from edit_trl.common.options import nearest


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("matrix", type=Path, help="The YAML file of the matrix.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for cells and results.")
    parser.add_argument(
        "--jobs", type=int, default=1, help="Number of cells that run at once, each with one thread on a CPU."
    )
    parser.add_argument(
        "--path", nargs="+", default=[], metavar="NAME=PATH", help="Replaces a path of the matrix file's `paths`."
    )
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="Run only these methods, and the baseline.")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="Also keep each finished cell's record here, as small JSON to commit, and take up those that are here.",
    )
    parser.add_argument("--redo", action="store_true", help="Run cells again whose part of the YAML has changed.")
    parser.add_argument("--check", action="store_true", help="Check everything without running a cell.")
    parser.add_argument(
        "--report", action="store_true", help="Write the results of the cells that are done, without running one."
    )
    parser.add_argument("--markdown", type=Path, help="Write the tables into this file, between its markers.")
    return parser.parse_args(argv)


def named_paths(words: list[str]) -> dict[str, str]:
    """`NAME=PATH` words as a mapping."""
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise InputError(f"--path takes NAME=PATH, got {wrong[0]!r}")
    return dict(word.split("=", 1) for word in words)


def only(matrix: Matrix, names: list[str] | None) -> Matrix:
    """The matrix with only some of its methods.

    Raises:
        InputError: The matrix does not have a method.
    """
    if names is None:
        return matrix
    unknown = [name for name in names if name not in matrix.methods]
    if unknown:
        raise InputError([f"no method {name!r}{nearest(name, matrix.methods)}" for name in unknown])
    methods = {name: item for name, item in matrix.methods.items() if name in (*names, matrix.baseline)}
    collapse = matrix.collapse if matrix.collapse and matrix.collapse.method in methods else None
    return replace(matrix, methods=methods, collapse=collapse)


def show_power(matrix: Matrix) -> None:
    effects = detectable(matrix)
    assumption = f"assuming that runs differ in {matrix.power.discordant:.0%} of items"
    for name, effect in effects.items():
        size = f"{name}: {items_of(matrix.data.tests[name])} items x {len(matrix.seeds)} seeds"
        print(f"{size} show a true difference of {effect:.1%} 4 times in 5 ({assumption})")
    check_power(matrix, effects)


def take_up_kept(matrix: Matrix, args: argparse.Namespace) -> None:
    """Take up the kept records, and say how many there are and which were kept aside."""
    if args.keep is None:
        return
    taken, aside = take_up(list_cells(matrix), args.output, args.keep, matrix.paths, args.redo)
    if taken:
        print(f"{len(taken)} records taken up from {args.keep}")
    for file in aside:
        print(f"kept aside, since its part of the matrix has changed: {file}")


def run(matrix: Matrix, args: argparse.Namespace) -> int:
    show_power(matrix)
    cells = list_cells(matrix)
    take_up_kept(matrix, args)
    left = settle(cells, args.output, args.redo)
    print(f"{len(cells)} cells, {len(cells) - len(left)} done, {len(left)} to do", flush=True)
    if args.check:
        return 0
    again = {cell.name for cell in left}
    left = with_missing(left, cells, args.output)
    if len(left) > len(again):
        names = ", ".join(cell.name for cell in left if cell.name not in again)
        print(f"run again for their models and pairs, which a record does not have: {names}", flush=True)
    clear(left, args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "evaluation.json").write_text(json.dumps(vars(matrix.evaluation)), encoding="utf-8")
    count = 0

    def tell(end: Ended) -> None:
        nonlocal count
        count += 1
        if args.keep:
            keep(end.cell, args.output, args.keep, matrix.paths)
        clock = time.strftime("%H:%M:%S")
        record = read_cell(end.cell.folder(args.output))
        dev = record.get("result", {}).get("dev")
        accuracy = f", {dev['accuracy']:.1%} on dev" if dev else ""
        place = f"{clock} {count}/{len(left)} {end.cell.name}"
        print(f"{place}: {end.status}, {end.seconds:.0f} s{accuracy}", flush=True)

    done = {cell.name for cell in cells} - {cell.name for cell in left}
    ended = run_cells(left, done, args.output, args.jobs, tell)
    failed = [end.cell for end in ended if end.status != "done"]
    for cell in failed:
        print(f"failed: {cell.name}: {read_cell(cell.folder(args.output))['error']}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    # SIGTERM acts like Ctrl-C, so that the workers are killed on exit.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.jobs < 1:
            raise InputError(f"--jobs must be at least 1, got {args.jobs}")
        matrix = only(read_matrix(args.matrix, named_paths(args.path)), args.only)
        if args.report:
            from effect_matrix.results import report

            take_up_kept(matrix, args)
            return report(matrix, args.output, args.markdown)
        check_options(matrix)
        make_sets(matrix, args.output / "data")
        code = run(matrix, args)
        if not args.check:
            from effect_matrix.results import report

            code = report(matrix, args.output, args.markdown) or code
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the cells that are done", file=sys.stderr)
        return 130


if __name__ == "__main__":
    run_benchmark(main)
