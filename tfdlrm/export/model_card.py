"""The model card beside an exported model: what it was made of, how good it is, what to send it."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

from tfdlrm import __version__
from tfdlrm.spec.config import RunConfig, TableForm
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen

CARD_TEXT, CARD_JSON, CALIBRATION_PLOT = "MODEL_CARD.md", "model_card.json", "calibration.png"

_METRICS = {
    "auc": "AUC",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "calibration": "calibration (mean predicted over mean observed)",
    "accuracy": "accuracy",
    "base_rate": "base rate",
}


class Evaluation(Frozen):
    """Metrics of the exported weights.

    Attributes:
        split: Rows that judged.
        rows: Their number.
        metrics: By name.
        intervals: 95% intervals of some of them, by name.
        others: AUC and log loss of other scores of the same rows, by name.
    """

    split: str
    rows: int
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    others: dict[str, dict[str, float | None]]


class AsServed(Frozen):
    """The model with its tables in the form in which they are served.

    Attributes:
        split: Rows that judged.
        rows: Their number.
        bytes: Of the tables, stored.
        ratio: Of these bytes to those of float32.
        metrics: By name; `auc_loss` is what the form costs.
    """

    split: str
    rows: int
    bytes: int
    ratio: float
    metrics: dict[str, float | None]


class ModelCard(Frozen):
    """`assets.extra/model_card.json`.

    Attributes:
        format: Version of this file's form.
        tfdlrm: Version of this package.
        tensorflow: Version of TensorFlow.
        model_name: Name it is served by.
        weights: Which weights: `"best"` on validation, or `"last"`.
        step: Training step of them.
        manifest_sha256: Checksum of the prepared data's manifest, which has those of all rows.
        rows: Rows of each split, and how many of them have label 1.
        evaluation: How good it is; `None` where these weights were not evaluated.
        tables: How embedding tables are stored when served. Where it is not float32, `evaluation` and the calibration
            plot are those of the tables in float32.
        as_served: How good the model is with such tables; `None` for float32.
        spec: Features and tables.
        table_bytes: Bytes of each table as it is stored in training.
        rank_candidates: Raw columns that differ by candidate in `rank`.
        request: A body for `serving_default`, of a real row.
        config: Configuration of the run.
    """

    format: Literal[1] = 1
    tfdlrm: str = __version__
    tensorflow: str = tf.__version__
    model_name: str
    weights: str
    step: int
    manifest_sha256: str
    rows: dict[str, dict[str, int]]
    evaluation: Evaluation | None
    tables: TableForm = "float32"
    as_served: AsServed | None = None
    spec: FeatureSpec
    table_bytes: dict[str, int]
    rank_candidates: tuple[str, ...]
    request: str
    config: RunConfig

    def markdown(self, config_toml: str) -> str:
        """Return the card as Markdown.

        Args:
            config_toml: The configuration as it shall be shown.
        """
        model = self.config.model.name
        parts = [
            f"# {self.model_name}",
            f"Click probabilities by `{model}`, {self.weights} weights of step {self.step:,}; tfdlrm {self.tfdlrm}, "
            f"TensorFlow {self.tensorflow}.",
            "## Metrics",
            self._metrics(),
            "## Data",
            _table(
                ["split", "rows", "label 1"],
                [[name, f"{of['rows']:,}", f"{of['positives']:,}"] for name, of in self.rows.items()],
            ),
            f"SHA-256 of the manifest of the prepared data: `{self.manifest_sha256}`.",
            "## Input",
            'Missing numbers are `NaN`, missing strings `""`. A request for one row:',
            f"```json\n{self.request}\n```",
            _table(
                ["feature", "kind", "table", "ids in a bag"],
                [[f.name, f.transform, "", ""] for f in self.spec.dense]
                + [[f.name, "category", f.table, str(f.hotness)] for f in self.spec.sparse],
            ),
            "## Tables",
            _table(
                ["table", "rows", "width", "bytes" if self.as_served is None else "bytes in training"],
                [
                    [t.name, f"{t.vocabulary_size:,}", str(t.embedding_dim), f"{self.table_bytes[t.name]:,}"]
                    for t in self.spec.tables
                ]
                + [["all", f"{self.spec.table_rows:,}", "", f"{sum(self.table_bytes.values()):,}"]],
            ),
            "## Serving",
            self._serving(),
            "## Configuration",
            f"```toml\n{config_toml.strip()}\n```",
        ]
        return "\n\n".join(parts) + "\n"

    def _metrics(self) -> str:
        """Return what is known of the model as it is served, and of float32 tables where that is another."""
        served = self.as_served
        if served is None:
            return self._evaluated()
        labels = {**_METRICS, "auc_loss": "AUC lost to the form"}
        return (
            f"As served, with tables in {self.tables}: {served.bytes:,} bytes, {served.ratio:.4f} of those of float32. "
            f"On {served.rows:,} {served.split} rows:\n\n"
            + _table(["metric", "value"], [[labels[key], _number(value)] for key, value in served.metrics.items()])
            + f"\n\nWhat follows is of tables in float32, not of what is served.\n\n{self._evaluated()}"
        )

    def _evaluated(self) -> str:
        judged = self.evaluation
        if judged is None:
            return "Not evaluated: the stage `evaluate` has not judged these weights."
        rows = []
        for key, label in _METRICS.items():
            interval = judged.intervals.get(key)
            between = f"{interval[0]:.6f} to {interval[1]:.6f}" if interval else ""
            rows.append([label, _number(judged.metrics[key]), between])
        for name, values in judged.others.items():
            rows.append([f"AUC, {name}", _number(values["auc"]), ""])
            rows.append([f"log loss, {name}", _number(values["log_loss"]), ""])
        table = _table(["metric", "value", "95% interval"], rows)
        plot = f"![Mean label over mean prediction, in bins of equal size]({CALIBRATION_PLOT})"
        return f"On {judged.rows:,} {judged.split} rows:\n\n{table}\n\n{plot}"

    def _serving(self) -> str:
        ranks = f", `rank` (candidates differ by {_listed(self.rank_candidates)})" if self.rank_candidates else ""
        return (
            f"Signatures: `serving_default`, `serve_ids`, `tf_examples`, `classify`, `regress`{ranks}. "
            "With the folder of all versions as DIRECTORY:\n\n"
            f"```bash\npython -m tfdlrm.serving --model_name {self.model_name} --model_base_path DIRECTORY "
            "--rest_api_port 8501\n"
            f"curl -d @request.json http://localhost:8501/v1/models/{self.model_name}:predict\n```"
        )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6f}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
