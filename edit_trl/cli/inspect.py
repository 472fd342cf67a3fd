"""`edit-trl inspect`: show dual CoTs with their key steps, in the terminal or on an HTML page."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edit_trl.cli.parser import Parser
from edit_trl.common.errors import InputError
from edit_trl.common.files import check_writable
from edit_trl.common.garbage import collection_paused

if TYPE_CHECKING:
    from edit_trl.data.pair_statistics import Pair

FILTERS = ("task", "mistake", "source", "id")


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl inspect`; `argv` is the options, those of the process by default.

    Raises:
        InputError: A bad option, rows that are not dual CoTs, or filters that leave no pair.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit must be 1 or more, got {options.limit}")
    if options.html:
        check_writable(options.html)
        from edit_trl.evaluation.report.page import free_path

        free_path(options.html)
    from edit_trl.data.pair_statistics import locate_pairs

    rows = _load(options)
    tokenizer = None
    if options.tokenizer:
        from edit_trl.models.adapters import adapter_base
        from edit_trl.models.loading import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer, adapter_base(options.tokenizer, "tokenizer"), option="tokenizer")
    with collection_paused():
        pairs = _filtered(locate_pairs(rows, options.method, tokenizer), options)
    _show(pairs, pairs[: options.limit], options)
    return 0


def _show(pairs: list[Pair], selection: list[Pair], options: argparse.Namespace) -> None:
    unit = "tokens" if options.tokenizer else "words"
    content = (options.dataset, pairs, selection, unit, options.method)
    if options.html:
        from edit_trl.cli.report import say_written
        from edit_trl.evaluation.report import write_pairs

        path = write_pairs(
            pairs, options.html, title=options.dataset, method=options.method, unit=unit, limit=options.limit
        )
        count = f"{len(selection)} pair{'' if len(selection) == 1 else 's'}"
        say_written(path, count)
    elif not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        _print_plain(*content)
    elif sys.stdin.isatty() and find_spec("termios"):
        from edit_trl.cli.pair_viewer import browse

        browse(*content)
    else:
        from edit_trl.cli.pair_viewer import print_pairs

        print_pairs(*content)


def _print_plain(source: str, pairs: list[Pair], selection: list[Pair], unit: str, method: str) -> None:
    from edit_trl.cli.pair_text import HEADINGS, group_tables, overview, pair_lines
    from edit_trl.common.tables import aligned

    print("\n  ".join(overview(source, pairs, unit, method)))
    for group, rows in group_tables(pairs).items():
        print()
        print(textwrap.indent(aligned([[[group, *HEADINGS], *rows]]), "  "))
    print("\nkey steps in [brackets]")
    for number, pair in enumerate(selection, 1):
        print("\n".join(["", *pair_lines(pair, f"{number} of {len(selection)}")]))


def _load(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from edit_trl.common.options import read_mapping
    from edit_trl.data.dual_cots import DatasetSource

    mapping = read_mapping(options.column_mapping, "--column_mapping") if options.column_mapping else None
    source = DatasetSource(options.dataset, options.dataset_config, options.split, options.dataset_revision, mapping)
    return source.rows()


def _filtered(pairs: list[Pair], options: argparse.Namespace) -> list[Pair]:
    """Return the pairs that match every filter; if none does, raise an InputError with the possible values."""
    from edit_trl.common.options import nearest

    wanted = {name: getattr(options, name) for name in FILTERS if getattr(options, name)}
    errors = []
    for name, values in wanted.items():
        choices = list(dict.fromkeys(choice for pair in pairs for choice in pair.names(name)))
        listed = f"; there are {', '.join(choices[:20])}{', ...' if len(choices) > 20 else ''}"
        errors += [
            f"no pair has the {name} {value!r}" + (nearest(value, choices, "") or listed if choices else "")
            for value in values
            if value not in choices
        ]
    if errors:
        raise InputError(errors)
    matches = [pair for pair in pairs if all(set(pair.names(name)) & set(wanted[name]) for name in wanted)]
    if not matches:
        raise InputError(f"no pair passes all of the filters {', '.join(f'--{name}' for name in wanted)}")
    return matches


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl inspect",
        description="Show dual CoTs: statistics of all pairs, then each pair with its key steps. In a "
        "terminal the arrow keys browse the pairs; in a pipe they are printed as plain text.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a file, a folder saved by datasets, or a Hub id")
    for name in FILTERS:
        add(f"--{name}", nargs="+", metavar="NAME", help=f"only pairs with one of these {name}s")
    add("--limit", type=int, metavar="N", help="show only the first N pairs; statistics are over all pairs")
    add(
        "--method",
        choices=["words", "edit", "fork", "forks", "step", "spans", "reference", "random"],
        default="words",
        help="the method that finds key steps (default: %(default)s); spans: those given in the rows",
    )
    add("--tokenizer", metavar="MODEL", help="align and count the tokens of this model instead of words")
    add("--html", type=Path, metavar="FILE", help="write an HTML page instead")
    add("--split", metavar="NAME", help="the split, 'train' by default")
    add("--dataset_config", metavar="NAME", help="the configuration of a Hub dataset")
    add("--dataset_revision", metavar="REV", help="the branch, tag or commit of a Hub dataset")
    add("--column_mapping", metavar="JSON", help='rename columns: \'{"correct": "chosen"}\'')
    return parser
