"""What Beam's workers know of a job, and their first step, which needs no TensorFlow: the survey of the raw files.

Each step leaves files in a `Place` and nothing else that matters, under names that its input decides, and the same
whenever it is done: a step that a runner does twice, or at two places at once, does no harm. What is the user's to
mend is noted there as well, not raised: a runner would try again, and bury the message in its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from tfdlrm.data.beam_io import BeamFile, Place
from tfdlrm.data.partial import is_disk_full
from tfdlrm.data.raw_blocks import is_packed, survey_blocks
from tfdlrm.spec import errors
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import UserError

NOTES = "notes"


@dataclass(frozen=True)
class Job:
    """What all steps know.

    Attributes:
        data: The recipe.
        root: The place where data grow.
        locations: The raw files.
        chunk_bytes: Bytes of text parsed at a time.
        memory_bytes: About how much memory counts may take in one worker.
    """

    data: DataConfig
    root: str
    locations: tuple[str, ...]
    chunk_bytes: int
    memory_bytes: int

    @property
    def place(self) -> Place:
        """The place where data grow."""
        return Place(self.root)

    @property
    def table_of(self) -> dict[str, str]:
        """The table of each sparse feature."""
        return {c.name: c.table or c.name for c in self.data.sparse}

    def note(self, name: str, work: Callable[[dict[str, Any]], None]) -> bool:
        """Let `work` fill a note and write it; tells whether all went well."""
        noted: dict[str, Any] = {}
        try:
            work(noted)
        except UserError as error:
            noted["error"] = [type(error).__name__, str(error)]
        except Exception as error:
            if not is_disk_full(error):
                raise
            noted["error"] = ["DataError", f"{self.root}: the disk is full."]
        self.place.write(name, json.dumps(noted))
        return "error" not in noted

    def read_note(self, name: str) -> dict[str, Any]:
        """Return what a step noted, its error too."""
        noted: dict[str, Any] = json.loads(self.place.read(name))
        return noted


def raise_noted(noted: dict[str, Any]) -> None:
    """Raise the error that a step noted, if any."""
    if "error" in noted:
        kind, message = noted["error"]
        raise getattr(errors, kind)(message)


def survey_note(file: int) -> str:
    """Return the name of the note on a file."""
    return f"{NOTES}/file-{file:06d}.json"


class SurveyFile(beam.DoFn):
    """Reads a raw file once: its rows, its checksum, and where its blocks lie."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, file: int) -> None:
        """Survey the file of that number."""
        path = BeamFile(self._job.locations[file])

        def survey(noted: dict[str, Any]) -> None:
            found, spans = survey_blocks(path, self._job.data.format.header, self._job.chunk_bytes)
            noted |= {"rows": found.rows, "size": found.size, "mtime_ns": found.mtime_ns, "sha256": found.sha256}
            noted |= {"spans": spans, "packed": is_packed(path)}

        self._job.note(survey_note(file), survey)
