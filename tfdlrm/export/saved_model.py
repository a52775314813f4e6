"""Write a trained model as a SavedModel that plain TensorFlow, and so TensorFlow Serving, answers raw rows from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy.typing as npt
import tensorflow as tf
import tf_keras as keras

from tfdlrm import __version__
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.partial import is_disk_full
from tfdlrm.data.transforms import DenseStats
from tfdlrm.export.examples_signatures import METHODS
from tfdlrm.export.input_names import input_names
from tfdlrm.export.ops import refuse_foreign_ops
from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.ranking import RANK, ranking_names, refuse_no_columns
from tfdlrm.export.serving_rows import UntouchedRows, checked_rows, serving_rows
from tfdlrm.export.signature_file import rewrite_signatures
from tfdlrm.export.signatures import RAW, out_of_vocabulary_rows, signatures
from tfdlrm.export.versions import publish_version
from tfdlrm.export.warmup import WARMUP_FILE, warmup_requests, write_warmup
from tfdlrm.spec.coding import Encoding, TableCoding
from tfdlrm.spec.config import RunConfig, TableForm
from tfdlrm.spec.errors import ConfigError, DataError, DiskFullError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen

ASSETS = "assets.extra"
"""Folder of a version that loaders leave alone."""
RECORD_FILE = "tfdlrm.json"


class ExportRecord(Frozen):
    """`assets.extra/tfdlrm.json`: what the model reads and where it comes from.

    Attributes:
        format: Version of this file's form.
        tfdlrm: Version of this package.
        tensorflow: Version of TensorFlow.
        spec: Features and tables of the model.
        encoding: Coding rules; `None` for a model that is served on ids alone.
        dense_stats: Statistics of the `standardize` features.
        oov_rows: Row of each table that stands for ids outside it.
        untouched_rows: Rows, by table, that were exported as the mean of their table's other rows.
        logit_shift: What the answers have on top of the model's own log-odds: ln(1 - r) where a share r of the rows
            with label 0 had been left out.
        vocabulary_version: Version of the encoder's vocabularies; those of a run that went on from another have its
            version and 1.
        vocabulary_parent: SHA-256 of that run's `encoder.json`.
        tables: How embedding tables are stored; see `tfdlrm.export.quantized`.
        rank_candidates: Raw columns that differ by candidate in `rank`; none where there is no such signature.
        config: Configuration of the run that trained it, if one did.
    """

    format: Literal[1] = 1
    tfdlrm: str = __version__
    tensorflow: str = tf.__version__
    spec: FeatureSpec
    encoding: Encoding | None
    dense_stats: dict[str, DenseStats]
    oov_rows: dict[str, int]
    untouched_rows: dict[str, tuple[int, ...]]
    logit_shift: float = 0.0
    vocabulary_version: int = 1
    vocabulary_parent: str | None = None
    tables: TableForm = "float32"
    rank_candidates: tuple[str, ...] = ()
    config: RunConfig | None


def export_model(
    model: keras.Model,
    encoder: FeatureEncoder | None,
    base: Path,
    *,
    version: int | None = None,
    untouched_rows: UntouchedRows | None = None,
    oov_rows: Mapping[str, int] | None = None,
    logit_shift: float = 0.0,
    vocabulary: tuple[int, str | None] = (1, None),
    tables: TableForm = "float32",
    config: RunConfig | None = None,
    rank_candidates: Sequence[str] = (),
    warmup: Mapping[str, npt.NDArray[Any]] | None = None,
    warmup_batch_sizes: Sequence[int] = (1, 32),
    bless: Callable[[Path], None] | None = None,
    extra_assets: Mapping[str, Path] | None = None,
) -> Path:
    """Export a model and its encoder as the next version under `base`.

    The signatures are `serving_default` on raw columns, `tf_examples`, `classify` and `regress` on serialized
    `tf.train.Example`, `serve_ids` on encoded ids and, where columns of candidates are named, `rank`; see
    `tfdlrm.export.signatures`. Only the variables that answers depend on are saved, without optimizer slots, and
    without a second copy in memory. Nothing has a version's name before it is complete.

    Args:
        model: A built model with a `spec` and an `embedding` collection.
        encoder: The encoder that prepared its training rows. `None` gives `serve_ids` only, for ids coded elsewhere.
        base: Folder of the model's versions, `saved_models/<name>`; made if it is missing.
        version: Number of the version. Defaults to the next free one.
        untouched_rows: Rows that no training sample read, by table; see `serving_rows`, inside which the model predicts
            what the export answers.
        oov_rows: Row of each table that stands for ids outside it; exactly where there is no encoder, which has them.
        logit_shift: Added to the model's log-odds in every answer: ln(1 - r) where a share r of the rows with label 0
            was left out of training. Defaults to 0.
        vocabulary: Version of the encoder's vocabularies, and the SHA-256 of the `encoder.json` that they grew from.
            Defaults to the first.
        tables: How embedding tables are stored; see `quantized_tables`, inside which the model predicts what the export
            answers. Defaults to `"float32"`, as the model stores them.
        config: Configuration of the run, kept in `assets.extra/tfdlrm.json`.
        rank_candidates: Raw columns that differ by candidate. Defaults to none, and no signature `rank`.
        warmup: Raw rows to make warm-up requests of, as arrays by column, numbers with NaN where missing and strings
            with `""`. Defaults to none, and no requests.
        warmup_batch_sizes: Rows of those requests. Defaults to 1 and 32.
        bless: Told the complete directory before it has a number. What it raises is passed on, and nothing stays.
        extra_assets: Files to copy into `assets.extra`, by the relative path they get there.

    Returns:
        The version's directory.

    Raises:
        SpecError: model and encoder disagree, a row is outside its table, a raw column can be no input, or the shift is
            not finite.
        ConfigError: the version is taken, warm-up requests cannot be made, the name of an asset is no relative path of
            its own, or a table's coding has no row for values it has not seen.
        VerifyError: an operation is not in stock TensorFlow Serving.
        DataError: an asset is no file, a column of the warm-up rows is absent, or a table that is to be stored in fewer
            bytes holds a value that is not finite.
        DiskFullError: there is no room to write; nothing stays behind.
    """
    assets = _checked_assets(extra_assets or {})
    record = _record(model, encoder, untouched_rows or {}, oov_rows, logit_shift, vocabulary, tables, config)
    record = record.model_copy(update={"rank_candidates": _checked_candidates(encoder, rank_candidates)})

    requests = _warmup(base, encoder, warmup, warmup_batch_sizes, rank_candidates)

    def write(directory: Path) -> None:
        with serving_rows(model, record.untouched_rows), quantized_tables(model, tables), _quiet_saving():
            functions = signatures(model, encoder, record.oov_rows, record.logit_shift, rank_candidates)
            root = _saved_objects(encoder, functions.values())
            tf.saved_model.save(root, str(directory), signatures=functions)
        if encoder is not None:
            columns = encoder.raw_signature()
            names = {RAW: input_names(columns), **({RANK: ranking_names(columns)} if rank_candidates else {})}
            rewrite_signatures(directory, names, METHODS)
        (directory / ASSETS).mkdir()
        (directory / ASSETS / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if requests:
            write_warmup(directory / ASSETS / WARMUP_FILE, requests)
        for name, source in assets.items():
            (directory / ASSETS / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, directory / ASSETS / name)
        refuse_foreign_ops(directory)

    try:
        return publish_version(Path(base), write, version, bless)
    except (OSError, tf.errors.OpError) as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{base}: not published: the disk is full. Nothing of the export stays there: "
            "free some space and export again."
        ) from error


def _record(
    model: keras.Model,
    encoder: FeatureEncoder | None,
    untouched_rows: UntouchedRows,
    oov_rows: Mapping[str, int] | None,
    logit_shift: float,
    vocabulary: tuple[int, str | None],
    tables: TableForm,
    config: RunConfig | None,
) -> ExportRecord:
    if (oov_rows is None) != (encoder is not None):
        raise ConfigError(
            "`oov_rows` must be given exactly where there is no `encoder`. "
            f"Received: oov_rows={oov_rows}, encoder={'given' if encoder is not None else None}."
        )
    if encoder is not None:
        # Encoded rows do not depend on how wide their tables are, nor on how they are stored.
        encoder.spec.plain().refuse_unless_equal(model.spec.plain(), "the encoder", "the model")
        oov_rows = {name: _oov_row(name, coding) for name, coding in encoder.encoding.tables.items()}
    return ExportRecord(
        spec=model.spec,
        encoding=None if encoder is None else encoder.encoding,
        dense_stats={} if encoder is None else dict(encoder.dense_stats),
        oov_rows=out_of_vocabulary_rows(model.spec, oov_rows or {}),
        untouched_rows={name: tuple(rows.tolist()) for name, rows in checked_rows(model.spec, untouched_rows).items()},
        logit_shift=logit_shift,
        vocabulary_version=vocabulary[0],
        vocabulary_parent=vocabulary[1],
        tables=tables,
        config=config,
    )


def _warmup(
    base: Path,
    encoder: FeatureEncoder | None,
    rows: Mapping[str, npt.NDArray[Any]] | None,
    batch_sizes: Sequence[int],
    rank_candidates: Sequence[str],
) -> list[Any]:
    if rows is None:
        return []
    if encoder is None:
        raise ConfigError("`warmup` must be absent where there is no `encoder`, and so no raw column.")
    return warmup_requests(Path(base).resolve().name, encoder, rows, batch_sizes, rank_candidates)


def _checked_candidates(encoder: FeatureEncoder | None, candidates: Sequence[str]) -> tuple[str, ...]:
    if candidates and encoder is None:
        raise ConfigError(
            f"`rank_candidates` must be empty where there is no `encoder`, and so no raw column. "
            f"Received: {list(candidates)}."
        )
    if encoder is not None:
        refuse_no_columns(candidates, encoder.raw_signature(), encoder.encoding)
    return tuple(candidates)


def _oov_row(table: str, coding: TableCoding) -> int:
    if coding.oov_row is None:
        raise ConfigError(
            f"`encoder` must say what a value without a row counts as in table `{table}`, whose coding has no "
            "`oov_row`: load it with `unseen`."
        )
    return coding.oov_row


def _saved_objects(encoder: FeatureEncoder | None, functions: Iterable[Any]) -> tf.Module:
    """Return the encoder and those variables of the model that the functions read.

    The model itself is left out: Keras would trace all its ways of being called, and save the optimizer's slots.
    """
    root = tf.Module(name="served")
    root.encoder = encoder
    of_encoder = {variable.ref() for variable in encoder.variables} if encoder is not None else set()
    read = {variable.ref(): variable for function in functions for variable in function.variables}
    root.weights = [variable for reference, variable in read.items() if reference not in of_encoder]
    return root


def _checked_assets(assets: Mapping[str, Path]) -> dict[str, Path]:
    for name, source in assets.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or str(path) in (RECORD_FILE, WARMUP_FILE):
            raise ConfigError(
                f"`extra_assets` must be named by relative paths other than {RECORD_FILE} and {WARMUP_FILE}. "
                f"Received: {name!r}."
            )
        if not source.is_file():
            raise DataError(f"{source}: no such file, to be the asset `{name}`.")
    return dict(assets)


@contextmanager
def _quiet_saving() -> Iterator[None]:
    """Keep TensorFlow from telling the temporary name it writes to."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
