"""What an export is refused with."""

from __future__ import annotations


class VerifyError(RuntimeError):
    """An exported model that cannot be loaded, or does not answer what it should."""
