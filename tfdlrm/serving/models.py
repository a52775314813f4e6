"""The models of a server: which version of which model a request means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tfdlrm.serving.errors import Code, StatusError, invalid
from tfdlrm.serving.store import ModelStore, VersionStatus

if TYPE_CHECKING:
    from tfdlrm.serving.servable import Servable


def find_servable(
    models: Mapping[str, ModelStore], name: str, version: int | None = None, label: str | None = None
) -> Servable:
    """Return the version that answers a request.

    Args:
        models: The models by name.
        name: The model asked for.
        version: The version asked for; None for the latest.
        label: The label asked for instead of a version; None for none.

    Raises:
        StatusError: NOT_FOUND where there is no such model or version, INVALID_ARGUMENT for an unknown label, whatever
            the model.
    """
    store = models.get(name)
    if label is not None:
        raise invalid(f"Unrecognized servable version label: {label}")
    if store is None:
        asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
    return store.servable(version)


def find_statuses(models: Mapping[str, ModelStore], name: str, version: int | None = None) -> list[VersionStatus]:
    """Return the state of one version of a model, or of all that were ever tried, newest first.

    Raises:
        StatusError: NOT_FOUND where there is no such model or version.
    """
    if name not in models:
        what = "any versions" if version is None else f"version {version}"
        raise StatusError(Code.NOT_FOUND, f"Could not find {what} of model {name}")
    return models[name].statuses(version)
