"""What the page says about features and tables: what `explain` found out, or a cheaper look of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.explain import explain
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.work_dir import json_text

EXPLANATION, IMPORTANCE = "explain.json", "importance.json"


def explanation(run: Run) -> dict[str, Any] | None:
    """Return figures about the exported weights as `explain` gives them; `None` where none are wanted or known.

    Those of the command `explain` come first. The look that is taken otherwise is kept for the next call.
    """
    asked = _figures(run.work_dir.report / EXPLANATION)
    step, config = run.chosen_step(), run.config.report
    if asked is not None and asked["step"] == step:
        return asked
    if not config.importance_rows:
        return None
    settings = [step, run.chosen_weights(), run.config.logit_shift, *config.model_dump(include=_SETTINGS).values()]
    file = run.work_dir.report / IMPORTANCE
    kept = _figures(file)
    if kept is not None and kept["settings"] == settings:
        return kept
    found = explain(run, config.importance_rows, config.importance_repeats, 0, config.usage_rows)
    text = json_text({"settings": settings, **found})
    write_atomic(file, text)
    figures: dict[str, Any] = json.loads(text)
    return figures


_SETTINGS = {"importance_rows", "importance_repeats", "usage_rows"}


def _figures(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures
