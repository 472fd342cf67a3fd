"""`edit-trl generate`: make dual CoTs, with a teacher or without one.

With the options of a teacher, in a recipe or not, it answers questions. With `--student MODEL --pairs closest` the
pairs come from the student's own chains. Without either the embedded teacher writes problems with both of their chains.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.parser import Parser

if TYPE_CHECKING:
    from datasets import Dataset

    from edit_trl.teachers.generate_config import GenerateConfig
    from edit_trl.teachers.generation import Generation

USAGE = (
    "edit-trl generate [--families FAMILY ...] [--rows N] [--OPTION VALUE ...]\n"
    "       edit-trl generate --config RECIPE.yaml [--OPTION VALUE ...]\n"
    "       edit-trl generate --base_urls URL --model TEACHER --dataset_name QUESTIONS [--OPTION VALUE ...]\n"
    "       edit-trl generate --student MODEL --pairs closest|pivots [--OPTION VALUE ...]"
)
DESCRIPTION = (
    "Make dual CoTs. With a teacher (--config, --base_urls, --model) it is asked questions, and its answers become "
    "dual CoTs. With --pairs they are made from a student's own chains. With neither, the embedded teacher writes "
    "problems with both of their chains, without a network. recipes/generate/ has recipes."
)


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl generate`; `argv` is the options, those of the process by default.

    Raises:
        InputError: A bad option or recipe, before any request is sent; an output that exists and may not be
            replaced; or a run that stopped.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(_help())
        return 0
    if _asks_a_model(argv):
        return _generate_by_recipe(argv)
    options = _parser().parse_args(argv)

    from edit_trl.data.procedural import ProceduralTeacher
    from edit_trl.data.procedural.sets import plan_sets, save_sets

    sizes = plan_sets(options.output, options.rows, options.held_out, force=options.force)
    teacher = ProceduralTeacher(options.families, seed=options.seed, difficulty=options.difficulty)
    sets = save_sets(teacher, sizes, conversational=options.conversational)
    for path, dataset in sets.items():
        print(_set_summary(dataset, path), end="\n\n")
    print(_example(next(iter(sets.values()))[0]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl generate",
        usage=argparse.SUPPRESS,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 28, 100),
    )
    add = parser.add_argument_group("problems of the embedded teacher").add_argument
    add("--teacher", choices=["procedural"], default="procedural", help=argparse.SUPPRESS)
    add("--families", nargs="+", metavar="FAMILY", help="the families of problems, in turn (default: all)")
    add("--rows", type=int, default=100, metavar="N", help="the number of dual CoTs (default: %(default)s)")
    add(
        "--held_out",
        type=int,
        metavar="N",
        help="also make a test set of N rows that shares no problem with the training set; they are saved as "
        "OUTPUT_DIR/train and OUTPUT_DIR/test",
    )
    add(
        "--difficulty",
        type=int,
        default=1,
        metavar="1-5",
        help="sets the number of items and steps of a problem (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="another seed gives other problems (default: %(default)s)")
    add(
        "--conversational",
        type=_boolean,
        nargs="?",
        const=True,
        default=True,
        metavar="true|false",
        help="whether rows hold messages rather than plain strings (default: true)",
    )
    add(
        "--output_dir",
        "--output",
        dest="output",
        type=Path,
        default=Path("outputs/dual_cots"),
        metavar="PATH",
        help="a folder for datasets.save_to_disk, or a .jsonl, .parquet or .csv file (default: %(default)s)",
    )
    add("--force", action="store_true", help="replace the output if it exists")
    return parser


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _help() -> str:
    from edit_trl.common.options import format_help
    from edit_trl.teachers.generate_config import CLASSES, HIDDEN

    own = _parser().format_help().strip()
    others = format_help("", "With a teacher or a student, in a recipe or here:", CLASSES, HIDDEN)
    lines = [f"usage: {USAGE}", "", *textwrap.wrap(DESCRIPTION, 100), "", own, "", others.partition("\n\n")[2]]
    return "\n".join(lines)


def _asks_a_model(argv: Sequence[str]) -> bool:
    """Return whether the options are those of a recipe: they name one, or an option that the embedded teacher lacks."""
    from edit_trl.teachers.generate_config import OPTIONS

    words = [word.partition("=") for word in argv if word.startswith("--")]
    names = {name[2:].replace("-", "_") for name, _, _ in words}
    own = {string[2:] for action in _parser()._actions for string in action.option_strings}
    teachers = {value for name, _, value in words if name == "--teacher" and value}
    teachers |= {following for word, following in itertools.pairwise(argv) if word == "--teacher"}
    return bool(names & ({"config", *OPTIONS} - own)) or not teachers <= {"procedural"}


def _set_summary(dataset: Dataset, path: Path) -> str:
    """Return rows per family and per kind of mistake, as plain text."""
    mistakes = Counter(kind for kinds in dataset["mistake"] for kind in kinds)
    blocks = [("family", Counter(dataset["task"])), ("mistake", mistakes)]
    lines = [f"{path}: {len(dataset)} rows"]
    width = max(len(name) for _, counts in blocks for name in counts)
    for title, counts in blocks:
        lines += ["", f"  {title:<{width}}   rows"]
        lines += [f"  {name:<{width}} {count:>6}" for name, count in counts.most_common()]
    return "\n".join(lines)


def _example(row: dict) -> str:
    from edit_trl.cli.pair_text import bracketed, prompt_text
    from edit_trl.data.row import chain_text

    chosen, rejected = chain_text(row["chosen"]), chain_text(row["rejected"])
    return "\n".join(
        [
            f"example ({row['id']}, key steps in [brackets]):",
            f"  prompt    {prompt_text(row['prompt'])}",
            f"  chosen    {bracketed(chosen, row['chosen_key_spans'])}",
            f"  rejected  {bracketed(rejected, row['rejected_key_spans'])}",
            f"  mistake   {', '.join(row['mistake'])}",
        ]
    )


def _generate_by_recipe(argv: Sequence[str]) -> int:
    from edit_trl.common.options import read_options
    from edit_trl.models.chat.dispatch import Interrupted
    from edit_trl.teachers.generate_config import FLAGS, OPTIONS, read_generate_config

    path, options = read_options(argv, OPTIONS, FLAGS)
    config = read_generate_config(path, options)
    try:
        if config.arguments.train_recipe:
            from edit_trl.cli.rounds import run_rounds

            run_rounds(config, _generate)
        else:
            _generate(config, Path(config.arguments.output_dir))
    except Interrupted as interruption:
        print(f"{interruption}:\n  {shlex.join(['edit-trl', 'generate', *argv])}", file=sys.stderr)
        return 130
    return 0


def _generate(config: GenerateConfig, folder: Path) -> None:
    from edit_trl.teachers.export import push_generation
    from edit_trl.teachers.run import GenerationPlan

    plan = GenerationPlan(config)
    print(plan, file=sys.stderr)
    generation, rows = asyncio.run(plan.run(folder))
    print(_generation_summary(generation, folder, rows))
    repository = config.arguments.push_to_hub
    if repository:
        push_generation(folder, repository, private=config.arguments.private)
        print(f"pushed to {repository}")


def _generation_summary(generation: Generation, folder: Path, rows: dict[str, int]) -> str:
    lines = [f"{folder / name}: {count} rows" for name, count in rows.items()]
    lines += [f"  dropped, {reason}: {len(ids)}" for reason, ids in sorted(generation.dropped.items())]
    critiques = generation.counts.get("critique")
    if critiques:
        left_out = ", ".join(f"{count} {name}" for name, count in sorted(critiques.items()) if name != "critique")
        lines.append(f"  critiques: {critiques['critique']}" + (f"; left out: {left_out}" if left_out else ""))
    if generation.with_thoughts and generation.thoughts == "drop":
        lines.append(f"  thoughts left out: of {generation.with_thoughts} answers (`thoughts: keep` keeps them)")
    if generation.failures:
        question, stage, reason = generation.failures[0]
        lines.append(
            f"  without an answer: {len(generation.failures)}, the first in {stage} of {question}: {reason} "
            f"(all in {folder / 'report.json'})"
        )
    return "\n".join(lines)
