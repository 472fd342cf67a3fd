"""The package declares what it imports, in the core or in the extra of an optional feature, and ships its types."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

import edit_trl

PACKAGE = Path(edit_trl.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Not imported by name: transformers and PEFT load it for the quantized options.
NOT_IMPORTED = {"bitsandbytes"}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normalized(Requirement(line).name) for line in requirements}


# It pins torch and much else, so it is installed beside the package by those who use it.
NOT_DECLARED = {"vllm"}


CORE = names(PROJECT["dependencies"])
EXTRAS = [names(extra) for name, extra in PROJECT["optional-dependencies"].items() if name != "dev"]
OPTIONAL = NOT_DECLARED.union(*EXTRAS)


def third_party(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The packages imported when the module is, and those imported in functions or for type checkers only."""
    at_import, later = set(), set()

    def visit(node: ast.AST, is_later: bool) -> None:
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        top = {module.split(".")[0] for module in modules} - {*sys.stdlib_module_names, "edit_trl"}
        (later if is_later else at_import).update(top)
        is_later |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_later |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            visit(child, is_later)

    visit(tree, False)
    return at_import, later


def distributions(module: str) -> set[str]:
    """What installs the module; a package that is not installed here counts as named like its module."""
    return {normalized(name) for name in INSTALLED.get(module, [module])}


INSTALLED = packages_distributions()


def imported_by_the_package() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The files by the package they import: when they are imported, and later."""
    at_import, later = defaultdict(set), defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for users, modules in zip((at_import, later), third_party(ast.parse(path.read_text("utf-8"))), strict=True):
            for module in modules:
                users[module].add(str(path.relative_to(PACKAGE)))
    return at_import, later


def test_the_reader_tells_imports_at_once_from_later_ones():
    tree = ast.parse(
        "import os, yaml.nodes\n"
        "from edit_trl import losses\n"
        "if TYPE_CHECKING:\n    import ray\n"
        "try:\n    import rich\nexcept ImportError:\n    pass\n"
        "class A:\n    import torch\n    def f(self):\n        from openai.types import Model\n"
    )
    assert third_party(tree) == ({"yaml", "rich", "torch"}, {"ray", "openai"})
    assert distributions("yaml") == {"pyyaml"}
    assert distributions("not_installed_here") == {"not-installed-here"}


def test_every_import_is_declared():
    at_import, later = imported_by_the_package()
    assert len(at_import) >= 15  # the reader found the modules
    assert {name: users for name, users in at_import.items() if not distributions(name) & CORE} == {}
    declared = CORE | OPTIONAL
    assert {name: users for name, users in later.items() if not distributions(name) & declared} == {}


def test_every_dependency_of_the_core_is_imported():
    imported = set().union(*(distributions(name) for users in imported_by_the_package() for name in users))
    assert CORE - imported == NOT_IMPORTED


def test_trl_is_capped_at_one_minor_version():
    [trl] = [Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == "trl"]
    bounds = {specifier.operator: specifier.version for specifier in trl.specifier}
    major, minor = map(int, bounds[">="].split(".")[:2])
    assert bounds.keys() == {">=", "<"}
    assert bounds["<"] == f"{major}.{minor + 1}"


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", edit_trl.__version__)


def test_the_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]
