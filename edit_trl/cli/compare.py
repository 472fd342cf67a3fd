"""`edit-trl compare`: runs of evaluate or suite against a baseline, and gates for CI."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.parser import Parser
from edit_trl.common.errors import InputError, raise_problems
from edit_trl.common.files import write_whole

if TYPE_CHECKING:
    from edit_trl.evaluation.compare.comparison import Comparison
    from edit_trl.evaluation.compare.gates import GateResult, Gates


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl compare`.

    Args:
        argv: The options; those of the process by default.

    Returns:
        0, or 1 if a gate failed.

    Raises:
        InputError: The runs cannot be compared, or an option is wrong.
    """
    options = _parser().parse_args(argv)
    from edit_trl.evaluation.compare.comparison import compare_runs
    from edit_trl.evaluation.compare.gates import Gates, check_gates, junit_error_xml
    from edit_trl.evaluation.compare.matching import match_folders

    gates = Gates(options.min_score, options.max_drop, options.no_significant_regression, options.max_broken)
    try:
        _check(options, gates)
        baseline, *others = map(match_folders, options.runs)
        comparison = compare_runs(
            baseline, *others, score=options.score, by=options.by, any_decoding=options.any_decoding
        )
        results = check_gates(comparison, gates)
    except InputError as error:
        if options.junit is not None:
            _write(options.junit, junit_error_xml(str(error)))
        raise
    _show(options, comparison, results)
    failed = [result for result in results if not result.passed]
    if failed and _to_stdout(options):
        for result in failed:
            print(f"failed: {result.gate}: {result.system}: {result.message}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl compare",
        description="Compare runs of evaluate or suite with a baseline, item by item.",
        epilog="Exit code: 0, 1 where a gate failed, 2 where the runs cannot be compared.",
    )
    add = parser.add_argument
    runs = (
        "folders of runs, the baseline first; seeds of one system are joined by commas, or given as a pattern in "
        "quotes: 'outputs/edit_seed*'"
    )
    add("runs", nargs="+", metavar="RUN", help=runs)
    add("--score", metavar="NAME", help="score to compare (default: accuracy, or key_preference of a suite)")
    groups = ["task", "mistake", "source"]
    add("--by", choices=groups, default="task", help="the rows of the table (default: %(default)s)")
    decoding = "compare runs although their decoding differs, such as greedy with self-consistency"
    add("--any-decoding", action="store_true", help=decoding)
    form = parser.add_argument_group("output, besides the table ('-': to stdout, in its place)")
    form.add_argument("--markdown", metavar="FILE", help="Markdown for a pull request")
    form.add_argument("--json", metavar="FILE", help="all results, with the items that flipped or are missing")
    form.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML, one test case per gate")
    gate = parser.add_argument_group(
        "gates, for every run but the baseline (numbers in the score's unit: 0.5 or 50%, or nats)"
    )
    gate.add_argument("--min-score", type=_number, metavar="X", help="the score is at least X")
    gate.add_argument("--max-drop", type=_number, metavar="X", help="it is at most X worse")
    worse = "it is not significantly worse (5%%), overall or, by Holm's method, in any row"
    gate.add_argument("--no-significant-regression", action="store_true", help=worse)
    gate.add_argument("--max-broken", type=_count, metavar="N", help="at most N right items became wrong")
    return parser


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of items")
    return number


def _number(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a number, or one with %, is expected, got {text!r}") from error


def _check(options: argparse.Namespace, gates: Gates) -> None:
    errors = []
    if len(options.runs) < 2:
        errors.append(
            f"only one system ({options.runs[0]}); give the baseline and at least one other. In quotes a "
            "pattern is one system, its seeds"
        )
    if options.markdown == "-" and options.json == "-":
        errors.append("--markdown - and --json - cannot both go to stdout; name a file for one")
    if options.junit and not gates:
        errors.append("--junit writes one test case per gate, and there is no gate; add one, such as --max-drop 0.02")
    raise_problems(errors)


def _to_stdout(options: argparse.Namespace) -> bool:
    return "-" in (options.markdown, options.json)


def _show(options: argparse.Namespace, comparison: Comparison, results: list[GateResult]) -> None:
    from edit_trl.evaluation.compare.gates import junit_xml
    from edit_trl.evaluation.compare.output import markdown, print_comparison

    if options.markdown is not None:
        _write(options.markdown, markdown(comparison, results).encode())
    if options.json is not None:
        values = comparison.to_dict() | {"gates": [vars(result) for result in results]}
        _write(options.json, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
    if options.junit is not None:
        _write(options.junit, junit_xml(results))
    if not _to_stdout(options):
        from rich.console import Console

        terminal = sys.stdout.isatty()
        print_comparison(comparison, results, Console(width=None if terminal else 1000, highlight=False))


def _write(file: str | Path, content: bytes) -> None:
    if str(file) == "-":
        print(content.decode(), end="")
        return
    try:
        write_whole(file, content)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error
