"""How is a settings file read, and where does each of its values come from?

YAML is read by the rules of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), because PyYAML's
own 1.1 reads `1e-3` as text, `on` and `no` as booleans, `012` as 10, `12:30:45` as 45045 and `2024-01-01` as a date.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml
from yaml.constructor import ConstructorError

from ien.errors import InputError

COMMAND_LINE = "command line"


class Setting(NamedTuple):
    """One value as it was given, and where: `configs/x.yaml:12` or `command line`."""

    value: Any
    origin: str


def read(path: Path, sections: Collection[str], above: tuple[Path, ...] = ()) -> dict[str, Setting]:
    """The settings of `path` over those of the files that it extends: dotted key → value and origin.

    A section (`objective:`) becomes one dotted key per setting, so that sections merge and values replace.
    `above` are the files that led here. Raises `InputError`.
    """
    own = _settings_of(path, sections)
    extends = own.pop("extends", None)
    inherited: dict[str, Setting] = {}
    for parent in _parents(extends, path, (*above, path)) if extends else ():
        inherited |= read(parent, sections, (*above, path))
    return inherited | own


def from_command_line(overrides: Sequence[str], sections: Collection[str]) -> dict[str, Setting]:
    """`key=value` arguments, later ones over earlier ones; a value is read as YAML. Raises `InputError`."""
    settings: dict[str, Setting] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
            raise InputError(f"{COMMAND_LINE}: {text!r} is no setting; write key=value, as in beta_weight=0.1")
        if key == "extends":
            raise InputError(f"{COMMAND_LINE}: extends: stands in a file only; give that file with --config")
        settings |= _override(key, value, sections)
    return settings


def nested(settings: dict[str, Setting], sections: Collection[str]) -> dict[str, Any]:
    """The values alone, those of a section in a mapping of its own."""
    values: dict[str, Any] = {}
    for key, setting in settings.items():
        section, dot, name = key.partition(".")
        if dot and section in sections:
            values.setdefault(section, {})[name] = setting.value
        else:
            values[key] = setting.value
    return values


def as_yaml(values: dict[str, Any]) -> str:
    """YAML text that `read` takes back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _settings_of(path: Path, sections: Collection[str]) -> dict[str, Setting]:
    try:
        loader = _Loader(_text(path))
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path}: holds no settings; write one `key: value` a line")
        return dict(_settings_in(loader, root, str(path), sections))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(_told(error, str(path))) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.yaml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file"
        raise InputError(f"{path}: there is no such file; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from None


def _settings_in(
    loader: _Loader, node: yaml.MappingNode, file: str, sections: Collection[str], inside: str = ""
) -> Iterator[tuple[str, Setting]]:
    for key_node, value_node in loader.pairs(node):
        key, origin = str(loader.construct_object(key_node, deep=True)), f"{file}:{key_node.start_mark.line + 1}"
        if "." in key:
            section, _, name = key.rpartition(".")
            raise InputError(f"{origin}: {key}: has a dot; in a file write {name} inside `{section}:`")
        if inside or key not in sections:
            yield inside + key, Setting(loader.construct_object(value_node, deep=True), origin)
        elif isinstance(value_node, yaml.MappingNode):
            yield from _settings_in(loader, value_node, file, sections, inside=f"{key}.")
        elif loader.construct_object(value_node, deep=True) is not None:
            raise InputError(f"{origin}: {key}: is a section; write its settings below it, indented")


def _parents(extends: Setting, path: Path, chain: tuple[Path, ...]) -> Iterator[Path]:
    names = extends.value if isinstance(extends.value, list) else [extends.value]
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"{extends.origin}: extends: {name!r} is no file; write the path of a YAML file")
        # Relative to the file that says it, spelled as short as can be: it stands in every origin.
        parent = Path(os.path.normpath(path.parent / name))
        if parent.resolve() in [file.resolve() for file in chain]:
            circle = " → ".join(file.name for file in (*chain, parent))
            raise InputError(f"{extends.origin}: extends: goes in a circle ({circle}); remove one of them")
        if not parent.is_file():
            raise InputError(f"{extends.origin}: extends: {name}: there is no file {parent}")
        yield parent


def _override(key: str, text: str, sections: Collection[str]) -> dict[str, Setting]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_object(node, deep=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(_told(error, f"{COMMAND_LINE}: {key}={text}")) from None
    if node is None:
        raise InputError(f"{COMMAND_LINE}: {key}= has no value; write {key}=null to unset it")
    if key not in sections:
        return {key: Setting(value, COMMAND_LINE)}
    if not isinstance(value, dict):
        raise InputError(f"{COMMAND_LINE}: {key}: is a section; write {key}.NAME=VALUE")
    return {f"{key}.{name}": Setting(inner, COMMAND_LINE) for name, inner in value.items()}


def _told(error: Exception, source: str) -> str:
    if isinstance(error, RecursionError):
        return f"{source}: is nested too deeply; a setting is a value, a list or a mapping"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{source}:{error.problem_mark.line + 1}: cannot be read as YAML: {error.problem}"
    return f"{source}: cannot be read as YAML: {' '.join(str(error).split())}"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with YAML 1.2's core schema, and no key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 as in the base class
    yaml_constructors: ClassVar[dict[str | None, Callable[..., Any]]] = {}

    def pairs(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """The entries of a mapping; raises `ConstructorError` for a key that stands there twice."""
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConstructorError(None, None, f"{key} is set twice; remove one", key_node.start_mark)
            seen.append(key)
        return list(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            self.pairs(node)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes that either YAML 1.1 or 1.2 would take for something else."""


def _scalar(kind: str, parse: Callable[[str], Any]) -> Callable[[_Loader, Any], Any]:
    def construct(loader: _Loader, node: Any) -> Any:
        try:
            return parse(loader.construct_scalar(node))
        except (ValueError, KeyError):
            raise ConstructorError(None, None, f"{node.value!r} is no {kind}", node.start_mark) from None

    return construct


_TAG = "tag:yaml.org,2002:"
_BOOLEANS = {"true": True, "false": False}
for _kind, _pattern, _first, _parse in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""], lambda text: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: _BOOLEANS[text.lower()]),
    ("int", r"[-+]?[0-9]+", list("-+0123456789"), lambda text: int(text, 10)),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)
    _Loader.add_constructor(_TAG + _kind, _scalar(_kind, _parse))
for _tag in ("str", "seq", "map"):
    _Loader.add_constructor(_TAG + _tag, yaml.SafeLoader.yaml_constructors[_TAG + _tag])
_Loader.add_constructor(None, yaml.SafeLoader.yaml_constructors[None])  # refuses every other tag
