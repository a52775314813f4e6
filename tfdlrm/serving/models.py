"""The models of a server: which version of which model a request means, and how the set of them changes."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tfdlrm.serving.errors import Code, StatusError, invalid
from tfdlrm.serving.model_config import ModelSettings, read_model_config
from tfdlrm.serving.store import ModelStore, VersionStatus
from tfdlrm.spec.errors import DataError, UserError

if TYPE_CHECKING:
    from tfdlrm.serving.servable import Servable

_LOG = logging.getLogger(__name__)

Loader = Callable[[Path, int], "Servable"]


class Models(Mapping[str, ModelStore]):
    """The stores by model name. The set changes all at once: a request sees the old one or the new one."""

    def __init__(
        self,
        *,
        poll_seconds: float = 1.0,
        retries: int = 5,
        retry_seconds: float = 60.0,
        labels_for_unavailable: bool = False,
    ) -> None:
        """Describe how models are loaded; none is yet.

        Args:
            poll_seconds: Pause between two looks at the disk; 0 looks once, at the start.
            retries: How often a version that failed is tried again.
            retry_seconds: Pause before it is tried again.
            labels_for_unavailable: Whether a new label may be given to a version that is not loaded.
        """
        self._load: Loader = _not_started
        self._poll_seconds = poll_seconds
        self._retries = retries
        self._retry_seconds = retry_seconds
        self._labels_for_unavailable = labels_for_unavailable
        self._stores: Mapping[str, ModelStore] = {}
        self._changing = threading.Lock()
        self._stopping = threading.Event()

    def __getitem__(self, name: str) -> ModelStore:
        return self._stores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)

    def start(self, settings: Sequence[ModelSettings], load: Loader) -> None:
        """Load the first set of models; one that cannot be served does not keep the others from it.

        Args:
            settings: The models.
            load: Makes a servable of a version directory and its number.

        Raises:
            DataError: None of them can be served.
            StatusError: A label for a version that is not loaded.
        """
        self._load = load
        self.check_labels(settings)
        stores = {one.name: self._make(one) for one in settings}
        failures = []
        for store in stores.values():
            try:
                store.start()
            except DataError as error:
                failures.append(error)
                _LOG.error("model %s cannot be served: %s", store.name, error)
                store.watch()
        self._stores = stores
        if failures and len(failures) == len(stores):
            self.stop()
            raise failures[0] if len(failures) == 1 else DataError("; ".join(map(str, failures)))

    def reconfigure(self, settings: Sequence[ModelSettings]) -> None:
        """Change the set of models; it changes as a whole or not at all.

        Models that are new, or whose path or policy is another, are loaded beside those that answer. Where one of them
        has nothing to serve all stays as it was.

        Args:
            settings: All models there are to be.

        Raises:
            StatusError: FAILED_PRECONDITION for a label of a version that is not loaded, UNKNOWN where a model has
                nothing to serve.
        """
        # What was loaded in vain or is no longer served refers to itself, so it waits for the collector. That must come
        # when no frame holds it any more, not those of an error either.
        failure = None
        try:
            left = self._change(settings)
        except StatusError as error:
            failure, left = error.with_traceback(None), True
        if left:
            gc.collect()
        if failure is not None:
            raise failure

    def _change(self, settings: Sequence[ModelSettings]) -> bool:
        """Do as `reconfigure` says; return whether a model is no longer served."""
        with self._changing, ExitStack() as held:
            self.check_labels(settings)
            stores: dict[str, ModelStore] = {}
            prepared: list[ModelStore] = []
            try:
                for one in settings:
                    store = self._stores.get(one.name)
                    if store is None or store.base_path != one.base_path:
                        store = self._make(one)
                        store.poll()
                        if not store.available:
                            raise StatusError(Code.UNKNOWN, f"1 model(s) did not become available: {_why(store)}")
                    elif store.policy != one.policy:
                        held.enter_context(store.held())
                        prepared.append(store)
                        store.prepare(one.policy)
                    stores[one.name] = store
            except StatusError:
                for store in prepared:
                    store.poll()  # unloads what only the new policy wanted
                raise
            gone = [store for name, store in self._stores.items() if stores.get(name) is not store]
            self._stores = stores
            for one in settings:
                stores[one.name].policy, stores[one.name].labels = one.policy, one.labels
            for store in prepared:
                store.poll()
        for store in stores.values():
            store.watch()
        for store in gone:
            store.stop()
        _LOG.info("models: %s", ", ".join(stores) or "none")
        return bool(gone)

    def follow(self, path: Path, seconds: float, settings: Sequence[ModelSettings]) -> None:
        """Read a config file again and again, and do as it says when it has changed; what is wrong with it is logged.

        A change that came another way stays until the file changes next. Models that could not be loaded are tried
        again when the file has changed or the pause before retries is over, not at every look: each try loads all that
        is new in the file.

        Args:
            path: The text form of ModelServerConfig.
            seconds: Pause between two looks.
            settings: What was read from it before.
        """

        def watch() -> None:
            done, told = settings, ""
            failed: Sequence[ModelSettings] | None = None
            retry_at = 0.0
            while not self._stopping.wait(seconds):
                try:
                    found = read_model_config(path)
                    if found != done:
                        self.check_labels(found)  # costs nothing, and a label may come true at any time
                        if found == failed and time.monotonic() < retry_at:
                            continue
                        failed = found
                        self.reconfigure(found)
                    done, told, failed = found, "", None
                except (UserError, StatusError) as error:
                    if str(error) != told:
                        told = str(error)
                        _LOG.error("models stay as they are: %s", told)
                except Exception:
                    _LOG.exception("reading %s failed", path)
                retry_at = time.monotonic() + self._retry_seconds

        threading.Thread(target=watch, name="model config", daemon=True).start()

    def stop(self) -> None:
        """Stop watching the disk for all models."""
        self._stopping.set()
        for store in self._stores.values():
            store.stop()

    def _make(self, one: ModelSettings) -> ModelStore:
        return ModelStore(
            one.name,
            one.base_path,
            self._load,
            self._poll_seconds,
            policy=one.policy,
            labels=one.labels,
            retries=self._retries,
            retry_seconds=self._retry_seconds,
        )

    def check_labels(self, settings: Sequence[ModelSettings]) -> None:
        """Refuse labels for versions that do not answer now; loading them is a change of its own, made before.

        Args:
            settings: All models there are to be.

        Raises:
            StatusError: FAILED_PRECONDITION.
        """
        for one in settings:
            store = self._stores.get(one.name)
            for label, version in one.labels.items():
                moved = store is not None and store.labels.get(label, version) != version
                if self._labels_for_unavailable and not moved:
                    continue
                if store is None or version not in store.available:
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {one.name}, "
                        "which is not currently available for inference",
                    )


def _not_started(path: Path, version: int) -> Servable:
    raise RuntimeError("`start` must come before any change of the models")


def _why(store: ModelStore) -> str:
    reasons = [f"version {status.version}: {status.message}" for status in store.statuses()]
    return f"{store.name}: {'; '.join(reasons) or f'no version under {store.base_path}'}"


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
        if store is None or label not in store.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        version = store.labels[label]
    if store is None:
        asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
    return store.servable(version)


def find_statuses(models: Mapping[str, ModelStore], name: str, version: int | None = None) -> list[VersionStatus]:
    """Return the state of one version of a model, or of all that were ever tried, newest first.

    Raises:
        StatusError: NOT_FOUND where there is no such model or version.
    """
    store = models.get(name)
    if store is not None and version is not None:
        return store.statuses(version)
    statuses = store.statuses() if store is not None else []
    if not statuses:
        what = "any versions" if version is None else f"version {version}"
        raise StatusError(Code.NOT_FOUND, f"Could not find {what} of model {name}")
    return statuses
