"""The page that lists every key of every configuration file, from the classes that read them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from tfdlrm.distribute.plan_recipe import PlanRecipe
from tfdlrm.spec.cluster import ClusterConfig
from tfdlrm.spec.compare import CompareConfig
from tfdlrm.spec.config import RunConfig
from tfdlrm.tuning.sweep_config import SweepConfig

FILES: dict[str, tuple[str, type[BaseModel]]] = {
    "run": ("A run: `criteo`, `tabular`, `prepare`, and what goes on from their work dirs", RunConfig),
    "cluster": ("A cluster: `cluster run` and `cluster task`", ClusterConfig),
    "compare": ("A comparison: `compare`", CompareConfig),
    "plan": ("A plan: `cluster plan`", PlanRecipe),
    "sweep": ("A sweep: `sweep`", SweepConfig),
}
_HEAD = """# Configuration

Every key of every file, from the classes that read them. A key that is not here is refused, with the nearest one that
is. `--set section.key=value` changes a key on the command line; `--dry-run` prints a run's recipe with all defaults.

"""


def configuration_page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for name, (title, model) in FILES.items():
        parts.append(f"## {title} {{ #{name} }}\n\n")
        for path, section, schema, defs in _sections(model):
            if path:
                parts.append(f"### `{_heading(path)}` {{ #{name}.{_plain(path)} }}\n\n")
            parts.append(_summary(section) + "\n\n" + _table(name, path, section, schema, defs) + "\n")
    return "".join(parts)


def keys_of(model: type[BaseModel]) -> dict[str, str]:
    """Return every key of a configuration, with dots, and what is said about it.

    Keys of a list or a mapping of sections have the name of the list: `data.sparse.hotness`, `model.tables.dim`.
    """
    found = {}
    for path, section, schema, _ in _sections(model):
        for key in schema.get("properties", {}):
            found[".".join([*(_bare(part) for part in path), key])] = _said(section, key)
    return found


Path = tuple[str, ...]


def _sections(
    model: type[BaseModel], path: Path = ()
) -> Iterator[tuple[Path, type[BaseModel], dict[str, Any], dict[str, Any]]]:
    """Yield each section under a model: its path, class, JSON schema and the schema's definitions."""
    schema = model.model_json_schema()
    yield path, model, schema, schema.get("$defs", {})
    for key, field in model.model_fields.items():
        parts = {"a section": key, "list of sections": f"[{key}]", "sections, by name": f"{key}.<name>"}
        for inner in _models_in(field.annotation):
            yield from _sections(inner, (*path, parts[_form(field.annotation)]))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _form(annotation: Any) -> str:
    """Say what a key that holds sections holds."""
    origins = {get_origin(annotation), *map(get_origin, get_args(annotation))}
    return "sections, by name" if dict in origins else "list of sections" if tuple in origins else "a section"


def _bare(part: str) -> str:
    return part.strip("[]").removesuffix(".<name>")


def _plain(path: Path) -> str:
    return ".".join(_bare(part) for part in path)


def _heading(path: Path) -> str:
    name = ".".join(part.strip("[]") for part in path)
    return f"[[{name}]]" if path[-1].startswith("[") else f"[{name}]"


def _summary(section: type[BaseModel]) -> str:
    """Return what a class says before its attributes."""
    text = inspect.cleandoc(section.__doc__ or "")
    text = re.split(r"\n\n(?:Attributes|Raises|Example|Args|Returns):\n", text)[0]
    return re.sub(r"^`\[[\w.]+\]`: (\w)", lambda match: match[1].upper(), text)


def _said(section: type[BaseModel], key: str) -> str:
    """Return what is said about a key; about a section without a word, what it says of itself."""
    said = _attributes(section).get(key, "")
    for inner in _models_in(section.model_fields[key].annotation) if not said else ():
        said = " ".join(_summary(inner).split("\n\n")[0].split())
    return said


def _attributes(section: type[BaseModel]) -> dict[str, str]:
    """Return what a class and those it derives from say about each key."""
    said: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not (issubclass(cls, BaseModel) and cls.__doc__ and "Attributes:" in cls.__doc__):
            continue
        block = inspect.cleandoc(cls.__doc__).split("Attributes:\n", 1)[1]
        block = re.split(r"\n\n", block)[0]
        for entry in re.split(r"\n    (?=\w)", "\n" + block)[1:]:
            names, _, text = entry.partition(":")
            for name in names.split(","):
                said[name.strip()] = " ".join(text.split())
    return said


def _table(file: str, path: Path, section: type[BaseModel], schema: dict[str, Any], defs: dict[str, Any]) -> str:
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for key, values in schema.get("properties", {}).items():
        field = section.model_fields[key]
        inner = _models_in(field.annotation)
        if inner:
            value = f"[{_form(field.annotation)}](#{file}.{'.'.join(filter(None, [_plain(path), key]))})"
            default = "must be given" if field.is_required() else "none" if field.default is None else ""
        else:
            value = _kind(values, defs)
            default = "must be given" if field.is_required() else _default(values.get("default"))
        lines.append(
            "| " + " | ".join(_cell(text) for text in (f"`{key}`", value, default, _said(section, key))) + " |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _kind(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """Say in words what a key takes."""
    if "$ref" in schema:
        return _kind(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        kinds = [_kind(option, defs) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type")
    if kind == "array":
        return _list(schema, defs)
    if kind == "object":
        return "keys and values"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    return words.get(str(kind), "anything") + _range(schema)


def _list(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_kind(schema['prefixItems'][0], defs)}"
    return f"list: {_kind(schema['items'], defs)}" if "items" in schema else "list"


def _range(schema: dict[str, Any]) -> str:
    words = [
        f"{sign} {schema[name]:g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in schema and abs(schema[name]) < 2**31
    ]
    return f" {', '.join(words)}" if words else ""
