"""The process that loads an exported version and answers a file of questions: nothing but TensorFlow, no model code."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.export.errors import VerifyError
from tfdlrm.export.row_examples import row_examples
from tfdlrm.export.warmup_replay import read_warmup, replay

Array = npt.NDArray[Any]

# The names of `tfdlrm.export.signatures` and its parts, which this module must not import.
RAW, EXAMPLES, IDS = "serving_default", "tf_examples", "serve_ids"
CLASSIFY, REGRESS, RANK, MASK = "classify", "regress", "rank", "mask"
EXPECTED = "expected "
"""Before the name of a signature: what it must have answered."""
_CANDIDATES = 7  # of each question; no power of two, so that usual numbers of rows leave places to mask


class Loaded:
    """A version loaded through TensorFlow's version 1 loader."""

    def __init__(self, session: Any, directory: Path) -> None:
        self._session = session
        self.directory = directory
        self.definitions = tf.compat.v1.saved_model.load(session, ["serve"], str(directory)).signature_def

    def ask(self, signature: str, inputs: Mapping[str, Array], batch_size: int, *outputs: str) -> list[Array]:
        """Return outputs of a signature for all rows, asked `batch_size` at a time."""
        definition = self.definitions[signature]
        absent = sorted(set(definition.inputs) - set(inputs))
        if absent:
            raise VerifyError(
                f"{self.directory}: `rows` or `ids` must hold the inputs of `{signature}`. Received none for {absent}."
            )
        feeds = {info.name: inputs[name] for name, info in definition.inputs.items()}
        rows = len(next(iter(feeds.values())))
        wanted = [definition.outputs[output].name for output in outputs]
        parts = [
            self._session.run(wanted, {name: values[start : start + batch_size] for name, values in feeds.items()})
            for start in range(0, rows, batch_size)
        ]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def probability(self, signature: str, inputs: Mapping[str, Array], batch_size: int) -> Array:
        """Return the output `probability` of all rows, `[n, 1]`."""
        return self.ask(signature, inputs, batch_size, "probability")[0]


def load_and_answer(directory: Path, questions: Path, answers: Path, batch_size: int, raw_only: bool = False) -> None:
    """Answer questions by every signature that they fit, and replay the version's warm-up requests.

    Args:
        directory: The version.
        questions: Raw columns and ids, as `tfdlrm.export.verify` wrote them.
        answers: Where probabilities `[n, 1]` go, by signature, `seconds`, as JSON, and the number `warmup_requests`.
        batch_size: Rows per question.
        raw_only: Whether to ask `serving_default` and nothing else. Defaults to `False`.

    Raises:
        VerifyError: an input is not there, no signature fits, an answer is not of the form it must have, or a warm-up
            request cannot be answered.
    """
    rows, ids = _read_questions(questions)
    requests = [] if raw_only else read_warmup(directory)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        begun = time.perf_counter()
        loaded = Loaded(session, directory)
        seconds = {"load": time.perf_counter() - begun}
        found: dict[str, Array] = {}
        for name, answer in _questions(loaded, rows, ids, batch_size).items():
            if raw_only and name != RAW:
                continue
            begun = time.perf_counter()
            found |= answer()
            seconds[name] = time.perf_counter() - begun
        for number, request in enumerate(requests):
            replay(session, loaded.definitions, request, f"{directory}: warm-up request {number}")
    count = np.array(len(requests))
    with answers.open("wb") as file:
        np.savez(file, seconds=np.array(json.dumps(seconds)), warmup_requests=count, **found)  # type: ignore[arg-type]


def _questions(
    loaded: Loaded, rows: Mapping[str, Array], ids: Mapping[str, Array], batch_size: int
) -> dict[str, Callable[[], dict[str, Array]]]:
    """Return what to call for the answers of each signature."""
    there = loaded.definitions
    asked: dict[str, Callable[[], dict[str, Array]]] = {}
    if RAW in there and rows:
        columns = {name: rows[name] for name in there[RAW].inputs if name in rows}
        examples = np.array([*row_examples(columns), None], object)[:-1]
        asked[RAW] = lambda: {RAW: loaded.probability(RAW, columns, batch_size)}
        asked[EXAMPLES] = lambda: {EXAMPLES: loaded.probability(EXAMPLES, {"examples": examples}, batch_size)}
        # Versions that are in place may be older than these.
        if CLASSIFY in there:
            asked[CLASSIFY] = lambda: {CLASSIFY: _classified(loaded, examples, batch_size)}
        if REGRESS in there:
            asked[REGRESS] = lambda: {REGRESS: _regressed(loaded, examples, batch_size)}
        if RANK in there:
            asked[RANK] = lambda: _ranked(loaded, columns, batch_size)
    if IDS in there and ids:
        asked[IDS] = lambda: {IDS: loaded.probability(IDS, ids, batch_size)}
    if not asked:
        raise VerifyError(f"{loaded.directory}: `rows` or `ids` must fit a signature. Received: {sorted(there)}.")
    return asked


