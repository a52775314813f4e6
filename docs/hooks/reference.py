"""The pages that are written from the package itself: commands, and what `import tfdlrm` offers."""

from __future__ import annotations

import ast
from pathlib import Path

import tfdlrm
from docs.hooks.commands import command_modules, parser_of, subcommands

PACKAGE = Path(tfdlrm.__file__).parent
_TITLES = {
    "spec": "Features and configuration",
    "pipelines": "From a table to a model",
    "data": "Rows",
    "models": "Models",
    "layers": "Layers",
    "training": "Optimizers",
    "tuning": "Sweeps",
    "metrics": "Metrics",
    "export": "Export",
    "serving": "Clients",
}


def commands_page() -> str:
    """Return the page of all commands with their help, as Markdown."""
    parts = [
        "# Commands\n\nWhat each prints with `--help`. Exit codes are on [a page of their own](exit_codes.md), "
        "the keys of recipes under [Configuration](configuration.md).\n"
    ]
    for module in command_modules():
        parser = parser_of(module)
        parts.append(f"\n## {module.rpartition('.')[2]}\n\n```text\n{parser.format_help()}```\n")
        for name, inner in subcommands(parser):
            parts.append(f"\n### {module.rpartition('.')[2]} {name}\n\n```text\n{inner.format_help()}```\n")
    return "".join(parts)


def public_names() -> dict[str, dict[str, str]]:
    """Return where each public name lives: by package, the full name of each name of `tfdlrm` and `tfdlrm.serving`."""
    groups: dict[str, dict[str, str]] = {package: {} for package in _TITLES}
    for path in (PACKAGE / "__init__.py", PACKAGE / "serving" / "__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        offered = next(
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        imported = {
            alias.name: node.module or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for name in sorted(offered, key=str.lower):
            if name in imported:
                groups[imported[name].split(".")[1]][name] = f"{imported[name]}.{name}"
    return groups


def python_page() -> str:
    """Return the page of all public names, each with its docstring, as Markdown for mkdocstrings."""
    parts = [
        "# Python\n\nWhat `import tfdlrm` offers, and the clients of `tfdlrm.serving`. Names are imported when they "
        "are first used, so that `import tfdlrm` loads no TensorFlow.\n"
    ]
    for package, names in public_names().items():
        if names:
            parts.append(f"\n## {_TITLES[package]}\n")
            parts += [f"\n::: {full_name}\n" for full_name in names.values()]
    return "".join(parts)
