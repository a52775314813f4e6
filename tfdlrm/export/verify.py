"""Does an exported model answer what the trained one does? Asked of a fresh process that has nothing but TensorFlow.

`verify` starts `python -m tfdlrm.export.verify`, which loads the version through TensorFlow's version 1 loader, as
close to TensorFlow Serving as Python gets, and answers every signature.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.export.asking import EXPECTED, IDS, load_and_answer
from tfdlrm.export.asking import RAW as RAW
from tfdlrm.export.errors import VerifyError as VerifyError
from tfdlrm.export.errors import first_reason
from tfdlrm.export.ops import refuse_foreign_ops

Array = npt.NDArray[Any]

# A SavedModel must be loaded without Keras; that TensorFlow would import it also takes a fifth of its time.
_WITHOUT_KERAS = """
import sys
sys.modules["tf_keras"] = None
from tfdlrm.export.verify import main
sys.exit(main())
"""
_ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What verification found.

    Attributes:
        rows: Rows that each signature answered.
        differences: Largest absolute difference from the expected probabilities, by signature.
        max_difference: The largest of them.
        seconds_load: Time the loader took.
        seconds_answer: Time each signature took for all rows, by signature; the first batch warms it up.
        warmup_requests: Warm-up requests of the version that were replayed; none where it has no such file.
        ops: Names of the TensorFlow operations in use.
    """

    rows: int
    differences: dict[str, float]
    max_difference: float
    seconds_load: float
    seconds_answer: dict[str, float]
    warmup_requests: int
    ops: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**dataclasses.asdict(self), "ops": list(self.ops)}


def verify(
    version_dir: Path,
    rows: Mapping[str, Array],
    expected: Array,
    tolerance: float = 1e-5,
    *,
    ids: Mapping[str, Array] | None = None,
    batch_size: int = 2048,
    timeout_seconds: float = 1800,
) -> VerifyReport:
    """Compare the answers of an exported version with those of the model it was made of.

    Every signature is asked: those on raw values for `rows`, `serve_ids` for `ids`. In examples, missing values are
    absent features. Questions to `rank` are made of several rows each, and must be answered as `serving_default` of
    the same version answers their candidates one by one, in the order of the scores. Warm-up requests are replayed.

    Args:
        version_dir: The version's directory.
        rows: Raw columns, each `[n]`: numbers with NaN where missing, strings (as `str` or `bytes`) with `""`. Columns
            that the model does not read are left aside; without any, only `serve_ids` is asked.
        expected: Probabilities of the same rows, `[n]` or `[n, 1]`.
        tolerance: Largest absolute difference allowed. Defaults to 1e-5.
        ids: The same rows encoded: `dense`, `sparse` and, where the model takes them, `weights`. Without them
            `serve_ids` is not asked.
        batch_size: Rows per question. Where the model computes in bfloat16, the last bits of an answer may depend on
            it: give the one that `expected` was computed with. Defaults to 2048.
        timeout_seconds: Longest time the other process may take. Defaults to 1800.

    Returns:
        The report.

    Raises:
        VerifyError: an operation is not in stock TensorFlow, the version cannot be loaded, an input it needs is not
            in `rows`, a warm-up request cannot be answered, or an answer is off by more than `tolerance`; the message
            names the worst row.
        DataError: there is no SavedModel in `version_dir`.
        ValueError: `expected` and the columns have different lengths, or there are no rows.
    """
    return verified_answers(version_dir, rows, expected, tolerance, ids or {}, batch_size, timeout_seconds)[0]


def verified_answers(
    version_dir: Path,
    rows: Mapping[str, Array],
    expected: Array,
    tolerance: float,
    ids: Mapping[str, Array],
    batch_size: int,
    timeout_seconds: float = 1800,
) -> tuple[VerifyReport, dict[str, Array]]:
    """Return what `verify` does, and the answers by signature, each `[n, 1]`."""
    ops = refuse_foreign_ops(version_dir)
    wanted = np.asarray(expected, np.float32).reshape(-1)
    _check_lengths(rows, wanted.size, "rows")
    _check_lengths(ids, wanted.size, "ids")
    found = _asked(version_dir, rows, ids, batch_size, timeout_seconds)
    seconds: dict[str, float] = json.loads(str(found.pop("seconds")))
    replayed = int(found.pop("warmup_requests"))
    # What `rank` must answer is what `serving_default` does: its questions are made of several rows each.
    differences = {
        name: _compare(
            version_dir, name, answer, found.get(EXPECTED + name, wanted), tolerance, rows if name != IDS else ids
        )
        for name, answer in found.items()
        if not name.startswith(EXPECTED)
    }
    report = VerifyReport(
        rows=wanted.size,
        differences=differences,
        max_difference=max(differences.values()),
        seconds_load=seconds.pop("load"),
        seconds_answer=seconds,
        warmup_requests=replayed,
        ops=ops,
    )
    return report, found


