import json

import pytest
from pushed_runs import metadata, push
from transformers import AutoModelForCausalLM

from edit_trl.cli.main import main


def merge(*argv) -> int:
    return main(["merge", *map(str, argv)])


def test_a_run_of_two_stages_is_merged_and_pushed(trained, tmp_path, capsys, serve_hub):
    out = tmp_path / "merged"
    assert merge(trained / "out", "--output", out) == 0
    printed = capsys.readouterr().out
    adapter = trained / "out" / "key_steps"
    assert printed.startswith(f"the merged model (float32) is in {out}: {adapter}, merged into {trained / 'student'}\n")
    assert "allowed: 0.001 on average" in printed
    assert printed.endswith(
        f"""
serve it with vLLM:
  vllm serve {out}
with llama.cpp, whose clone is in llama.cpp:
  python llama.cpp/convert_hf_to_gguf.py {out} --outfile {out}/model.gguf --outtype auto
  llama-server --model {out}/model.gguf --jinja
with Ollama, which needs {out}/model.gguf too:
  ollama create merged --file {out}/Modelfile && ollama run merged
"""
    )
    modelfile = (out / "Modelfile").read_text()
    assert modelfile.startswith('FROM ./model.gguf\nTEMPLATE """{{ $last := "" }}')
    assert modelfile.endswith('"""\nPARAMETER stop "<|im_end|>"\n')
    names = {file.name for file in out.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "recipe.yaml"}
    card = (out / "README.md").read_text()
    assert "An adapter, merged into the weights, of `student`" in card
    assert "AutoPeftModelForCausalLM" not in card
    assert "| option | `warm_up` | `key_steps` |" in card
    AutoModelForCausalLM.from_pretrained(out)
    hub = serve_hub()
    assert push(out, "--repo_id", "ada/merged") == 0
    files = hub.repos["model", "ada/merged"].files
    assert set(files) == (names - {"card.json"}) | {"results.json"}
    assert metadata(files["README.md"])["library_name"] == "transformers"
    for content in files.values():
        assert str(tmp_path).encode() not in content
        assert str(trained).encode() not in content


def test_names_that_a_shell_or_ollama_would_not_take(trained, tmp_path, capsys):
    out = tmp_path / "My model; $(id)"
    assert merge(trained / "out", "--output", out) == 0
    printed = capsys.readouterr().out
    assert f"\n  vllm serve '{out}'\n" in printed
    assert printed.endswith(f"  ollama create my-model-id --file '{out}/Modelfile' && ollama run my-model-id\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{run}/out", "--output", "{run}/out"], "exists and is not empty; choose another"),
        (["{run}/student", "--output", "{tmp}/m"], "is a whole model, there is nothing to merge"),
        (["{tmp}/none", "--output", "{tmp}/m"], "no such folder"),
        (["{run}/rows.jsonl", "--output", "{tmp}/m"], "no such folder"),
        (["{run}/out", "--output", "{tmp}/m", "--base_model", "{tmp}/gone"], "no such folder"),
        (["{run}/out", "--output", "{tmp}/m", "--dtype", "bfloat16", "--tolerance", "0"], "--tolerance"),
    ],
)
def test_bad_input(trained, tmp_path, capsys, argv, message):
    assert merge(*(word.format(run=trained, tmp=tmp_path) for word in argv)) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert message in errors
    assert not (tmp_path / "m").exists()


def test_an_adapter_of_another_model(trained, tmp_path, capsys):
    config = json.loads((trained / "student" / "config.json").read_text())
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaConfig(**{**config, "hidden_size": 48, "head_dim": None})
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    assert merge(trained / "out", "--output", tmp_path / "m", "--base_model", tmp_path / "other") == 2
    assert f"is not an adapter of {tmp_path / 'other'}: size mismatch" in capsys.readouterr().err
