"""The models a server is told to serve: TensorFlow Serving's ModelServerConfig, from its text form or a message."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tfdlrm.serving.errors import StatusError, invalid
from tfdlrm.serving.version_policy import LATEST, All, Latest, Specific, VersionPolicy
from tfdlrm.spec.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What one model is served from.

    Attributes:
        name: What requests call it.
        base_path: The directory of its version directories, absolute.
        policy: Which versions to have loaded.
        labels: Versions by label.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = LATEST
    labels: Mapping[str, int] = dataclasses.field(default_factory=lambda: MappingProxyType({}))


def read_model_config(path: Path) -> list[ModelSettings]:
    """Read a config file.

    Args:
        path: The text form of ModelServerConfig.

    Returns:
        The models, in the order of the file.

    Raises:
        ConfigError: It cannot be read or is no such config.
    """
    try:
        from google.protobuf import text_format
        from tensorflow_serving.config import model_server_config_pb2
    except ModuleNotFoundError as error:
        raise ConfigError(f"`model_config_file` needs `pip install tfdlrm[serving]`. Received: {error}") from error
    message = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), message)
        settings = settings_from(message)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`model_config_file` must be a file that can be read. Received: {path}: {error}") from error
    except text_format.ParseError as error:
        raise ConfigError(f"`model_config_file` must be a ModelServerConfig. Received: {path}:{error}") from error
    except StatusError as error:
        raise ConfigError(f"`model_config_file` must be valid. Received: {path}: {error.message}") from error
    if not settings:
        raise ConfigError(f"`model_config_file` must list a model. Received: {path}")
    return settings


def settings_from(message: Any) -> list[ModelSettings]:
    """Return the models of a ModelServerConfig.

    Args:
        message: The config.

    Raises:
        StatusError: INVALID_ARGUMENT: a name twice or none, a path that is not absolute, another platform, or a custom
            config.
    """
    if message.WhichOneof("config") == "custom_model_config":
        raise invalid("ServerModelConfig type not supported. Only ModelConfigList is currently supported")
    settings: dict[str, ModelSettings] = {}
    for config in message.model_config_list.config:
        if not config.name:
            raise invalid("Illegal to list a model without a name in config list")
        if config.name in settings:
            raise invalid(f"Illegal to list model {config.name} multiple times in config list")
        path = Path(config.base_path)
        if not path.is_absolute():
            raise invalid(
                f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
            )
        if config.model_platform not in ("", "tensorflow"):
            raise invalid(f"Model {config.name} must have the platform tensorflow. Received: {config.model_platform}")
        labels = MappingProxyType(dict(config.version_labels))
        settings[config.name] = ModelSettings(config.name, path, _policy(config.model_version_policy), labels)
    return list(settings.values())


def _policy(message: Any) -> VersionPolicy:
    choice = message.WhichOneof("policy_choice")
    if choice == "all":
        return All()
    if choice == "specific":
        return Specific(frozenset(message.specific.versions))
    return Latest(max(message.latest.num_versions, 1))
