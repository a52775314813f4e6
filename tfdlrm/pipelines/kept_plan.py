"""The plan that tables were fitted into their budget by, kept beside the checkpoints of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.spec.budget import BudgetPlan

PLAN = "plan.json"


def keep_plan(directory: Path, planned_for: Mapping[str, Any], plan: BudgetPlan) -> None:
    """Write a plan.

    Args:
        directory: Folder of checkpoints; made if it is missing.
        planned_for: What the plan depends on, as JSON values.
        plan: The plan.
    """
    write_atomic(directory / PLAN, json.dumps({"for": planned_for, "plan": plan.figures()}, indent=1))


def kept_plan(directory: Path, planned_for: Mapping[str, Any]) -> BudgetPlan | None:
    """Return the plan that was kept for equal settings and data; `None` where there is none that can be read."""
    try:
        content = json.loads((directory / PLAN).read_text(encoding="utf-8"))
        return BudgetPlan.model_validate(content["plan"]) if content["for"] == planned_for else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
