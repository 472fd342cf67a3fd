"""Options that do not exist, have no value, or have one that cannot be: a line of each, and what its message must name."""

from __future__ import annotations

from collections.abc import Iterator

from robustness_cases.case import Case
from robustness_cases.commands import COMMANDS, words

UNKNOWN = {
    "train --learning_rte 1e-3": "learning_rte.*learning_rate",
    "train --prefrence_weight 0.2": "prefrence_weight.*preference_weight",
    "validate --max_step 3": "max_step.*max_steps",
    "generate --max_tokns 9": "max_tokns.*max_tokens",
    "inspect --limt 3": "limt",
    "evaluate --max_new_token 9": "max_new_token.*max_new_tokens",
    "suite --greddy false": "greddy.*greedy",
    "compare --min-scor 0.5": "min-scor",
    "report --titel x": "titel",
    "history --metrc accuracy": "metrc",
    "judge --temprature 0": "temprature.*temperature",
    "merge --dtyp float32": "dtyp",
    "push --revison main": "revison",
    "chat --systm x": "systm",
}
WITHOUT_A_VALUE = {
    "train --learning_rate": "learning_rate",
    "validate --dataset": "dataset",
    "generate --max_tokens": "max_tokens",
    "inspect --html": "html",
    "evaluate --limit": "limit",
    "suite --batch_size": "batch_size",
    "compare --min-score": "min-score",
    "report --output": "output",
    "history --last": "last",
    "judge --runs": "runs",
    "merge --dtype": "dtype",
    "push --repo_id": "repo_id",
    "chat --temperature": "temperature",
}
VALUES = {
    "generate": {
        "--temperature nan": "temperature", "--temperature inf": "temperature", "--temperature -1": "temperature.*-1",
        "--top_p nan": "top_p", "--top_p 1.5": r"top_p.*1\.5", "--top_p 0": "top_p", "--timeout inf": "timeout",
        "--timeout nan": "timeout", "--timeout 0": "timeout", "--timeout -5": "timeout.*-5", "--max_tokens 0": "max_tokens",
        "--max_tokens 1.5": r"max_tokens.*1\.5", "--samples 0": "samples", "--samples many": "samples.*many",
        "--max_cost nan --prompt_price 1": "max_cost", "--max_cost 1 --prompt_price nan": "prompt_price",
        "--max_cost -1 --prompt_price 1": "max_cost.*-1", "--prompt_price -1": "prompt_price.*-1",
        "--completion_price inf": "completion_price", "--max_concurrency 0": "max_concurrency",
        "--max_attempts 0": "max_attempts", "--requests_per_minute nan": "requests_per_minute",
        "--requests_per_minute 0": "requests_per_minute", "--tokens_per_minute -1": "tokens_per_minute",
        "--give_up_after nan": "give_up_after", "--give_up_after -1": "give_up_after", "--rectify hnt": "rectify.*hint",
        "--label finr": "label.*fine", "--teacher openai": "teacher.*openai", "--answer_type numbr": "answer_type.*number",
        "--corrupt perhaps": "corrupt.*perhaps", "--limit 0": "limit", "--limit -3": "limit.*-3", "--rounds 0": "rounds",
        "--wrong_share 2 --teacher procedural --dataset_name null": "wrong_share", "--seed 1.5": r"seed.*1\.5",
        "--seed 9223372036854775808 --send_seed true": "seed", "--seed -9223372036854775809 --send_seed true": "seed",
        "--extra_body 5": "extra_body", "--extra_body {": "extra_body|cannot be read", "--base_urls null": "base_urls",
        "--column_mapping [question]": "column_mapping",
        "--base_urls http://teacher.invalid/v1 --api_key_env NO_SUCH_KEY": "NO_SUCH_KEY",
    },
    "evaluate": {
        "--temperature nan": "temperature", "--temperature -0.5": r"temperature.*-0\.5", "--top_p nan": "top_p",
        "--max_new_tokens 0": "max_new_tokens", "--max_new_tokens nan": "max_new_tokens.*nan",
        "--max_new_tokens 100000": "max_new_tokens.*100000", "--samples 3": "samples", "--samples 0": "samples",
        "--batch_size 0": "batch_size", "--batch_size -1": "batch_size.*-1", "--dtype float64": "dtype.*float64",
        "--dtype bfloat": "dtype.*bfloat16", "--device cuda:99": "cuda:99", "--device nowhere": "nowhere",
        "--batching continous": "batching.*continuous", "--engine rays": "engine.*ray", "--limit 0": "limit",
        "--limit 99999999999999999999999x": "limit", "--tasks null": "tasks", "--tasks nothing": "nothing",
        "--attn_implementation eagr": "attn_implementation.*eagr|eagr.*eager", "--seed 1e3": "seed", "--seed 99999999999999999999": "seed",
        "--history /dev/full": "/dev/full", "--history student": "student", "--harness no_such_task": "no_such_task",
        "--conversational 2": "conversational.*2", "--load_in_4bit 4": "load_in_4bit.*4",
    },
    "suite": {
        "--batch_size 0": "batch_size", "--limit 0": "limit", "--key_step_method word": "key_step_method.*words",
        "--rows 5": "rows", "--difficulty 9": "difficulty",
        "--dataset_name null --rows 2 --difficulty 9": "difficulty.*9", "--dataset_name null --rows 0": "rows",
        "--dataset_name null --rows 2 --families arithmatic": "arithmatic.*arithmetic", "--max_new_tokens -4": "max_new_tokens",
        "--dataset_split tset": "tset", "--pairs_per_question 0": "pairs_per_question", "--dtype int8": "dtype.*int8",
        "--from_run run_a --dataset_name null": "run_a|samples", "--greedy maybe": "greedy.*maybe",
        "--column_mapping {a: b}": "column_mapping|'a'|`a`|unexpected", "--seed -1 --dataset_name null --rows 2": "seed",
    },
    "judge": {
        "--temperature nan": "temperature", "--temperature -1": "temperature.*-1", "--max_tokens 0": "max_tokens",
        "--runs run_a": "runs.*run_a", "--runs run_a run_a": "run_a.*(once|twice)", "--runs run_a nowhere": "nowhere",
        "--runs run_a suite_a": "suite_a", "--runs run_a trained": "trained", "--limit 0": "limit", "--timeout inf": "timeout",
        "--timeout -1": "timeout", "--max_cost nan --prompt_price 1": "max_cost", "--template nowhere.txt": r"nowhere\.txt",
        "--reference_dataset nowhere.jsonl": r"nowhere\.jsonl", "--max_attempts -1": "max_attempts",
        "--base_urls http://teacher.invalid/v1 --api_key_env NO_SUCH_KEY": "NO_SUCH_KEY", "--completion_price nan": "completion_price",
    },
    "compare": {
        "--min-score nan": "min-score", "--min-score high": "min-score.*high", "--max-drop inf": "max-drop",
        "--max-drop -1": "max-drop", "--max-broken 1.5": "max-broken", "--max-broken -1": "max-broken",
        "--by family": "by.*family", "--score acuracy": "acuracy.*accuracy", "--junit x.xml": "junit",
        "--json - --markdown -": "json", "suite_a": "suite_a", "nowhere": "nowhere", "--min-score %": "min-score",
        "--max-broken nan": "max-broken", "trained": "trained",
    },
    "inspect": {
        "--limit 0": "limit", "--limit x": "limit", "--method wrods": "method.*wrods", "--tokenizer nowhere": "nowhere",
        "--tokenizer rows.jsonl": r"rows\.jsonl", "--column_mapping {": "column_mapping", "--column_mapping 5": "column_mapping",
        '--column_mapping {"a":1}': "column_mapping|'a'|`a`", "--task sum": "sum.*sums", "--id row99": "row99", "--split tset": "tset",
        "--dataset_config main": "dataset_config|main", "--dataset_revision v1": "revision|v1", "rows.jsonl": "rows.jsonl",
        "--mistake x": "mistake.*x", '--column_mapping {"chosen":"rejected"}': "rejected|chosen",
    },
    "history": {
        "--last 0": "last", "--last -2": "last.*-2", "--metric acuracy": "acuracy.*accuracy", "--kind train": "kind.*train",
        "extra": "extra",
    },
    "merge": {
        "--dtype int8": "dtype.*int8", "--tolerance nan": "tolerance", "--tolerance -1": "tolerance.*-1",
        "--tolerance x": "tolerance.*x", "--base_model nowhere": "nowhere", "--base_model rows.jsonl": r"rows\.jsonl",
        "--output student": "student", "--output rows.jsonl": r"rows\.jsonl", "--output adapter": "adapter",
    },
    "push": {
        "--private --public": "public.*private|private.*public", "--evaluation nowhere": "nowhere", "--evaluation trained": "trained",
        "--base_model ../x": r"\.\./x", "--revision ..": r"revision|\.\.", "extra": "extra",
    },
    "chat": {
        "--temperature nan": "temperature", "--temperature -1": "temperature.*-1", "--max_new_tokens 0": "max_new_tokens",
        "--dtype float7": "dtype.*float7", "--dtype int8": "dtype.*int8", "--device cuda:99": "cuda:99", "--device nowhere": "nowhere",
        "--max_new_tokens x": "max_new_tokens.*x", "--temperature inf": "temperature", "extra": "extra",
    },
    "report": {"nowhere": "nowhere", "--output student": "student", "--output rows.jsonl": r"rows\.jsonl", "student": "student"},
}
# The embedded teacher has a command line without a recipe.
PROCEDURAL = {
    "--rows 0": "rows", "--rows -1": "rows.*-1", "--rows x": "rows.*x", "--rows 2 --difficulty 0": "difficulty.*0",
    "--rows 2 --difficulty 6": "difficulty.*6", "--rows 2 --families arithmatic": "arithmatic.*arithmetic", "--rows 2 --held_out 0": "held_out",
    "--rows 2 --held_out -1": "held_out.*-1", "--rows 2 --seed x": "seed.*x", "--rows 2 --teacher openai": "teacher.*openai",
    "--rows 99999999999 --families boolean_expressions": "rows|99999999999",
}
# Where the fault can only be told from the model itself: its positions, or its device.
NEEDS_THE_MODEL = ("--max_new_tokens 100000", "--attn", "--harness", "--base_model", "--history /dev/full")
# What is right to write in spite of the fault: the report of a gate that failed, a finished run.
LEAVES = {"--junit x.xml": r"x\.xml", "--history /dev/full": "out/(evaluation.json|items.jsonl)"}


