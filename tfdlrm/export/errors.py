"""What an export is refused with."""

from __future__ import annotations

_HEADINGS = ("", "Graph execution error:")


class VerifyError(RuntimeError):
    """An exported model that cannot be loaded, or does not answer what it should."""


def first_reason(error: BaseException) -> str:
    r"""Return the first line of a TensorFlow error that says something: neither empty nor its heading.

    Example:
        >>> first_reason(ValueError("Graph execution error:\n\nno such id"))
        'no such id'
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line not in _HEADINGS), type(error).__name__)
