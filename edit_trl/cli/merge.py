"""`edit-trl merge`: merge an adapter into the weights of its model."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edit_trl.cli.chat import model_folder
from edit_trl.cli.parser import Parser
from edit_trl.common.checks import not_negative
from edit_trl.common.errors import raise_problems
from edit_trl.common.files import check_writable

if TYPE_CHECKING:
    from edit_trl.hub.card_facts import CardFacts
    from edit_trl.models.merging import MergeReport


def main(argv: list[str] | None = None) -> int:
    """Run `edit-trl merge`.

    Raises:
        InputError: There is no adapter, it belongs to another base model, the output is not empty, or the
            log-probabilities differ.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    raise_problems(not_negative(tolerance=options.tolerance))
    folder = model_folder(options.run)
    check_writable(options.output)

    from edit_trl.hub.card_facts import read_facts
    from edit_trl.models.merging import merge_adapter

    facts = read_facts(Path(folder)) if Path(folder).is_dir() else None
    trained = facts.stages[-1] if facts else None
    report = merge_adapter(
        folder,
        options.output,
        base_model=options.base_model,
        quantization=trained.quantization if trained else None,
        texts=[f"{example.prompt}\n{example.chosen}" for example in trained.examples] if trained else (),
        dtype=options.dtype,
        tolerance=options.tolerance,
        trust_remote_code=options.trust_remote_code,
    )
    if facts is not None:
        _write_card(Path(folder), facts, options.output)
    print(_summary(report, folder, options.output))
    print(_serving(report, options.output))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edit-trl merge",
        description="Merge an adapter into the weights of its model and save the result as a plain model in "
        "safetensors, with tokenizer, card and a Modelfile for Ollama. An adapter of a 4-bit model is merged into "
        "the full weights in bfloat16. Log-probabilities of a few texts are compared before and after; if they "
        "differ by more than the tolerance, nothing is saved. It ends with the commands that serve the result.",
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="the folder of a training run (its last finished stage is taken), an adapter's folder or Hub id",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="the folder of the merged model")
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of the merged weights (default: as the base model is saved; bfloat16 after training in 4 bits)",
    )
    add("--base_model", metavar="PATH|ID", help="the base model, if it is elsewhere than the adapter says")
    add(
        "--tolerance",
        type=float,
        metavar="NATS",
        help="the mean change of log-probabilities per token that is allowed (default: 0.001 in float32, else 0.1)",
    )
    add("--trust_remote_code", action="store_true", help="run code that comes with the base model")
    return parser


def _write_card(adapter: Path, facts: CardFacts, output: Path) -> None:
    from edit_trl.common.run_file import stage_options
    from edit_trl.hub.card_facts import write_facts
    from edit_trl.hub.model_card import write_card
    from edit_trl.hub.recipe_file import recipe_text

    facts = replace(facts, form="merged")
    write_facts(output, facts)
    write_card(output, facts)
    stages = stage_options(adapter, [stage.name for stage in facts.stages])
    if stages:
        (output / "recipe.yaml").write_text(recipe_text(stages, output.resolve().name), encoding="utf-8")


def _summary(report: MergeReport, adapter: str, output: Path) -> str:
    lines = [
        f"the merged model ({report.dtype}) is in {output}: {adapter}, merged into {report.base_model}",
        f"log-probabilities of {report.tokens} tokens, before and after: they differ by {report.mean:.2g} "
        f"nats on average, by {report.largest:.2g} at most (allowed: {report.tolerance:g} on average)",
    ]
    if report.quantized_mean is not None:
        lines.append(f"to the quantized model that was trained: {report.quantized_mean:.2g} nats on average")
    return "\n".join(lines)


def _serving(report: MergeReport, output: Path) -> str:
    """Return the commands that serve a merged model."""
    from edit_trl.models.modelfile import GGUF_FILE, MODELFILE

    folder, gguf, modelfile = (shlex.quote(str(path)) for path in (output, output / GGUF_FILE, output / MODELFILE))
    name = re.sub(r"[^a-z0-9._-]+", "-", output.resolve().name.lower()).strip("-._") or "student"
    lines = [
        "",
        "serve it with vLLM:",
        f"  vllm serve {folder}",
        "with llama.cpp, whose clone is in llama.cpp:",
        f"  python llama.cpp/convert_hf_to_gguf.py {folder} --outfile {gguf} --outtype auto",
        f"  llama-server --model {gguf} --jinja",
        f"with Ollama, which needs {gguf} too:",
        f"  ollama create {name} --file {modelfile} && ollama run {name}",
    ]
    return "\n".join(lines + [f"  ({note})" for note in report.notes])