def cases() -> Iterator[Case]:
    for kind, table in (("unknown option", UNKNOWN), ("option without a value", WITHOUT_A_VALUE)):
        for line, said in table.items():
            yield Case(kind, line.partition(" ")[2], words(line), said)
    for command in COMMANDS:
        yield Case("unknown option", "--no_such_option", words(f"{command} --no_such_option"), "no_such_option")
    for command, table in VALUES.items():
        for line, said in table.items():
            loads = line.startswith(NEEDS_THE_MODEL)
            leaves = LEAVES.get(line, Case.leaves)
            said = tuple(said.split(".*"))
            yield Case("option", line, _command(command, line), said, loads=loads, leaves=leaves, typed="Hello\n")
    for line, said in PROCEDURAL.items():
        given = ("generate", *line.split(), "--output", "new.jsonl")
        yield Case("option", f"procedural {line}", given, said)
    for given, said in ((("trian",), "trian.*train"), (("",), "unknown command"), (("--versoin",), "versoin")):
        yield Case("unknown option", f"the command {given[0]!r}", given, said)


def _command(command: str, line: str) -> tuple[str, ...]:
    """The good command line of the command with these words, the value of a mapping in one piece."""
    return words(f"{command} {line}") if "{a: b}" not in line else (*words(command), "--column_mapping", "{a: b}")
