"""The files for GitHub and its visitors agree with the package and with the Makefile."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from edit_trl.hub.card_templates import EDIT_CITATION

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (GITHUB / "workflows").iterdir()}


def steps(workflow: str) -> list[dict]:
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def test_the_tests_run_on_every_python_that_the_package_names():
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", c)]
    assert named == ["3.11", "3.12", "3.13"]
    assert WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert any(step.get("run") == "make test PYTHON=python" for step in steps("tests"))


def test_the_nightly_run_takes_trl_and_transformers_from_git():
    script = "\n".join(step.get("run", "") for step in steps("nightly"))
    for name in ("trl", "transformers"):
        assert f"git+https://github.com/huggingface/{name}" in script


def test_a_release_is_published_without_a_stored_token():
    publish = WORKFLOWS["release"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert "secrets." not in (GITHUB / "workflows" / "release.yml").read_text("utf-8")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_has_no_more_rights_than_it_names(name):
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps(name):
        assert ("uses" in step) != ("run" in step)
        assert "@" in step.get("uses", "@")
        # Text of a pull request or a tag must not become part of a script.
        assert "${{ github.event." not in step.get("run", "")


def test_the_hooks_are_those_of_lint():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    tools = [line.split("/", 1)[1] for line in lint.splitlines()]
    assert tools == ["ruff check .", "ruff format --check .", "mypy --num-workers 2"]
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == [
        ".venv/bin/ruff check --fix",
        ".venv/bin/ruff format",
        ".venv/bin/mypy --num-workers 2",
    ]


def test_the_issue_forms_can_be_read():
    forms = [yaml.safe_load(path.read_text("utf-8")) for path in (GITHUB / "ISSUE_TEMPLATE").glob("*_*.yml")]
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= form.keys()
        names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(names) == len(set(names)) >= 3


def test_the_citation_names_the_paper_of_the_cards():
    citation = yaml.safe_load((GITHUB / "CITATION.cff").read_text("utf-8"))
    [paper] = citation["references"]
    assert citation["license"] == PROJECT["license"]
    assert f"{{{paper['title']}}}" in EDIT_CITATION
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"{{{authors}}}" in EDIT_CITATION
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_the_page_for_agents_is_linked_and_names_files_that_exist():
    assert "(.github/AGENTS.md)" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    page = (GITHUB / "AGENTS.md").read_text("utf-8")
    paths = re.findall(r"(?<![/\w.-])(?:edit_trl|tests|recipes)/[\w./-]*", page)
    assert len(paths) >= 8
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert [link for link in links if not (GITHUB / link).exists()] == []
