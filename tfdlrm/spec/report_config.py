"""`[report]`: what the page of a run shows, and which logs are written beside it."""

from __future__ import annotations

from pydantic import Field

from tfdlrm.spec.frozen import Frozen


class ReportConfig(Frozen):
    """What the page of a run shows, and which logs are written beside it. All of it may change between calls.

    Attributes:
        compare: Work dir of another run to compare with. `None` or an empty text: with none.
        importance_rows: Most held-out rows that are scored for the importance of features; 0 leaves importance and the
            usage of tables out. What `tfdlrm.pipelines.explain` has found about the same weights is shown instead.
        importance_repeats: How often each feature is permuted for it.
        usage_rows: About how many training rows are read for the usage of tables.
        slice_rows: About how many held-out rows are read for the metrics of slices; 0 leaves them out.
        tensorboard: Whether training writes scalars and settings for TensorBoard to `logs/tensorboard`.
        mlperf: Whether training writes MLPerf's events to `logs/mlperf.log`; needs the package mlperf-logging.
    """

    compare: str | None = None
    importance_rows: int = Field(default=2_000, ge=0)
    importance_repeats: int = Field(default=1, ge=1)
    usage_rows: int = Field(default=1 << 20, ge=1)
    slice_rows: int = Field(default=500_000, ge=0)
    tensorboard: bool = True
    mlperf: bool = False
