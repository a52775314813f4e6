"""Rows that were left out by label: from the rows that are left back to all rows as they were.

Where a share r of the rows with label 0 is left out, a model learns odds that are 1 / (1 - r) times too high. Its
log-odds are set right by adding ln(1 - r), which is He et al. 2014, section 6.3: q = p / (p + (1 - p) / (1 - r)).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special


def shifted(probabilities: npt.NDArray[np.floating], logit_shift: float) -> npt.NDArray[np.floating]:
    """Return probabilities with `logit_shift` added to their log-odds, computed in float64; 0 and 1 stay.

    Args:
        probabilities: Between 0 and 1, any shape.
        logit_shift: ln(1 - r) to correct, -ln(1 - r) to undo it.

    Returns:
        The same shape and type.

    Example:
        >>> round(float(shifted(np.array([0.5]), float(np.log(0.2)))[0]), 4)
        0.1667
    """
    if not logit_shift:
        return probabilities
    logits = special.logit(np.asarray(probabilities, np.float64))
    return np.asarray(special.expit(logits + logit_shift), probabilities.dtype)


def weights_of_all_rows(
    labels: npt.NDArray[np.floating], sample_weight: npt.NDArray[np.floating] | None, logit_shift: float
) -> npt.NDArray[np.floating] | None:
    """Return weights under which the rows that are left stand for all: those of label 0 count 1 / (1 - r) times.

    Args:
        labels: 0 or 1, `[n]`.
        sample_weight: Weights that rows have already, `[n]`, or `None`.
        logit_shift: ln(1 - r); 0 where no row was left out.

    Returns:
        Float32 `[n]`; `sample_weight` itself where no row was left out.

    Example:
        >>> weights_of_all_rows(np.array([1.0, 0.0]), None, float(np.log(0.25))).tolist()
        [1.0, 4.0]
    """
    if not logit_shift:
        return sample_weight
    weight = np.where(labels == 1, 1.0, np.exp(-logit_shift)).astype(np.float32)
    return weight if sample_weight is None else weight * sample_weight
