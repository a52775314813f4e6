from __future__ import annotations

from typing import Any

import pytest

from tfdlrm.pipelines.stages.train import summary

RESULTS = {"rows": 4000, "steps": 40, "rows_per_second": None, "stopped_early": False, "epochs": 1}


@pytest.mark.parametrize(
    ("changes", "improving"),
    [
        ({"history": [{}, {}], "best_step": 40}, True),
        ({"history": [{}, {}], "best_step": 20}, False),
        ({"history": [{}], "best_step": 40}, False),  # of one validation, nothing is known
        ({"history": [], "best_step": None}, False),
    ],
)
def test_a_model_that_still_improves_is_told(changes: dict[str, Any], improving: bool) -> None:
    assert ("more `train.epochs` may help" in summary({**RESULTS, **changes})) is improving
