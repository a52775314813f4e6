"""The versions of one model: found on disk, loaded in the background, swapped without a gap."""

from __future__ import annotations

import dataclasses
import gc
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.version_policy import LATEST, Latest, VersionPolicy
from tfdlrm.spec.errors import DataError

if TYPE_CHECKING:  # what loads is handed in, so that looking at the disk needs no TensorFlow
    from tfdlrm.serving.servable import Servable

_LOG = logging.getLogger(__name__)
_LAST_VERSION = 2**63 - 1
_STOP_SECONDS = 5.0
_ENDED_SHOWN = 20

_Fingerprint = frozenset[tuple[str, int, int]]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version, as status requests show it.

    Attributes:
        version: The number of its directory.
        state: "LOADING", "AVAILABLE", "UNLOADING" or "END"; a version that failed to load is at its end.
        code: OK, or why it failed.
        message: Empty, or why it failed.
    """

    version: int
    state: str
    code: Code = Code.OK
    message: str = ""


@dataclasses.dataclass
class _Failure:
    """A version that did not load: when, and what its files looked like."""

    tried: _Fingerprint
    seen: _Fingerprint
    at: float
    attempts: int = 1


class ModelStore:
    """Serves versions of a model under `<base path>/<number>/`, the latest one by default.

    A version is loaded beside those that answer. Versions that the policy no longer wants are unloaded once one that it
    wants answers. One that fails to load is shown by `statuses`, and the ones before go on answering; it is tried again
    when its files have changed and come to rest, and a few times after a pause. Where the latest versions are wanted
    and none answers yet, older ones are tried in turn. If all versions disappear from the disk what is loaded stays in
    memory: an unmounted disk is no order to stop.

    Example:
        >>> store = ModelStore("ctr", Path("saved_models/ctr"), load_servable)  # doctest: +SKIP
        >>> store.start()  # doctest: +SKIP
        >>> store.servable().version  # doctest: +SKIP
        3
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        load: Callable[[Path, int], Servable],
        poll_seconds: float = 1.0,
        *,
        policy: VersionPolicy = LATEST,
        labels: Mapping[str, int] = MappingProxyType({}),
        retries: int = 5,
        retry_seconds: float = 60.0,
    ) -> None:
        """Describe a model; nothing is read yet.

        Args:
            name: What requests call it.
            base_path: The directory of its version directories.
            load: Makes a servable of a version directory and its number, as `load_servable` does.
            poll_seconds: Pause between two looks at the disk; 0 looks once, at the start.
            policy: Which versions to have loaded.
            labels: Versions by the labels requests may give instead.
            retries: How often a version that failed is tried again while its files stay as they are.
            retry_seconds: Pause before it is tried again.
        """
        self.name = name
        self.base_path = base_path
        self.policy = policy
        self.labels = labels
        self._poll_seconds = poll_seconds
        self._retries = retries
        self._retry_seconds = retry_seconds
        self._load = load
        self._servables: Mapping[int, Servable] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failures: dict[int, _Failure] = {}
        self._replaced = False
        self._warned = False
        self._stop = threading.Event()
        self._changing = threading.RLock()
        self._thread = threading.Thread(target=self._watch, name=f"versions of {name}", daemon=True)

    def start(self) -> None:
        """Load the versions wanted, then watch the disk from a thread of its own.

        Raises:
            DataError: There is nothing to serve: no directory, no version in it, or none that loads.
        """
        require_versions(self.base_path)
        self.poll()
        if not self._servables:
            reasons = "; ".join(f"version {status.version}: {status.message}" for status in self.statuses())
            reasons = reasons or f"none of those asked for: {self.policy}"
            raise DataError(f"`model_base_path` must hold a version that loads. Received: {self.base_path}: {reasons}")
        self.watch()

    def watch(self) -> None:
        """Begin to look at the disk, every `poll_seconds`."""
        if self._poll_seconds and not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Stop watching; a load under way gets a few seconds to finish before the process ends beneath it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def servable(self, version: int | None = None) -> Servable:
        """Return the version that answers.

        Args:
            version: A version that must be the one; None for the latest that is loaded.

        Raises:
            StatusError: That version is not loaded.
        """
        servables = self._servables
        number = max(servables, default=None) if version is None else version
        if number is None or number not in servables:
            asked = f"Latest({self.name})" if version is None else f"Specific({self.name}, {version})"
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
        return servables[number]

    @property
    def available(self) -> frozenset[int]:
        """The versions that answer."""
        return frozenset(self._servables)

    def statuses(self, version: int | None = None) -> list[VersionStatus]:
        """Return the state of one version, or of all that were ever tried, newest first.

        Raises:
            StatusError: There is no such version.
        """
        known = self._statuses
        if version is None:
            return [known[number] for number in sorted(known, reverse=True)]
        if version not in known:
            raise StatusError(Code.NOT_FOUND, f"Could not find version {version} of model {self.name}")
        return [known[version]]

    def poll(self) -> None:
        """Look at the disk once, load what is due and unload what is no longer wanted."""
        with self._changing:
            if self._replaced:
                # TensorFlow's objects refer to each other, so a replaced version's memory waits for the collector. One
                # poll after the swap its last requests have most likely been answered.
                self._replaced = False
                gc.collect()
            aspired = self._load_aspired(self.policy)
            if self._servables.keys() & set(aspired):
                self._unload(self._servables.keys() - set(aspired))

    def prepare(self, policy: VersionPolicy) -> None:
        """Load what another policy wants beside what is loaded. Only within `held`, or a poll undoes it.

        Raises:
            StatusError: Nothing that it wants could be loaded.
        """
        if not self._servables.keys() & set(self._load_aspired(policy)):
            raise StatusError(Code.UNKNOWN, f"1 model(s) did not become available: {self.name}: {policy}")

    def held(self) -> AbstractContextManager[object]:
        """Keep the versions as they are, but for what this thread does to them."""
        return self._changing

    def _load_aspired(self, policy: VersionPolicy) -> list[int]:
        """Load what a policy wants and is due; return what it wants of what is on the disk, newest first."""
        versions = _find_versions(self.base_path)
        aspired = policy.aspired(versions)
        if not aspired and self._servables and not self._warned:
            _LOG.warning("model %s: no version left under %s; keeping those loaded", self.name, self.base_path)
        self._warned = not aspired
        if versions:
            self._failures = {number: failure for number, failure in self._failures.items() if number in versions}
        for number in aspired:
            if number not in self._servables and self._due(number, versions[number]):
                self._try(number, versions[number])
        if isinstance(policy, Latest):
            for number in sorted(versions.keys() - set(aspired), reverse=True):
                if self._servables:
                    break
                if self._due(number, versions[number]):
                    self._try(number, versions[number])
        return aspired

    def _unload(self, numbers: Collection[int]) -> None:
        if not numbers:
            return
        self._servables = {number: kept for number, kept in self._servables.items() if number not in numbers}
        self._replaced = True
        for number in sorted(numbers):
            self._show(VersionStatus(number, "END"))
            _LOG.info("model %s: version %d unloaded", self.name, number)

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:  # the thread must outlive whatever a disk or a model comes up with
                _LOG.exception("model %s: looking for versions failed", self.name)

    def _due(self, number: int, path: Path) -> bool:
        failure = self._failures.get(number)
        if failure is None:
            return True
        now = _fingerprint(path)
        at_rest, failure.seen = now == failure.seen, now
        if now != failure.tried:
            return at_rest
        return failure.attempts <= self._retries and time.monotonic() - failure.at >= self._retry_seconds

    def _try(self, number: int, path: Path) -> None:
        files = _fingerprint(path)
        self._show(VersionStatus(number, "LOADING"))
        started = time.monotonic()
        try:
            servable = self._load(path, number)
        except Exception as error:  # whatever is wrong with one version, the others go on answering
            code = error.code if isinstance(error, StatusError) else Code.UNKNOWN
            message = " ".join((error.message if isinstance(error, StatusError) else str(error)).split())
            before = self._failures.get(number)
            attempts = before.attempts + 1 if before is not None and before.tried == files else 1
            self._failures[number] = _Failure(files, files, time.monotonic(), attempts)
            self._show(VersionStatus(number, "END", code, message))
            _LOG.error("model %s: version %d could not be loaded: %s: %s", self.name, number, code.name, message)
            return
        self._failures.pop(number, None)
        self._servables = {**self._servables, number: servable}
        self._show(VersionStatus(number, "AVAILABLE"))
        _LOG.info("model %s: version %d loaded in %.1f s", self.name, number, time.monotonic() - started)

    def _show(self, status: VersionStatus) -> None:
        """Publish a status; readers see the old or the new table, never one half changed."""
        statuses = {**self._statuses, status.version: status}
        ended = sorted(number for number, known in statuses.items() if known.state == "END")
        for number in ended[:-_ENDED_SHOWN]:
            del statuses[number]
        self._statuses = statuses


