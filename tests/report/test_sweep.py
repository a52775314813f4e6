"""Pictures of sweeps: any mixture of values can be drawn."""

from __future__ import annotations

import pytest

from tfdlrm.report.sweep import parallel_coordinates, pareto

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "columns",
    [
        {"rate": [0.001, 0.1, 0.01], "name": ["dlrm", "dcn", None], "units": [[8, 4], [16, 4], [8, 4]]},
        {"one": [3, 3, 3], "flag": [True, False, True], "none": [None, None, None]},
        {},
    ],
)
def test_any_values_are_drawn(columns):
    assert parallel_coordinates(columns, "log loss", [0.5, 0.4, 0.45], less_is_better=True).startswith(PNG)


def test_one_trial_is_drawn():
    assert parallel_coordinates({"rate": [0.1]}, "AUC", [0.7], less_is_better=False).startswith(PNG)
    assert pareto([(100.0, 0.7)], [0], "bytes", logarithmic=True).startswith(PNG)
