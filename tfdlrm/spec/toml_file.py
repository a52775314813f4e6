"""What a TOML file of a user's holds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tfdlrm.spec.errors import ConfigError, why_unreadable


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        ConfigError: it is missing, cannot be read or is not TOML; the message begins with its path.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {why_unreadable(error)}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}.") from None
