from __future__ import annotations

from pathlib import Path

from tests.training.test_trainer import Rows, config, fresh
from tfdlrm.training.events import Event, told_to
from tfdlrm.training.trainer import train


def told(directory: Path, rows: Rows, validation: bool = True, **changes: object) -> list[tuple[str, int, int]]:
    """Train and return what was told: event, step, validations by then."""
    settings, found = config(**changes), []
    scored = (lambda: rows.batches(0, 0)) if validation else None
    train(
        fresh(settings),
        settings,
        rows,
        directory,
        scored,
        listener=lambda event, state: found.append((event.value, state.step, len(state.history))),
    )
    return found


def test_events_come_in_order(tmp_path: Path) -> None:
    found = told(tmp_path, Rows(100), epochs=2, eval_every_steps=3)  # 4 steps an epoch
    assert found == [
        ("run starts", 0, 0),
        ("epoch starts", 0, 0),
        *(("round ends", 3, 0), ("validation starts", 3, 0), ("validation ends", 3, 1)),
        *(("round ends", 4, 1), ("validation starts", 4, 1), ("validation ends", 4, 2)),
        ("epoch ends", 4, 2),
        ("epoch starts", 4, 2),
        *(("round ends", 6, 2), ("validation starts", 6, 2), ("validation ends", 6, 3)),
        *(("round ends", 8, 3), ("validation starts", 8, 3), ("validation ends", 8, 4)),
        ("epoch ends", 8, 4),
        ("run ends", 8, 4),
    ]
    # A run that has ended is told to have started and ended, and nothing else.
    again = told(tmp_path, Rows(100), epochs=2, eval_every_steps=3)
    assert again == [("run starts", 8, 4), ("run ends", 8, 4)]


def test_without_validation_there_are_rounds_alone(tmp_path: Path) -> None:
    found = told(tmp_path, Rows(100), validation=False, epochs=1)
    assert [name for name, *_ in found] == ["run starts", "epoch starts", "round ends", "epoch ends", "run ends"]


def test_several_are_told_the_same() -> None:
    found: list[tuple[int, Event]] = []
    listen = told_to([lambda event, state, number=number: found.append((number, event)) for number in range(2)])
    listen(Event.RUN_ENDS, None)
    assert found == [(0, Event.RUN_ENDS), (1, Event.RUN_ENDS)]
    told_to([])(Event.RUN_ENDS, None)