def raw_answers(
    version_dir: Path, rows: Mapping[str, Array], batch_size: int = 2048, timeout_seconds: float = 1800
) -> Array:
    """Return what `serving_default` of any version answers, `[n]`, asked in a fresh process.

    Args:
        version_dir: The version's directory.
        rows: Raw columns, as for `verify`.
        batch_size: Rows per question. Defaults to 2048.
        timeout_seconds: Longest time the other process may take. Defaults to 1800.

    Raises:
        VerifyError: the version cannot be loaded, or an input it needs is not in `rows`.
    """
    found = _asked(version_dir, rows, {}, batch_size, timeout_seconds, "--raw_only")
    return found[RAW][:, 0]


def _asked(
    version_dir: Path,
    rows: Mapping[str, Array],
    ids: Mapping[str, Array],
    batch_size: int,
    timeout_seconds: float,
    *options: str,
) -> dict[str, Array]:
    """Return what the other process wrote."""
    with tempfile.TemporaryDirectory(prefix="tfdlrm-verify-") as folder:
        questions, answers = Path(folder) / "questions.npz", Path(folder) / "answers.npz"
        _write_questions(questions, rows, ids)
        arguments = [str(version_dir), str(questions), str(answers), "--batch_size", str(batch_size), *options]
        _run(arguments, timeout_seconds)
        with np.load(answers, allow_pickle=False) as stored:
            return dict(stored)


def _check_lengths(columns: Mapping[str, Array], rows: int, argument: str) -> None:
    if not rows:
        raise ValueError("`expected` must hold at least one row. Received: none.")
    for name, values in columns.items():
        if len(values) != rows:
            raise ValueError(f"`{argument}` must have {rows} values a column. Received: {len(values)} in `{name}`.")


def _compare(
    directory: Path, signature: str, answer: Array, expected: Array, tolerance: float, inputs: Mapping[str, Array]
) -> float:
    """Return the largest difference; raise if it, or an answer that is no number, is too much."""
    if answer.shape != (expected.size, 1) or answer.dtype != np.float32:
        raise VerifyError(
            f"{directory}: what `{signature}` answers must be float32 [{expected.size}, 1]. "
            f"Received: {answer.dtype} {list(answer.shape)}."
        )
    differences = np.abs(answer[:, 0].astype(np.float64) - expected)
    differences[np.isnan(differences)] = np.inf
    worst = int(np.argmax(differences))
    if differences[worst] > tolerance:
        row = {name: np.asarray(values)[worst : worst + 1].tolist()[0] for name, values in inputs.items()}
        raise VerifyError(
            f"{directory}: `{signature}` must answer within {tolerance:g} of the model. Received for row {worst}, the "
            f"worst of {int((differences > tolerance).sum())}: {answer[worst, 0]!s}, expected {expected[worst]!s}; "
            f"the row: {row}"
        )
    return float(differences[worst])


def _run(arguments: Sequence[str], timeout_seconds: float) -> None:
    """Run this module as a program of its own, and raise what it ended with."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A GPU's memory belongs to the process that trains; the other one answers on the CPU.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", _WITHOUT_KERAS, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise VerifyError(
            f"{arguments[0]}: must be loaded and answered in {timeout_seconds:g} seconds. Received: no end."
        ) from None
    if done.returncode == 2:
        raise VerifyError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise VerifyError(f"{arguments[0]}: the process that loads it ended with {done.returncode}:\n{done.stderr}")


def _write_questions(path: Path, rows: Mapping[str, Array], ids: Mapping[str, Array]) -> None:
    """Write columns as numbers only: NumPy would keep strings of any length as pickles, or cut their NUL bytes."""
    arrays: dict[str, Array] = {f"ids/{name}": values for name, values in ids.items()}
    names: dict[str, list[str]] = {"numbers": [], "strings": []}
    for name, values in rows.items():
        if values.dtype.kind in "fiub":
            arrays[f"number/{len(names['numbers'])}"] = values.astype(np.float32)
            names["numbers"].append(name)
            continue
        texts = [value.encode() if isinstance(value, str) else bytes(value) for value in values.tolist()]
        arrays[f"bytes/{len(names['strings'])}"] = np.frombuffer(b"".join(texts), np.uint8)
        arrays[f"lengths/{len(names['strings'])}"] = np.array([len(text) for text in texts], np.int64)
        names["strings"].append(name)
    with path.open("wb") as file:
        np.savez(file, names=np.array(json.dumps(names)), **arrays)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a version, answer a file of questions that `verify` wrote, and write the answers."""
    parser = argparse.ArgumentParser(prog="python -m tfdlrm.export.verify", description=main.__doc__)
    parser.add_argument("version_dir", type=Path, help="directory of the exported version")
    parser.add_argument("questions", type=Path, help="columns to answer, .npz")
    parser.add_argument("answers", type=Path, help="where the probabilities go, .npz")
    parser.add_argument("--batch_size", type=int, default=2048, help="rows per question (default: %(default)s)")
    parser.add_argument("--raw_only", action="store_true", help="ask serving_default, and nothing else")
    given = parser.parse_args(arguments)
    tf.get_logger().setLevel("ERROR")  # the loader tells that it is an old one
    try:
        load_and_answer(given.version_dir, given.questions, given.answers, given.batch_size, given.raw_only)
    except VerifyError as error:
        print(error, file=sys.stderr)
        return 2
    except (tf.errors.OpError, OSError) as error:
        print(f"{given.version_dir}: cannot be loaded and answered: {first_reason(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
