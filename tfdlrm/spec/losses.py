"""Which loss training minimises: the keys that `[train]` takes for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen

LossName = Literal["bce", "wbce", "mse"]


class LossSettings(Frozen):
    """The loss, in the words of facebookresearch/dlrm; see `tfdlrm.training.losses`.

    Attributes:
        loss: `"bce"` (log loss), `"wbce"` (log loss, weighted by label) or `"mse"` (squared error of the probability).
        loss_weights: Weights of label 0 and of label 1; for `"wbce"`, which needs them.
        loss_threshold: Probabilities are drawn in to `[t, 1 - t]`, beyond which a row teaches nothing. 0 for off.
        label_smoothing: Share by which labels are drawn towards 0.5.
    """

    loss: LossName = "bce"
    loss_weights: tuple[float, float] | None = None
    loss_threshold: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fitting(self) -> LossSettings:
        if (self.loss_weights is not None) != (self.loss == "wbce"):
            raise SpecError(
                '`loss_weights` must be given exactly where `loss` is "wbce". '
                f"Received: {self.loss_weights} and {self.loss!r}."
            )
        if self.loss_weights is not None and min(self.loss_weights) <= 0:
            raise SpecError(f"`loss_weights` must both be above 0. Received: {list(self.loss_weights)}.")
        if self.loss_threshold >= 0.5:
            raise SpecError(
                "`loss_threshold` must be below 0.5, where [t, 1 - t] would be empty. "
                f"Received: {self.loss_threshold:g}."
            )
        return self
