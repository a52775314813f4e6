"""The flags that say what is served; those that TensorFlow Serving has too carry its names and mean the same."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.serving import flag_types
from tfdlrm.serving.errors import StatusError
from tfdlrm.serving.model_config import ModelSettings, read_model_config
from tfdlrm.serving.models import Loader, Models
from tfdlrm.serving.store import require_versions
from tfdlrm.spec import arguments
from tfdlrm.spec.errors import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of models, their versions and gRPC.

    Args:
        parser: Takes the flags.
    """
    parser.add_argument(
        "--model_name", type=flag_types.name, default="default", help="name in request paths (default: %(default)s)"
    )
    served = parser.add_mutually_exclusive_group(required=True)
    served.add_argument("--model_base_path", type=Path, help="directory that holds the versions: <path>/<number>/")
    served.add_argument(
        "--model_config_file",
        type=Path,
        help="several models, policies and labels: a ModelServerConfig as text",
    )
    parser.add_argument(
        "--model_config_file_poll_wait_seconds",
        type=flag_types.seconds,
        default=0.0,
        help="seconds between two looks at the config file; 0 reads it once (default: %(default)s)",
    )
    parser.add_argument(
        "--allow_version_labels_for_unavailable_models",
        type=flag_types.switch,
        nargs="?",
        const=True,
        default=False,
        help="whether a new label may be given to a version that is not loaded (default: %(default)s)",
    )
    parser.add_argument(
        "--max_num_load_retries",
        type=arguments.natural,
        default=5,
        help="how often a version that failed to load is tried again (default: %(default)s)",
    )
    parser.add_argument(
        "--load_retry_interval_micros",
        type=arguments.natural,
        default=60_000_000,
        help="microseconds before it is tried again (default: %(default)s)",
    )
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=flag_types.seconds,
        default=1.0,
        help="seconds between two looks for new versions; 0 looks once, at the start (default: %(default)s)",
    )
    parser.add_argument(
        "--enable_model_warmup",
        type=flag_types.switch,
        nargs="?",
        const=True,
        default=True,
        help="whether a version answers its recorded requests before others do (default: %(default)s)",
    )
    parser.add_argument(
        "--num_request_iterations_for_warmup",
        type=arguments.natural,
        default=1,
        help="how often each recorded request is answered; 0 means once (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=flag_types.port_or_none, default=8500, help="gRPC port; 0 for no gRPC (default: %(default)s)"
    )
    parser.add_argument(
        "--grpc_max_threads",
        type=arguments.positive,
        default=4 * (os.cpu_count() or 1),
        help="gRPC requests computed at a time (default: four per processor, %(default)s here)",
    )


def settings_of(args: argparse.Namespace) -> list[ModelSettings]:
    """Return the models the flags ask for; quick, so that a wrong path is told before TensorFlow is imported.

    Args:
        args: The parsed flags.

    Raises:
        UserError: The path holds no version, or the config file cannot be used.
    """
    if args.model_config_file is not None:
        settings = read_model_config(args.model_config_file)
        try:
            make_models(args).check_labels(settings)
        except StatusError as error:
            hint = "see --allow_version_labels_for_unavailable_models"
            raise ConfigError(f"`model_config_file` must be valid. Received: {error.message}; {hint}") from error
        return settings
    require_versions(args.model_base_path)
    return [ModelSettings(args.model_name, args.model_base_path)]


def make_models(args: argparse.Namespace) -> Models:
    """Return the set of models, none of them loaded yet.

    Args:
        args: The parsed flags.
    """
    return Models(
        poll_seconds=args.file_system_poll_wait_seconds,
        retries=args.max_num_load_retries,
        retry_seconds=args.load_retry_interval_micros / 1e6,
        labels_for_unavailable=args.allow_version_labels_for_unavailable_models,
    )


def start_models(args: argparse.Namespace, models: Models, settings: Sequence[ModelSettings], load: Loader) -> None:
    """Load the models and watch over them as the flags say.

    Args:
        args: The parsed flags.
        models: What `make_models` returned.
        settings: What `settings_of` returned.
        load: Makes a servable of a version directory and its number.

    Raises:
        UserError: Nothing can be served.
    """
    models.start(settings, load)
    if args.model_config_file is not None and args.model_config_file_poll_wait_seconds:
        models.follow(args.model_config_file, args.model_config_file_poll_wait_seconds, settings)
