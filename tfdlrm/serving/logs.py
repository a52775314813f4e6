"""Log lines: plain or JSON, and one for each request. What requests and answers hold is never written."""

from __future__ import annotations

import datetime
import json
import logging
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdlrm.serving.note import Note

_ACCESS = logging.getLogger("tfdlrm.access")


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(json_lines: bool) -> None:
    """Have log records written to stderr.

    Args:
        json_lines: Whether as JSON.
    """
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if json_lines else plain)
    logging.basicConfig(handlers=[handler])
    logging.getLogger("tfdlrm").setLevel(logging.INFO)


class AccessLog:
    """Writes a line for each request, or for some; requests that failed in the server are always written."""

    def __init__(self, share: float = 1.0) -> None:
        """Take the share of requests that are written, 0 to 1."""
        self._share = share

    def answered(self, note: Note, status: str, http_status: int, seconds: float) -> None:
        """Write the line."""
        failed = status in ("INTERNAL", "UNKNOWN", "DATA_LOSS")
        if not failed and self._share < 1 and random.random() >= self._share:
            return
        milliseconds = round(seconds * 1000, 3)
        request = {
            "entrypoint": note.entrypoint,
            "model": note.model,
            "version": note.version,
            "verb": note.verb,
            "status": status,
            "http_status": http_status or None,
            "milliseconds": milliseconds,
            "rows": note.rows,
            "request_id": note.request_id or None,
        }
        # The name and id come from the client: `%r` keeps line breaks out of plain lines.
        text = "%s %s of %r: %s, version %s, %d rows, %.3f ms, id %r"
        values = (note.entrypoint, note.verb or "request", note.model, status, note.version, note.rows, milliseconds)
        _ACCESS.log(
            logging.ERROR if failed else logging.INFO, text, *values, note.request_id, extra={"request": request}
        )
