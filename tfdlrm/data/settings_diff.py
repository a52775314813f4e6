"""Where two trees of settings differ; which settings two recipes state differently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfdlrm.spec.config import DataConfig

_IRRELEVANT = {"raw", "planted", "rows_per_block", "rows_per_shard", "shuffle_blocks"}


@dataclass(frozen=True)
class SettingChange:
    """A setting that differs.

    Attributes:
        key: Its dotted name. Of recipes that under `[data]`, and `dense.*.transform` is the transform of all dense
            columns.
        a, b: What the two have, as JSON values; of recipes, texts of columns that differ are joined by commas.
    """

    key: str
    a: Any
    b: Any


def differences(a: Any, b: Any, key: str = "", into_lists: bool = True) -> Iterator[SettingChange]:
    """Yield what differs in two JSON values, each as deep inside as it can be named.

    Args:
        a: One.
        b: The other; what one of them lacks is `None` in it.
        key: Name of both.
        into_lists: Whether entries of lists of one length are compared one by one, as `key[0]`, or lists as a whole.

    Example:
        >>> list(differences({"train": {"epochs": 1}}, {"train": {"epochs": 2}}))
        [SettingChange(key='train.epochs', a=1, b=2)]
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            yield from differences(a.get(name), b.get(name), f"{key}.{name}" if key else str(name), into_lists)
    elif into_lists and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differences(one, other, f"{key}[{place}]")
    elif a != b:
        yield SettingChange(key, a, b)


def changed_settings(a: DataConfig, b: DataConfig) -> tuple[SettingChange, ...]:
    """Return the settings that change rows and differ.

    Example:
        >>> from tfdlrm.spec.recipes import named_recipe
        >>> changed_settings(named_recipe("fb"), named_recipe("fb", max_ind_range=1000))
        (SettingChange(key='coding.modulus', a=None, b=1000),)
    """
    one, other = (data.model_dump(mode="json", exclude=_IRRELEVANT) for data in (a, b))
    columns = {
        kind: ({c["name"]: c for c in one.pop(kind)}, {c["name"]: c for c in other.pop(kind)}) for kind in _COLUMNS
    }
    changes = list(differences(one, other, into_lists=False))
    for kind, (own, others) in columns.items():
        changes += _changes_of_columns(kind, own, others)
    return tuple(changes)


_COLUMNS = ("dense", "sparse")


def _changes_of_columns(kind: str, a: dict[str, Any], b: dict[str, Any]) -> Iterator[SettingChange]:
    if list(a) != list(b):
        yield SettingChange(kind, list(a), list(b))
    both = [name for name in a if name in b]
    by_setting: dict[str, list[tuple[str, Any, Any]]] = {}
    for name in both:
        for change in differences(a[name], b[name], into_lists=False):
            by_setting.setdefault(change.key, []).append((name, change.a, change.b))
    for setting, found in by_setting.items():
        where = "*" if len(found) == len(both) else ",".join(name for name, _, _ in found)
        values = []
        for side in (1, 2):
            distinct = list(dict.fromkeys(entry[side] for entry in found))
            values.append(distinct[0] if len(distinct) == 1 else ",".join(str(entry[side]) for entry in found))
        yield SettingChange(f"{kind}.{where}.{setting}", *values)
