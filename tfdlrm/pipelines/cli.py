"""What every command shares: errors in one line, a quiet TensorFlow, recipes, and the arguments of the pipeline."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import tfdlrm
from tfdlrm.data.raw_blocks import expand_path
from tfdlrm.pipelines.manner import manner, say, tell_error
from tfdlrm.pipelines.parsers import CommandParser, typed_again
from tfdlrm.pipelines.work_dir import WorkDir, config_toml
from tfdlrm.spec.config import RunConfig, load_config, with_overrides
from tfdlrm.spec.errors import ConfigError, DataError, UserError, did_you_mean
from tfdlrm.spec.quiet_import import import_quietly, quieten_tensorflow
from tfdlrm.training.stop_signal import TrainingStopped

quieten_tensorflow()  # its notes drown the lines that matter

DefaultRecipe = Callable[[argparse.Namespace], Path | RunConfig | None]

STAGES = ("prepare", "train", "evaluate", "export", "verify", "report")
EXIT_CHECK_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_STOPPED = 1, 2, 130, 143


class CheckFailed(RuntimeError):
    """The pipeline worked, and what it made is not what it should be."""


def run_command(body: Callable[[], int], go_on: str | None = None) -> int:
    """Run the body of a command; print what the user can mend as one line.

    Args:
        body: Does the work and returns the exit code.
        go_on: What to type to go on after an interruption.

    Returns:
        The body's exit code; 1 for a check that failed, 2 for input, configuration and files that cannot be used, 130
        after Ctrl-C, 143 after a SIGTERM that training answered with a checkpoint.
    """
    with _noted_interruption() as interrupted:
        try:
            return body()
        except CheckFailed as error:
            return _fail(str(error), EXIT_CHECK_FAILED)
        except UserError as error:
            return _fail(str(error))
        except TrainingStopped as stopped:
            return _fail(str(stopped) + (f" To go on: {go_on}" if go_on else ""), EXIT_STOPPED)
        except KeyboardInterrupt:
            return _interrupted(go_on)
        except Exception as error:
            # TensorFlow answers an interruption in the middle of tracing with errors of its own.
            if interrupted.is_set():
                return _interrupted(go_on)
            if not isinstance(error, OSError) or error.errno is None:
                raise
            return _fail(f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}.")


def _interrupted(go_on: str | None) -> int:
    on = f" What is done is kept; to go on: {go_on}" if go_on else ""
    tell_error(f"tfdlrm: interrupted.{on}", exit_code=EXIT_INTERRUPTED)
    return EXIT_INTERRUPTED


@contextlib.contextmanager
def _noted_interruption() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, before it raises `KeyboardInterrupt` as ever."""
    noted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        raise KeyboardInterrupt

    # A server has a handler of its own, and only the main thread can have one.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(message: str, code: int = EXIT_USER_ERROR) -> int:
    if manner().verbose and sys.exc_info()[0] is not None:
        traceback.print_exc()
    tell_error("tfdlrm: " + " ".join(message.split()), exit_code=code)
    return code


def refuse_directories(*files: Path | None) -> None:
    """Raise `ConfigError` if a folder lies where a file is to be written: before the work, not after it."""
    for path in files:
        if path is not None and path.is_dir():
            raise ConfigError(f"{path}: a directory, where a file must be.")


def load_tensorflow() -> None:
    """Import TensorFlow without the notes that its libraries print while they load; `--verbose` keeps them."""
    import_quietly("tf_keras", keep_notes=manner().verbose)


def recipe(name: str) -> Path:
    """Return the path of a recipe that comes with the project.

    Raises:
        ConfigError: there is none of that name.
    """
    package = Path(tfdlrm.__file__).resolve().parent
    folder = package / "recipes"  # where a wheel has them
    if not folder.is_dir():
        folder = package.parent / "pipelines"
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.toml"))
        raise ConfigError(f"no recipe `{name}` in {folder}.{did_you_mean(name, known)} Give one with --config.")
    return path