def _classified(loaded: Loaded, examples: Array, batch_size: int) -> Array:
    """Return the scores of class 1, `[n, 1]`."""
    classes, scores = loaded.ask(CLASSIFY, {"inputs": examples}, batch_size, "classes", "scores")
    if scores.shape != (len(examples), 2) or classes.tolist() != [[b"0", b"1"]] * len(examples):
        raise VerifyError(
            f"{loaded.directory}: `{CLASSIFY}` must answer the classes 0 and 1 and their scores. "
            f"Received: classes {classes[:1].tolist()}, scores {list(scores.shape)}."
        )
    if not np.allclose(scores.sum(axis=1), 1.0, atol=1e-6):
        raise VerifyError(f"{loaded.directory}: the scores of `{CLASSIFY}` must add up to 1.")
    return scores[:, 1:]


def _regressed(loaded: Loaded, examples: Array, batch_size: int) -> Array:
    """Return the numbers, `[n, 1]`."""
    return loaded.ask(REGRESS, {"inputs": examples}, batch_size, "outputs")[0][:, np.newaxis]


def _ranked(loaded: Loaded, rows: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
    """Return the scores of candidates, and what `serving_default` answers on the same values row by row.

    A question is made of some rows: all their candidates' columns, and the other columns of the first. Rows never fill
    the last question, so that there always is a place without a candidate, as its mask says.
    """
    inputs = loaded.definitions[RANK].inputs
    own = {name for name, info in inputs.items() if len(info.tensor_shape.dim) == 2}
    count = len(next(iter(rows.values())))
    each = min(_CANDIDATES, count)
    places = np.arange((count // each + 1) * each).reshape(-1, each)
    mask, places = places < count, places % count
    asked = {name: values[places if name in own else places[:, 0]] for name, values in rows.items()} | {MASK: mask}
    # As many rows at a time in both: the last bits of bfloat16 may depend on it.
    questions = max(batch_size // each, 1)
    scores, order = loaded.ask(RANK, asked, questions, "scores", "order")
    one_by_one = {
        name: values[(places if name in own else np.repeat(places[:, :1], each, axis=1)).reshape(-1)]
        for name, values in rows.items()
    }
    expected = loaded.probability(RAW, one_by_one, questions * each)
    _check_order(loaded.directory, scores, order, mask)
    return {RANK: scores[mask][:, np.newaxis], EXPECTED + RANK: expected[mask.reshape(-1), 0]}


def _check_order(directory: Path, scores: Array, order: Array, mask: Array) -> None:
    """Raise unless places are in the order of their scores, equal ones as they came, those without a candidate last."""
    right = np.argsort(-np.where(mask, scores, -1.0), axis=1, kind="stable")
    if not np.array_equal(order, right) or scores[~mask].any():
        question = int(np.argmax((order != right).any(axis=1) | np.where(mask, 0, scores).any(axis=1)))
        raise VerifyError(
            f"{directory}: `{RANK}` must order candidates by score, and score nothing else. Received for question "
            f"{question}: scores {scores[question].tolist()}, order {order[question].tolist()}."
        )


def _read_questions(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return raw columns, strings as objects of `bytes`, and encoded ids."""
    with np.load(path, allow_pickle=False) as stored:
        names = json.loads(str(stored["names"]))
        rows = {name: stored[f"number/{index}"] for index, name in enumerate(names["numbers"])}
        for index, name in enumerate(names["strings"]):
            joined, ends = stored[f"bytes/{index}"].tobytes(), np.cumsum(stored[f"lengths/{index}"]).tolist()
            texts = [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            rows[name] = np.array([*texts, None], object)[:-1]  # never taken for fixed-width bytes
        return rows, {name[len("ids/") :]: stored[name] for name in stored.files if name.startswith("ids/")}
