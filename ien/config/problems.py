"""How is a refused setting told in one line: where it was given, what is allowed, what to type?"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError

from ien.config.files import Setting
from ien.errors import InputError


def told(
    error: ValidationError, schema: dict[str, dict[str, Any]], settings: dict[str, Setting], source: str
) -> InputError:
    """The first problem of `error` as one line, and how many more there are.

    `schema`: the JSON schema of every setting by dotted key; `settings`: what was given; `source`: the file asked for.
    """
    lines: dict[str, str] = {}  # by key: a value that fits no member of a union is one problem
    for problem in error.errors(include_url=False):
        key = _key(problem, settings)
        origin = settings[key].origin if key in settings else source
        lines.setdefault(key, f"{origin}: {key}: {_explained(problem, key, schema, settings)}")
    first, *others = lines.values()
    return InputError(first + (f" (and {len(others)} more)" if others else ""))


def by_dotted_key(config: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Every setting's JSON schema, `objective.loss` for those in sections."""
    whole = config.model_json_schema()
    settings: dict[str, dict[str, Any]] = {}
    for name, schema in whole["properties"].items():
        if "$ref" in schema:
            section = whole["$defs"][schema["$ref"].rpartition("/")[2]]
            settings |= {f"{name}.{inner}": value for inner, value in section["properties"].items()}
        else:
            settings[name] = schema
    return settings


def allowed(schema: dict[str, Any]) -> str:
    """In words what a JSON schema lets through: `a number ≥ 0 or null`."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        return " or ".join(allowed(member) for member in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if schema["type"] == "array":
        return f"a list of {allowed(schema['items']).removeprefix('a ').replace('number', 'numbers')}"
    if schema["type"] == "object":
        return f"a mapping of names, each to {allowed(schema['additionalProperties'])}"
    return _KINDS[schema["type"]] + _bounds(schema)


_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text (in quotes where it looks like a number)",
    "null": "null",
}


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return " " + " and ".join(limits) if limits else ""


def _key(problem: Any, settings: dict[str, Setting]) -> str:
    if "key" in problem.get("ctx", {}):
        return problem["ctx"]["key"]
    first, *rest = (str(part) for part in problem["loc"])
    in_section = any(key.startswith(f"{first}.") for key in settings) and first not in settings
    return f"{first}.{rest[0]}" if rest and in_section else first


def _explained(problem: Any, key: str, schema: dict[str, dict[str, Any]], settings: dict[str, Setting]) -> str:
    if problem["type"] == "setting":
        return problem["msg"]
    if problem["type"] == "extra_forbidden":
        return f"unknown setting; {_nearest(key, schema)}"
    if problem["type"] == "missing":
        return f"is required; write {key}: followed by one of {allowed(schema[key])}"
    value = settings[key].value
    return f"{_shown(value)} is not allowed; write {allowed(schema[key])}{_meant(value, schema[key])}"


def _nearest(key: str, known: Collection[str]) -> str:
    """By the whole dotted key and by its last part: a setting may stand in the wrong section."""

    def likeness(name: str) -> tuple[float, float]:
        if key.startswith(f"{name}."):  # as in objective.tap_weights.block1
            return 2, 1
        pairs = (key, name), (key.rpartition(".")[2], name.rpartition(".")[2])
        ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs]
        return sum(ratios) + max(ratios), max(ratios)

    near = max(known, key=likeness)
    return f"did you mean {near}?" if likeness(near)[1] > 0.6 else "`python -m ien.config` lists all settings"


def _meant(value: Any, schema: dict[str, Any]) -> str:
    listed = [choice for member in (schema, *schema.get("anyOf", ())) for choice in member.get("enum", ())]
    if not isinstance(value, str) or not listed:
        return ""
    choices = {choice.lower(): choice for choice in listed}
    near = difflib.get_close_matches(value.lower(), choices, n=1)
    return f"; did you mean {choices[near[0]]}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:80]}…"
