"""Which day is held out is told, and slips with the order of files are."""

from __future__ import annotations

import pytest

from tests.data.published_rules import write_rows
from tests.pipelines.small_runs import call, write_recipe
from tfdlrm.pipelines import criteo, prepare
from tfdlrm.pipelines.day_notes import day_notes
from tfdlrm.spec.raw import Split

FILES = Split(by="days", days=0)


@pytest.mark.parametrize(
    ("split", "raw", "starts"),
    [
        (FILES, [f"d/day_{n}.gz" for n in range(24)], ["held out: day_23.gz, the last of 24 files; its first half"]),
        (
            FILES,
            sorted(f"d/day_{n}.gz" for n in range(24)),
            ["held out: day_9.gz, the last of 24", "WARNING: the files"],
        ),
        (FILES, ["b", "a"], ["held out: a", "WARNING"]),
        (FILES, ["10²", "9²"], ["held out: 9²", "WARNING"]),
        (FILES, ["gs://x/day_9", "gs://x/day_10"], ["held out: day_10, the last of 2"]),
        (FILES, ["2024/part 7/1", "2024/part 10/0"], ["held out: 0,"]),
        (
            FILES.model_copy(update={"last_day": "test"}),
            ["1", "2"],
            ["held out: 2, the last of 2 files; all of it tests"],
        ),
        (Split(by="days", days=7), ["day_0", "day_1"], ["WARNING: 2 files are cut into 7 equal days"]),
        (Split(by="days", days=7), ["train.txt"], []),
        (FILES, ["day_0"], []),
        (Split(by="order"), ["b", "a"], []),
    ],
)
def test_lines(split, raw, starts):
    lines = day_notes(split, raw)
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * len(starts)


def test_the_order_of_numbers_is_named():
    (_, warning) = day_notes(FILES, ["day_0", "day_10", "day_9"])
    assert "which ends with day_10." in warning


def test_commands_tell(tmp_path):
    raw = write_rows(tmp_path, [40, 40, 40])
    said = "held out: day_2, the last of 3 files; its first half tests, its second validates\n"
    argv = ("run", "--recipe", "tfdlrm", "--dataset", "terabyte", "--out", tmp_path / "out")
    outcome = call(prepare.main, *argv, "--raw", *raw)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(said + f"{tmp_path / 'out'}: train 80, validation 20, test 20 rows")
    recipe = write_recipe(tmp_path, data={"split": {"by": "days", "days": 0}, "coding": {"min_count": 1}})
    for order, warned in ((raw, False), (raw[::-1], True)):
        work_dir = tmp_path / f"run {warned}"
        argv = ("--config", recipe, "--work-dir", work_dir, "--stages", "prepare", "--raw", *order)
        outcome = call(criteo.main, *argv)
        assert outcome.code == 0
        assert ("WARNING: the files are not in the order" in outcome.out) == warned
        assert f"prepare:   held out: {order[-1].name}, the last of 3 files" in outcome.out
