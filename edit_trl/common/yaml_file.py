"""YAML files: recipes, task files and configurations. All YAML is read here.

Duplicate keys, unusual tags, deep nesting and aliases that multiply are refused with the line, before any value is
built. A scalar without quotes stays a `Word`, since the type of its option decides what it means: `no` is a text for
`eval_strategy` and false for `use_cpu`.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from edit_trl.common.conversion import Word, convert, natural
from edit_trl.common.errors import InputError, raise_problems, show

# Far above any recipe; they bound the time and the memory that a file can take.
_MOST_BYTES = 4 * 2**20
_MOST_VALUES = 50_000
_DEEPEST = 32

_CORE = "tag:yaml.org,2002:"
_WORD = f"{_CORE}word"  # not part of YAML: a scalar whose type is still open
_TAGS = {f"{_CORE}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "word")}
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_yaml(path: str | Path, what: str = "recipe", *, again: bool = False) -> dict[str, Any]:
    """Read a YAML mapping whose values have no declared types; see `read_words` for the arguments.

    Raises:
        InputError: See `read_words`.
    """
    return {name: natural(value) for name, value in read_words(path, what, again=again).items()}


def read_words(path: str | Path, what: str = "recipe", *, again: bool = False) -> dict[str, Any]:
    """Read a YAML mapping; scalars without quotes are `Word`s, for `edit_trl.common.conversion.convert`.

    Args:
        path: The file. A pipe is read to its end.
        what: The kind of file, for messages.
        again: Whether other processes will read the file again, which a pipe does not allow.

    Raises:
        InputError: The file cannot be read, is not a YAML mapping, has a key twice, or is too large.
    """
    values = read_value(path, what, again=again)
    if values is None:
        raise InputError(f"{path} is empty; write options as `key: value`")
    if not isinstance(values, dict):
        kind = "list" if isinstance(values, list) else show(str(values))
        raise InputError(f"{path} must hold options as `key: value`, got {kind}")
    return {str(name): value for name, value in values.items()}


def read_texts(path: str | Path, what: str) -> dict[str, str]:
    """Read a YAML mapping of texts, such as the descriptions of tasks.

    Raises:
        InputError: See `read_words`; or a value is not a text.
    """
    values = read_words(path, what)
    texts, problems = convert(values, dict.fromkeys(values, str))
    raise_problems(problems, str(path))
    return texts


def read_value(path: str | Path, what: str = "recipe", *, again: bool = False) -> Any:
    """Read any YAML value; see `read_words`."""
    try:
        # A pipe that nobody writes to is empty, instead of something to wait for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if again and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path} is a pipe or a device; training reads its {what} more than once: use a file")
            os.set_blocking(file.fileno(), True)
            content = file.read(_MOST_BYTES + 1)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"no {what} at {path}: {reason}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path} is larger than {_MOST_BYTES >> 20} MiB, which no {what} is")
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: this is not YAML: byte 0x{content[error.start]:02x} is not {error.encoding.upper()}"
        ) from error
    return parse_yaml(text.removeprefix("\ufeff"), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; `where` stands before the line in messages.

    Raises:
        InputError: See `read_words`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        raise_problems((f"{where}, {problem}" for problem in loader.duplicates), where)
        return loader.construct_document(node) if node else None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"{where}, line {line}: this is not YAML: the character U+{error.character:04X} is not allowed"
        raise InputError(message) from error
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{where}, {_describe(error)}") from error


def _describe(error: yaml.MarkedYAMLError) -> str:
    """Return the place and the reason of an error; PyYAML's context is needed where it is not "while ...ing"."""
    mark = error.problem_mark or error.context_mark
    context = f"{error.context}, " if error.context and not error.context.startswith("while") else ""
    kind = "" if isinstance(error, ComposerError | ConstructorError) else "this is not YAML: "
    tab = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {kind}{context}{error.problem}{tab}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, without duplicate keys, and with `Word`s for scalars without quotes.

    Read in PyYAML 6.0: `Composer` recurses once per level, `SafeConstructor` raises other errors than `YAMLError`
    for scalars that are not what their tag says.

    Attributes:
        duplicates: A message for each key that a mapping has twice.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [pair for pair in pairs if pair[0] in (f"{_CORE}null", f"{_CORE}merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.duplicates: list[str] = []
        self._values = self._depth = 0
        self._sizes: dict[str, int] = {}  # of what an anchor names, with the aliases in it written out

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        """Return the tag of a node without one."""
        tag = super().resolve(kind, value, implicit)
        return _WORD if kind is yaml.ScalarNode and implicit[0] and tag == f"{_CORE}str" else tag

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Compose a node, within the limits."""
        event, before = self.peek_event(), self._values
        anchor = event.anchor
        if isinstance(event, yaml.AliasEvent) and anchor in self.anchors:
            if anchor not in self._sizes:
                raise ComposerError(None, None, f"*{anchor} contains itself", event.start_mark)
            self._values += self._sizes[anchor]
        self._values += 1
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ComposerError(None, None, f"more than {_DEEPEST} levels of nesting", event.start_mark)
        if self._values > _MOST_VALUES:
            raise ComposerError(None, None, f"more than {_MOST_VALUES} values, aliases counted", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._sizes.setdefault(anchor, self._values - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping whose keys are texts, each there once."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key must be a text", key.start_mark)
            if key.value in lines:
                self.duplicates.append(
                    f"line {line}: {show(key.value)} is given twice, first in line {lines[key.value]}"
                )
            lines.setdefault(key.value, line)
            if key.tag != f"{_CORE}merge":
                key.tag = _WORD
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build the value of a node."""
        if node.tag not in _TAGS:
            raise ConstructorError(None, None, f"unknown tag {show(node.tag.replace(_CORE, '!!'))}", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            message = f"{show(node.value)} does not fit its tag {node.tag.replace(_CORE, '!!')}"
            raise ConstructorError(None, None, message, node.start_mark) from error

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        """Return the text of a scalar; JSON writes a character beyond U+FFFF as two surrogates, which are joined."""
        text = super().construct_scalar(node)
        if not _SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise ConstructorError(None, None, "a lone surrogate is no character", node.start_mark) from error


def _construct_word(loader: _Loader, node: yaml.ScalarNode) -> Word:
    return Word(loader.construct_scalar(node))


_Loader.add_constructor(_WORD, _construct_word)
_Loader.add_constructor(f"{_CORE}merge", _construct_word)  # "<<" as a value
