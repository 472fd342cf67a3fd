"""Imports go down only, read from the source of every module; and the public names agree."""

import ast
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import edit_trl

PACKAGE = Path(edit_trl.__file__).parent

# What stands at the top of edit_trl, from the ground up. A module may import what is below its own floor, and
# nothing beside it: `training` and `teachers` know nothing of each other, nor do `hub` and `evaluation`.
FLOORS = [
    ["common", "losses"],
    ["key_steps", "models"],
    ["data"],
    ["hub", "evaluation"],
    ["training", "teachers"],
    ["cli"],
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# The package itself only re-exports, lazily.
INNER = {name: path for name, path in MODULES.items() if name != "edit_trl"}


def part_of(module: str) -> str:
    """The module or package directly in edit_trl: edit_trl.cli.main -> cli."""
    return module.split(".")[1]


def imports(node: ast.AST) -> list[tuple[str, str | None]]:
    """Every (module, name) imported anywhere below the node; name is None for `import module`."""
    found = []
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            found += [(alias.name, None) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            found += [(child.module, alias.name) for alias in child.names]
    return found


def own_imports(node: ast.AST) -> set[str]:
    """The modules of edit_trl imported below the node; a lazily exported name counts as its own."""
    found = set()
    for module, name in imports(node):
        if module == "edit_trl" and name in edit_trl._MODULE_OF:
            found.add(f"edit_trl.{edit_trl._MODULE_OF[name]}")
        elif f"{module}.{name}" in MODULES:
            found.add(f"{module}.{name}")
        elif module.split(".")[0] == "edit_trl":
            found.add(module)
    return found - {"edit_trl"}


def private_names(node: ast.AST, packages=("trl", "transformers")) -> set[str]:
    """Names with a leading underscore that are taken from the packages."""
    found, aliases = set(), {}
    for child in ast.walk(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            module = getattr(child, "module", None)
            for alias in child.names:
                full = f"{module}.{alias.name}" if module else alias.name
                if full.split(".")[0] in packages:
                    aliases[alias.asname or alias.name.split(".")[0]] = full
                    if any(part.startswith("_") for part in full.split(".")):
                        found.add(full)
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and child.attr.startswith("_"):
            root = child.value
            while isinstance(root, ast.Attribute):
                root = root.value
            is_private = not child.attr.startswith("__")
            if is_private and isinstance(root, ast.Name) and root.id in aliases:
                found.add(f"{aliases[root.id]}.{child.attr}")
    return found


def at_import(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run at import, functions and `if TYPE_CHECKING` left out."""
    return [
        statement
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not (isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING")
    ]


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def test_the_readers_see_every_kind_of_import():
    tree = ast.parse(
        "import torch.nn as nn\n"
        "import trl.trainer as t\n"
        "from transformers.a._b import C\n"
        "from trl import _d, E\n"
        "from edit_trl import losses, DualCoTConfig, __version__\n"
        "def f():\n    from edit_trl.cli.main import main\n    t.x._y; E._z; t.__name__; nn._q\n"
    )
    assert ("torch.nn", None) in imports(tree)
    assert own_imports(tree) == {"edit_trl.losses", "edit_trl.training.config", "edit_trl.cli.main"}
    assert private_names(tree) == {"transformers.a._b.C", "trl._d", "trl.trainer._y", "trl.E._z"}
    assert len(at_import(tree)) == 5


def test_the_top_of_the_package_is_the_floors():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert entries - {"__pycache__"} == {"__init__", *FLOOR_OF}
    assert len(INNER) >= 100  # the reader found the modules inside the folders


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down(module):
    part = part_of(module)
    for target in own_imports(tree_of(module)):
        assert target in MODULES, f"{module} imports {target}, which does not exist"
        other = part_of(target)
        below = FLOOR_OF[other] < FLOOR_OF[part]
        assert below or other == part, f"{module} imports {target}, which is not below it"


def test_no_module_imports_itself_through_others():
    graph = {module: own_imports(tree_of(module)) for module in INNER}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_ground_floor_needs_no_torch_and_is_quick_to_import():
    modules = [module for module in INNER if part_of(module) == "common"]
    assert len(modules) >= 9
    for module in modules:
        tree = tree_of(module)
        anywhere = {name.split(".")[0] for name, _ in imports(tree)}
        assert not anywhere & {"torch", "trl", "transformers", "peft"}, module
        first = {name.split(".")[0] for statement in at_import(tree) for name, _ in imports(statement)}
        assert first <= {*sys.stdlib_module_names, "edit_trl", "rapidfuzz", "filelock", "yaml"}, module


def test_the_losses_take_tensors_and_floats():
    assert own_imports(tree_of("edit_trl.losses")) <= {"edit_trl.common.errors"}


def test_private_names_are_taken_in_one_module_each():
    users = defaultdict(set)
    for module in INNER:
        for name in private_names(tree_of(module)):
            users[name].add(module)
    assert {name: modules for name, modules in users.items() if len(modules) > 1} == {}


def test_the_public_names_are_listed_alike():
    assert list(edit_trl.__all__) == list(edit_trl._MODULE_OF)
    [typed] = [node for node in tree_of("edit_trl").body if isinstance(node, ast.If)]
    assert {name: module for module, name in imports(typed)} == {
        name: f"edit_trl.{module}" for name, module in edit_trl._MODULE_OF.items()
    }
    assert set(edit_trl.__all__) <= set(dir(edit_trl))


@pytest.mark.parametrize("name", edit_trl.__all__)
def test_a_public_name_comes_from_its_module(name):
    module = getattr(edit_trl, name).__module__
    assert module.startswith(f"edit_trl.{edit_trl._MODULE_OF[name]}")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'DualCoTTrainr'"):
        edit_trl.DualCoTTrainr  # noqa: B018
