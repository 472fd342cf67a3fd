"""`edit-trl generate`: lets a teacher make dual CoTs and saves them (L4).

With `--config` a teacher is asked about questions, as a recipe says, and with
`--student MODEL --pivots` a student alone; else the embedded teacher writes
pairs of its own problems.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.common.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

HELP = "make dual CoTs with a teacher"


def main(argv: list[str] | None = None) -> int:
    """Runs `edit-trl generate`.

    Args:
        argv: The options; those of the process by default.

    Raises:
        InputError: A bad option, or an output that exists and may not be replaced.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] in ("--config", "--student", "--pivots") for word in argv):
        from edit_trl.cli.generate_recipe import main as generate_by_recipe

        return generate_by_recipe(argv)
    options = _parser().parse_args(argv)
    parts = _parts(options)
    _check_free(options.output, list(parts), options.force)

    from edit_trl.data.dual_cots import save_dual_cots
    from edit_trl.data.procedural import ProceduralTeacher, generate_dual_cots

    teacher = ProceduralTeacher(options.families, seed=options.seed, difficulty=options.difficulty)
    # One run for both sets: within it no problem occurs twice, so the sets share none.
    rows = sum(parts.values())
    dataset = generate_dual_cots(teacher, rows, conversational=options.conversational)
    start = 0
    for path, count in parts.items():
        part = dataset.select(range(start, start + count))
        save_dual_cots(part, path)
        print(_summary(part, path), end="\n\n")
        start += count
    print(_example(dataset[0]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edit-trl generate",
        description=f"{HELP[0].upper()}{HELP[1:]}.",
        epilog="To ask a teacher about questions of your own: edit-trl generate --config RECIPE.yaml "
        "[--OPTION VALUE ...]. To make pairs of a student's own chains: edit-trl generate --student MODEL "
        "--pivots [--OPTION VALUE ...]. edit-trl generate --config --help lists the options; "
        "recipes/generate/ has recipes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--teacher",
        choices=["procedural"],
        default="procedural",
        help="who makes them; procedural: problems of several families, without a network "
        "(default: %(default)s)",
    )
    add(
        "--families",
        nargs="+",
        metavar="FAMILY",
        help="which families of problems, in turn (default: all)",
    )
    add("--rows", type=int, required=True, metavar="N", help="how many dual CoTs")
    add(
        "--held_out",
        type=int,
        metavar="N",
        help="also make a test set of N that shares no problem with the others: they are saved as "
        "OUTPUT/train and OUTPUT/test",
    )
    add(
        "--difficulty",
        type=int,
        default=1,
        metavar="1-5",
        help="how many items and steps a problem has (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="another seed, other problems (default: %(default)s)")
    add("--conversational", action="store_true", help="save messages instead of plain strings")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="a .jsonl, .parquet or .csv file, or a folder for datasets.save_to_disk",
    )
    add("--force", action="store_true", help="replace the output if it exists")
    return parser


def _parts(options: argparse.Namespace) -> dict[Path, int]:
    """What is saved where, and how many rows of it."""
    problems = [
        f"--{name} must be 1 or more, got {value}"
        for name, value in (("rows", options.rows), ("held_out", options.held_out))
        if value is not None and value < 1
    ]
    if options.held_out is not None and options.output.suffix[1:].isalpha():
        problems.append(
            f"--held_out writes two sets, so --output must be a folder (no suffix), got {options.output}"
        )
    if problems:
        raise InputError(problems)
    if options.held_out is None:
        return {options.output: options.rows}
    return {options.output / "train": options.rows, options.output / "test": options.held_out}


def _check_free(output: Path, paths: list[Path], force: bool) -> None:
    """Refuses what would be lost or mixed up, before anything is made."""
    blocked = next((folder for folder in output.parents if folder.is_file()), None)
    if blocked:
        raise InputError(f"--output {output}: {blocked} is a file, not a folder")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise InputError(f"--output {output} exists; choose another or pass --force to replace it")
    holds_one_set = output.is_file() or (output / "state.json").exists()
    if output not in paths and holds_one_set:
        raise InputError(f"--output {output} holds one set; choose another folder for --held_out")


def _summary(dataset: Dataset, path: Path) -> str:
    """Rows per family and kinds of mistake, as plain text."""
    mistakes = Counter(kind for kinds in dataset["mistake"] for kind in kinds)
    blocks = [("family", Counter(dataset["task"])), ("mistake", mistakes)]
    lines = [f"{path}: {len(dataset)} rows"]
    width = max(len(name) for _, counts in blocks for name in counts)
    for title, counts in blocks:
        lines += ["", f"  {title:<{width}}   rows"]
        lines += [f"  {name:<{width}} {count:>6}" for name, count in counts.most_common()]
    return "\n".join(lines)


def _example(row: dict) -> str:
    from edit_trl.cli.pair_text import bracketed
    from edit_trl.data.dual_cots import chain_text, is_conversational

    prompt = row["prompt"][-1]["content"] if is_conversational(row) else row["prompt"]
    chosen, rejected = chain_text(row["chosen"]), chain_text(row["rejected"])
    return "\n".join(
        [
            f"example ({row['id']}, key steps in [brackets]):",
            f"  prompt    {prompt}",
            f"  chosen    {bracketed(chosen, row['chosen_key_spans'])}",
            f"  rejected  {bracketed(rejected, row['rejected_key_spans'])}",
            f"  mistake   {', '.join(row['mistake'])}",
        ]
    )