def require_versions(base_path: Path) -> dict[int, Path]:
    """Return the version directories by number.

    Raises:
        DataError: There is no such directory, or no version in it.
    """
    if not base_path.is_dir():
        raise DataError(f"`model_base_path` must be a directory. Received: {base_path}")
    versions = _find_versions(base_path)
    if not versions:
        itself = (base_path / "saved_model.pb").exists()
        hint = f" It is itself a version: give its parent, {base_path.absolute().parent}." if itself else ""
        raise DataError(
            f"`model_base_path` must hold a model in a directory with a number for a name, such as {base_path}/1."
            f"{hint} Received: {base_path}"
        )
    return versions


def _find_versions(base_path: Path) -> dict[int, Path]:
    """Return the version directories; other names, such as that of an export under way, are none of ours."""
    try:
        children = sorted(base_path.iterdir())
    except OSError:
        return {}
    found = {int(path.name): path for path in children if re.fullmatch("[0-9]{1,30}", path.name) and path.is_dir()}
    return {number: path for number, path in found.items() if number <= _LAST_VERSION}


def _fingerprint(path: Path) -> _Fingerprint:
    """Return what tells that files have changed: names, sizes in bytes and times in nanoseconds."""
    files = set()
    for file in path.rglob("*"):
        try:
            stat = file.stat()
        except OSError:  # gone between the two looks
            continue
        files.add((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
    return frozenset(files)
