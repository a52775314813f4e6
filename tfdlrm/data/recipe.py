"""What prepared data were made from, written into their manifest, so that the same is not made twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdlrm.data.files import sha256_of
from tfdlrm.data.raw_blocks import RawFile, expand_path
from tfdlrm.data.settings_diff import SettingChange, differences
from tfdlrm.data.vocabulary_growth import parent_identity
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError

_SETTINGS = {
    *("format", "dense", "sparse", "coding", "vocabulary_rows", "split", "drop_negatives", "drop_seed"),
    *("max_bad_share", "rows_per_block", "rows_per_shard"),
}


def recipe_of(data: DataConfig, files: Sequence[RawFile]) -> dict[str, Any]:
    """Return the recipe of prepared data, ready for JSON: settings, raw files and side tables.

    Args:
        data: The configuration; what does not change the prepared rows is left out.
        files: The raw files as they were read.
    """
    raw = [{**f.identity, "rows": f.rows, "sha256": f.sha256} for f in files]
    sides = [expand_path(table.file) for table in data.format.side_tables]
    return {
        "settings": _settings(data),
        "raw": raw,
        "side_tables": [{**_identity(path), "sha256": sha256_of(path)} for path in sides],
        "parent": parent_identity(data),
    }


def identity_of(data: DataConfig, raw: Sequence[str | Path]) -> dict[str, Any]:
    """Return what tells prepared data in the making from others, without reading the raw files."""
    sides = [expand_path(table.file) for table in data.format.side_tables]
    return {
        "settings": _settings(data),
        "raw": [_identity(expand_path(path)) for path in raw],
        "side_tables": [_identity(path) for path in sides],
        "parent": parent_identity(data),
    }


def refuse_changed_side_tables(known: Sequence[Mapping[str, Any]]) -> None:
    """Raise `DataError` if a side table is not the file that it was.

    Side tables are read once, as a run begins. To be called at its end, after `recipe_of`: else rows would hold what
    the table said before, and the recipe the checksum of what it says now.

    Args:
        known: `side_tables` of what `identity_of` returned before they were read.
    """
    for old in known:
        if _identity(Path(old["path"])) != dict(old):
            raise DataError(f"{old['path']}: changed while it was read.")


def difference(recipe: Mapping[str, Any], data: DataConfig, paths: Sequence[Path]) -> str | None:
    """Say in words how a recipe differs from a configuration and raw files; `None` where it does not.

    A file is the same if path, size and time of change are, or else its content is: it may have been moved.

    Args:
        recipe: What `recipe_of` returned, through JSON.
        data: The configuration wanted.
        paths: The raw files wanted.

    Raises:
        DataError: a file cannot be read.
    """
    if not recipe.keys() >= {"settings", "raw", "side_tables"}:
        return "one that does not say what was read"
    changed = settings_difference(recipe, data)
    sides = [expand_path(table.file) for table in data.format.side_tables]
    return (
        changed
        or _changed_file("raw", recipe["raw"], paths)
        or _changed_file("side table", recipe["side_tables"], sides)
        or _changed_parent(recipe.get("parent", {}), data)
    )


def settings_difference(recipe: Mapping[str, Any], data: DataConfig) -> str | None:
    """Say in words how the settings of a recipe differ from a configuration; `None` where they do not.

    Args:
        recipe: What `recipe_of` returned, through JSON; one without settings differs from any.
        data: The configuration wanted.
    """
    if "settings" not in recipe:
        return "one that does not say how"
    change = next(differences(recipe["settings"], _settings(data), "data"), None)
    return None if change is None else _in_words(change)


def _settings(data: DataConfig) -> dict[str, Any]:
    settings = data.model_dump(mode="json", include=_SETTINGS)
    for table in settings["format"]["side_tables"]:
        del table["file"]  # its content counts, not its place
    if data.growth.from_run is not None:
        settings["growth"] = data.growth.model_dump(mode="json", exclude={"from_run"})  # likewise
    return settings


def _identity(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    return {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _changed_file(kind: str, recorded: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> str | None:
    if len(recorded) != len(paths):
        return f"{len(recorded)} {kind} files, now {len(paths)}"
    for old, path in zip(recorded, paths, strict=True):
        new = _identity(path)
        if new != {key: old[key] for key in new} and (new["size"] != old["size"] or sha256_of(path) != old["sha256"]):
            return f"{kind} file {old['path']}, now {path} with another content"
    return None


def _changed_parent(recorded: Mapping[str, str], data: DataConfig) -> str | None:
    new = parent_identity(data)
    changed = [name for name in {**recorded, **new} if recorded.get(name) != new.get(name)]
    return f"`data.growth.from_run` with another {changed[0]} than {data.growth.from_run} has now" if changed else None


def _in_words(change: SettingChange) -> str:
    if isinstance(change.a, list) and isinstance(change.b, list) and any(isinstance(x, dict) for x in change.a):
        return f"`{change.key}` of {len(change.a)} entries, now {len(change.b)}"
    return f"`{change.key}` {change.a!r}, now {change.b!r}"