def pipeline_parser(module: str, description: str, examples: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser of a command that runs the stages."""
    parser = CommandParser(module, description, examples)
    parser.add_argument("--config", type=Path, metavar="FILE", help="recipe (TOML)")
    parser.add_argument(
        "--raw", nargs="+", default=[], metavar="PATH", help="raw files in order, plain or .gz, in place of `data.raw`"
    )
    parser.add_argument(
        "--continue-from",
        type=Path,
        metavar="RUN",
        help="work dir of a finished run: its vocabularies grow by the new values of --raw, its weights are the start",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="where the run keeps its files (default: runs/<name>)",
    )
    parser.add_argument(
        "--stages", default=",".join(STAGES), metavar="LIST", help="stages to run, by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change the recipe; repeatable",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="RUN", help="work dir of another run, to be beside this one in the report"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start afresh in a work dir that holds a run; rows prepared by an equal recipe are kept",
    )
    parser.add_argument(
        "--cross-validate",
        action="store_true",
        help='prepare, train and evaluate once for each fold; needs split.by = "fold"',
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the recipe; print what would run, its size and time, and the recipe with all defaults",
    )
    return parser


def pipeline_main(
    module: str,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    default_recipe: DefaultRecipe,
) -> int:
    """Parse the arguments of a pipeline command and run it.

    Args:
        module: Name of the command's module.
        parser: What `pipeline_parser` returned for it.
        argv: Arguments; those of the process where `None`.
        default_recipe: Told the arguments, returns the recipe to take where `--config` names none.
    """
    return resumable_main(module, parser, argv, lambda args: _run(args, default_recipe))


def resumable_main(
    module: str,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    body: Callable[[argparse.Namespace], int],
) -> int:
    """Parse the arguments of a command that can be gone on with by the same line, and run it.

    Args:
        module: Name of the command's module.
        parser: Of its arguments.
        argv: Arguments; those of the process where `None`.
        body: Does the work and returns the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    again = [argument for argument in arguments if argument != "--overwrite"]
    return run_command(lambda: body(args), typed_again(module, again))


def _run(args: argparse.Namespace, default_recipe: DefaultRecipe) -> int:
    stages = parse_stages(args.stages)
    config = _configuration(args, default_recipe)
    if args.dry_run:
        _refuse_misfit(config)
        return _dry_run(config, WorkDir(args.work_dir or Path("runs") / config.name), stages)
    if args.cross_validate and config.data.split.by != "fold":
        raise ConfigError(f'`data.split.by` must be "fold" for --cross-validate. Received: {config.data.split.by!r}.')
    if args.cross_validate and config.data.growth.from_run is not None:
        raise ConfigError("`data.growth` and --continue-from must not be given with --cross-validate.")
    if args.cross_validate and args.stages != ",".join(STAGES):
        raise ConfigError("`--stages` must not be given with --cross-validate, which has stages of its own.")
    path = args.work_dir or Path("runs") / config.name
    from_run = config.data.growth.from_run
    if from_run is not None and expand_path(from_run).resolve() == path.resolve():
        raise ConfigError(f"`--work-dir` must not be the run that is gone on from. Received: {path}.")
    if "prepare" in stages:
        refuse_unreadable(config)
    # TensorFlow is loaded only there, since it takes seconds, and a slip should be told at once.
    connects = "train" in stages and not args.cross_validate
    with WorkDir(path).open(config, args.overwrite, lambda: _refuse_misfit(config, connects)) as work_dir:
        if args.cross_validate:
            from tfdlrm.pipelines.folds import cross_validate

            cross_validate(config, work_dir, args.overwrite)
        else:
            from tfdlrm.pipelines.run import run_pipeline

            run_pipeline(config, work_dir, stages, args.overwrite)
    return 0


def _dry_run(config: RunConfig, work_dir: WorkDir, stages: Sequence[str]) -> int:
    """Say what would run, as comments before the recipe: both together are a recipe, too."""
    from tfdlrm.pipelines.forecast import forecast

    for line in forecast(config, work_dir, stages):
        print(f"# {line}")
    print(config_toml(config), end="")
    return 0


def _refuse_misfit(config: RunConfig, connects: bool = False) -> None:
    load_tensorflow()
    from tfdlrm.distribute.strategies import start
    from tfdlrm.pipelines.run import refuse_misfit

    if connects:  # before anything is computed: TensorFlow must know its devices by then
        start(config.distribute)
    refuse_misfit(config)


def refuse_unreadable(config: RunConfig) -> None:
    """Raise unless every raw file and side table can be opened."""
    for name in (*config.data.raw, *(table.file for table in config.data.format.side_tables)):
        path = expand_path(name)
        if path.is_dir():
            raise DataError(f"{path}: a directory, where a file must be.")
        with path.open("rb"):
            pass


def parse_stages(text: str) -> tuple[str, ...]:
    """Return the stages named in a comma-separated list, in the order they run.

    Raises:
        ConfigError: a name is unknown, or there is none.

    Example:
        >>> parse_stages("evaluate, train")
        ('train', 'evaluate')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise ConfigError(
                f"`--stages` must name stages of {', '.join(STAGES)}. Received: {name!r}.{did_you_mean(name, STAGES)}"
            )
    if not names:
        raise ConfigError("`--stages` must name at least one stage. Received: none.")
    return tuple(name for name in STAGES if name in names)


def _configuration(args: argparse.Namespace, default_recipe: DefaultRecipe) -> RunConfig:
    path: Path | None = args.config
    if path is None and args.work_dir is not None and (args.work_dir / "config.toml").is_file():
        path = args.work_dir / "config.toml"
        if not args.dry_run:  # which prints a recipe, and nothing else
            say(f"recipe: {path}")
    if path is None and args.continue_from is not None:
        path = _recipe_of_run(args)
    if path is None:
        found = default_recipe(args)
        if found is None:
            raise ConfigError("`--config` must name a recipe. Received: none.")
        config = load_config(found, args.set) if isinstance(found, Path) else with_overrides(found, args.set)
    else:
        config = load_config(path, args.set)
    if args.compare is not None:
        report = config.report.model_copy(update={"compare": str(args.compare)})
        config = config.model_copy(update={"report": report})
    if args.raw:
        config = config.model_copy(update={"data": config.data.model_copy(update={"raw": tuple(args.raw)})})
    if args.continue_from is not None:
        growth = config.data.growth.model_copy(update={"from_run": str(args.continue_from.resolve())})
        config = config.model_copy(update={"data": config.data.model_copy(update={"growth": growth})})
    return config


def _recipe_of_run(args: argparse.Namespace) -> Path:
    """Return the recipe of the run that is gone on from, for new rows."""
    path: Path = args.continue_from / "config.toml"
    if not path.is_file():
        raise DataError(f"`--continue-from` must be the work dir of a run. Received: {args.continue_from}.")
    if not args.raw:
        raise ConfigError("`--raw` must name the new rows where --continue-from is given without --config.")
    return path
