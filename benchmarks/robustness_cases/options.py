"""Options that do not exist, have no value, or have one that cannot be: a line of each.

A line is the words after a good command line, and what the message must name: expressions divided by ".*", in any
order.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from robustness_cases.case import Case
from robustness_cases.commands import COMMANDS, words

UNKNOWN = r"""
train --learning_rte 1e-3 => learning_rte.*learning_rate
train --prefrence_weight 0.2 => prefrence_weight.*preference_weight
validate --max_step 3 => max_step.*max_steps
generate --max_tokns 9 => max_tokns.*max_tokens
inspect --limt 3 => limt
evaluate --max_new_token 9 => max_new_token.*max_new_tokens
suite --greddy false => greddy.*greedy
compare --min-scor 0.5 => min-scor
report --titel x => titel
history --metrc accuracy => metrc
judge --temprature 0 => temprature.*temperature
merge --dtyp float32 => dtyp
push --revison main => revison
chat --systm x => systm
quickstart --studnt x => studnt.*student
quickstart --outptu_dir x => outptu_dir.*output_dir
quickstart --dtype float32 => dtype
quickstart --rows 5 => rows
quickstart --model_name_or_path student => model_name_or_path
recipes --forse => forse.*force
"""
WITHOUT_A_VALUE = r"""
train --learning_rate => learning_rate
validate --dataset => dataset
generate --max_tokens => max_tokens
inspect --html => html
evaluate --limit => limit
suite --batch_size => batch_size
compare --min-score => min-score
report --output => output
history --last => last
judge --runs => runs
merge --dtype => dtype
push --repo_id => repo_id
chat --temperature => temperature
quickstart --student => student
quickstart --output_dir => output_dir
quickstart --seed => seed
recipes show => NAME
recipes copy => NAME
"""
VALUES = r"""
generate --temperature nan => temperature
generate --temperature inf => temperature
generate --temperature -1 => temperature.*-1
generate --top_p nan => top_p
generate --top_p 1.5 => top_p.*1\.5
generate --top_p 0 => top_p
generate --timeout inf => timeout
generate --timeout nan => timeout
generate --timeout 0 => timeout
generate --timeout -5 => timeout.*-5
generate --max_tokens 0 => max_tokens
generate --max_tokens 1.5 => max_tokens.*1\.5
generate --thoughts none => thoughts.*keep
generate --thoughts only --thoughts_as text => thoughts_as.*thoughts: keep
generate --thoughts keep --thoughts_as tags => thoughts_as.*reasoning_content
generate --thoughts keep --thoughts_as thinking --conversational false => thoughts_as.*conversational
generate --max_thinking_tokens 0 => max_thinking_tokens
generate --max_thinking_tokens 99999 => max_thinking_tokens.*no effect
generate --chat_template_kwargs 3 => chat_template_kwargs
generate --student_chat_template_kwargs {a:1} => student_chat_template_kwargs
generate --samples 0 => samples
generate --samples many => samples.*many
generate --max_cost nan --prompt_price 1 => max_cost
generate --max_cost 1 --prompt_price nan => prompt_price
generate --max_cost -1 --prompt_price 1 => max_cost.*-1
generate --prompt_price -1 => prompt_price.*-1
generate --completion_price inf => completion_price
generate --max_concurrency 0 => max_concurrency
generate --max_attempts 0 => max_attempts
generate --requests_per_minute nan => requests_per_minute
generate --requests_per_minute 0 => requests_per_minute
generate --tokens_per_minute -1 => tokens_per_minute
generate --give_up_after nan => give_up_after
generate --give_up_after -1 => give_up_after
generate --rectify hnt => rectify.*hint
generate --label finr => label.*fine
generate --teacher openai => teacher.*openai
generate --answer_type numbr => answer_type.*number
generate --corrupt perhaps => corrupt.*perhaps
generate --limit 0 => limit
generate --limit -3 => limit.*-3
generate --rounds 0 => rounds
generate --wrong_share 2 --teacher procedural --dataset_name null => wrong_share
generate --seed 1.5 => seed.*1\.5
generate --seed 9223372036854775808 --send_seed true => seed
generate --seed -9223372036854775809 --send_seed true => seed
generate --extra_body 5 => extra_body
generate --extra_body '{' => extra_body|cannot be read
generate --base_urls null => base_urls
generate --column_mapping '[question]' => column_mapping
generate --base_urls http://teacher.invalid/v1 --api_key_env NO_SUCH_KEY => NO_SUCH_KEY
evaluate --temperature nan => temperature
evaluate --temperature -0.5 => temperature.*-0\.5
evaluate --top_p nan => top_p
evaluate --max_new_tokens 0 => max_new_tokens
evaluate --max_new_tokens nan => max_new_tokens.*nan
evaluate --max_new_tokens 100000 => max_new_tokens.*100000
evaluate --samples 3 => samples
evaluate --samples 0 => samples
evaluate --batch_size 0 => batch_size
evaluate --batch_size -1 => batch_size.*-1
evaluate --dtype float64 => dtype.*float64
evaluate --dtype bfloat => dtype.*bfloat16
evaluate --device cuda:99 => cuda:99
evaluate --device nowhere => nowhere
evaluate --batching continous => batching.*continuous
evaluate --engine rays => engine.*ray
evaluate --limit 0 => limit
evaluate --limit 99999999999999999999999x => limit
evaluate --tasks null => tasks
evaluate --tasks nothing => nothing
evaluate --attn_implementation eagr => attn_implementation.*eagr|eagr.*eager
evaluate --seed 99999999999999999999 => seed
evaluate --history /dev/full => /dev/full
evaluate --history student => student
evaluate --harness no_such_task => no_such_task
evaluate --conversational 2 => conversational.*2
evaluate --load_in_4bit 4 => load_in_4bit.*4
suite --batch_size 0 => batch_size
suite --limit 0 => limit
suite --key_step_method word => key_step_method.*words
suite --rows 5 => rows
suite --difficulty 9 => difficulty
suite --dataset_name null --rows 2 --difficulty 9 => difficulty.*9
suite --dataset_name null --rows 0 => rows
suite --dataset_name null --rows 2 --families arithmatic => arithmatic.*arithmetic
suite --max_new_tokens -4 => max_new_tokens
suite --dataset_split tset => tset
suite --pairs_per_question 0 => pairs_per_question
suite --dtype int8 => dtype.*int8
suite --from_run run_a --dataset_name null => run_a|samples
suite --greedy maybe => greedy.*maybe
suite --column_mapping '{a: b}' => column_mapping|'a'|`a`|unexpected
suite --seed -1 --dataset_name null --rows 2 => seed
judge --temperature nan => temperature
judge --temperature -1 => temperature.*-1
judge --max_tokens 0 => max_tokens
judge --runs run_a => runs.*run_a
judge --runs run_a run_a => run_a.*(once|twice)
judge --runs run_a nowhere => nowhere
judge --runs run_a suite_a => suite_a
judge --runs run_a trained => trained
judge --limit 0 => limit
judge --timeout inf => timeout
judge --timeout -1 => timeout
judge --max_cost nan --prompt_price 1 => max_cost
judge --template nowhere.txt => nowhere\.txt
judge --reference_dataset nowhere.jsonl => nowhere\.jsonl
judge --max_attempts -1 => max_attempts
judge --base_urls http://teacher.invalid/v1 --api_key_env NO_SUCH_KEY => NO_SUCH_KEY
judge --completion_price nan => completion_price
compare --min-score nan => min-score
compare --min-score high => min-score.*high
compare --max-drop inf => max-drop
compare --max-drop -1 => max-drop
compare --max-broken 1.5 => max-broken
compare --max-broken -1 => max-broken
compare --by family => by.*family
compare --score acuracy => acuracy.*accuracy
compare --junit x.xml => junit
compare --json - --markdown - => json
compare suite_a => suite_a
compare nowhere => nowhere
compare --min-score % => min-score
compare --max-broken nan => max-broken
compare trained => trained
inspect --limit 0 => limit
inspect --limit x => limit
inspect --method wrods => method.*wrods
inspect --tokenizer nowhere => nowhere
inspect --tokenizer rows.jsonl => rows\.jsonl
inspect --column_mapping '{' => column_mapping
inspect --column_mapping 5 => column_mapping
inspect --column_mapping '{"a":1}' => column_mapping|'a'|`a`
inspect --task sum => sum.*sums
inspect --id row99 => row99
inspect --split tset => tset
inspect --dataset_config main => dataset_config|main
inspect --dataset_revision v1 => revision|v1
inspect rows.jsonl => rows.jsonl
inspect --mistake x => mistake.*x
inspect --column_mapping '{"chosen":"rejected"}' => rejected|chosen
history --last 0 => last
history --last -2 => last.*-2
history --metric acuracy => acuracy.*accuracy
history --kind train => kind.*train
history extra => extra
merge --dtype int8 => dtype.*int8
merge --tolerance nan => tolerance
merge --tolerance -1 => tolerance.*-1
merge --tolerance x => tolerance.*x
merge --base_model nowhere => nowhere
merge --base_model rows.jsonl => rows\.jsonl
merge --output student => student
merge --output rows.jsonl => rows\.jsonl
merge --output adapter => adapter
push --private --public => public.*private|private.*public
push --evaluation nowhere => nowhere
push --evaluation trained => trained
push --base_model ../x => \.\./x
push --revision .. => revision|\.\.
push extra => extra
chat --temperature nan => temperature
chat --temperature -1 => temperature.*-1
chat --max_new_tokens 0 => max_new_tokens
chat --dtype float7 => dtype.*float7
chat --dtype int8 => dtype.*int8
chat --device cuda:99 => cuda:99
chat --device nowhere => nowhere
chat --max_new_tokens x => max_new_tokens.*x
chat --temperature inf => temperature
chat extra => extra
report nowhere => nowhere
report --output student => student
report --output rows.jsonl => rows\.jsonl
report student => student
"""
# The embedded teacher has a command line without a recipe.
PROCEDURAL = r"""
--rows 0 => rows
--rows -1 => rows.*-1
--rows x => rows.*x
--rows 2 --difficulty 0 => difficulty.*0
--rows 2 --difficulty 6 => difficulty.*6
--rows 2 --families arithmatic => arithmatic.*arithmetic
--rows 2 --held_out 0 => held_out
--rows 2 --held_out -1 => held_out.*-1
--rows 2 --seed x => seed.*x
--rows 2 --teacher openai => teacher.*openai
--rows 99999999999 --families boolean_expressions => rows|99999999999
"""
# The fault of a student is told as its model is read.
OF_QUICKSTART = r"""
quickstart --seed x => seed.*x
quickstart --seed 1.5 => seed.*1\.5
quickstart --full yes => yes
quickstart more => more
quickstart --student nowhere => nowhere
quickstart --student rows.jsonl => rows\.jsonl
"""
OF_RECIPES = r"""
recipes nowhere => nowhere
recipes generate more => more
recipes show nowhere => nowhere
recipes show generate/gsm8 => generate/gsm8k
recipes show ../pyproject => pyproject
recipes copy nowhere => nowhere
recipes copy generate/gsm8k a.yaml b.yaml => b\.yaml
recipes copy generate/gsm8k rows.jsonl => rows\.jsonl.*--force
recipes copy generate/gsm8k rows.jsonl/x.yaml => rows\.jsonl
"""
# Where the fault can only be told from the model itself, or from the task of another program.
NEEDS_THE_MODEL = ("--max_new_tokens 100000", "--attn", "--harness", "--base_model", "--history /dev/full")
# What is right to write in spite of the fault: the report of a gate that failed, a finished run.
LEAVES = {"--junit x.xml": r"x\.xml", "--history /dev/full": "out/(evaluation.json|items.jsonl)"}


def cases() -> Iterator[Case]:
    for kind, table in (("unknown option", UNKNOWN), ("option without a value", WITHOUT_A_VALUE)):
        for line, said in _lines(table):
            yield Case(kind, line.partition(" ")[2], words(line), said)
    for command in COMMANDS:
        yield Case("unknown option", "--no_such_option", words(f"{command} --no_such_option"), "no_such_option")
    for line, said in _lines(VALUES):
        added = line.partition(" ")[2]
        loads = added.startswith(NEEDS_THE_MODEL)
        leaves = LEAVES.get(added, Case.leaves)
        yield Case("option", added, words(line), said, loads=loads, leaves=leaves, typed="Hello\n")
    for line, said in _lines(OF_QUICKSTART + OF_RECIPES.lstrip()):
        yield Case("option", line.partition(" ")[2], words(line), said, loads="--student" in line)
    for line, said in _lines(PROCEDURAL):
        given = ("generate", *shlex.split(line), "--output", "new.jsonl")
        yield Case("option", f"procedural {line}", given, said)
    for given, said in ((("trian",), "trian.*train"), (("",), "unknown command"), (("--versoin",), "versoin")):
        yield Case("unknown option", f"the command {given[0]!r}", given, tuple(said.split(".*")))


def _lines(table: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for row in table.strip().splitlines():
        line, _, said = row.partition(" => ")
        yield line, tuple(said.split(".*"))
