import numpy as np
import pytest

from tfdlrm.data.generators.stack_distances import StackDistances, is_per_table, table_file
from tfdlrm.spec.errors import DataError

SHIPPED = "1, 2, 3, 4, 5, 6\n0, 1, 3, 4, 5\n0.55, 0.64, 0.82, 0.91, 1.0\n"


def test_reads_and_writes_the_three_lines(tmp_path):
    file = tmp_path / "dist_emb_0.log"
    file.write_text(SHIPPED)
    distances = StackDistances.read(file)
    assert distances.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert distances.values.tolist() == [0, 1, 3, 4, 5]
    assert distances.cumulative.tolist() == [0.55, 0.64, 0.82, 0.91, 1.0]
    distances.write(tmp_path / "again.log")
    assert (tmp_path / "again.log").read_text() == SHIPPED


def test_no_digit_of_a_share_is_lost(tmp_path):
    random = np.random.default_rng(1)
    counts = random.integers(1, 1000, 500)
    distances = StackDistances.from_counts(random.permutation(10**6)[:600], counts)
    distances.write(tmp_path / "d.log")
    again = StackDistances.read(tmp_path / "d.log")
    for name in ("ids", "values", "cumulative"):
        np.testing.assert_array_equal(getattr(again, name), getattr(distances, name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n0\n", "must have three lines: ids, distances, shares. Received: 2"),
        ("1, x\n0\n1.0\n", ":1: must hold whole numbers"),
        ("1, 2\n0.5\n1.0\n", ":2: must hold whole numbers"),
        ("1, 2\n0\n\n", ":3: must hold numbers"),
        ("1, 99999999999999999999\n0\n1\n", ":1: must hold whole numbers"),
        ("1, 1\n0\n1.0\n", "`ids` must be different"),
        ("1, -2\n0\n1.0\n", "`ids` must be different whole numbers of at least 0"),
        ("1, 2\n1, 2\n0.5, 1.0\n", "`values` must be distances that ascend from 0"),
        ("1, 2\n0, 2, 1\n0.5, 0.6, 1.0\n", "`values` must be distances that ascend from 0"),
        ("1, 2\n0, 3\n0.5, 1.0\n", "`values` must be at most the 2 ids. Received: 3"),
        ("1, 2\n0, 1\n1.0\n", "`cumulative` must have 2 shares, as `values`. Received: 1"),
        ("1, 2\n0, 1\n0.7, 0.5\n", "`cumulative` must be shares above 0 that do not fall"),
        ("1, 2\n0, 1\n0.0, 1.0\n", "`cumulative` must be shares above 0"),
        ("1, 2\n0, 1\nnan, 1.0\n", "`cumulative` must be shares above 0"),
        ("1, 2\n0, 1\n0.5, 0.9\n", "`cumulative` must end at 1. Received: 0.9"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    file = tmp_path / "d.log"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        StackDistances.read(file)
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.log: cannot be read: No such file"):
        StackDistances.read(tmp_path / "none.log")
    (tmp_path / "bytes.log").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="bytes.log: cannot be read: not UTF-8"):
        StackDistances.read(tmp_path / "bytes.log")


def test_every_letter_in_the_name_becomes_the_table():
    assert table_file("jobs/j_dist_j.log", 12).as_posix() == "jobs/12_dist_12.log"
    assert is_per_table("dist_j.log")
    assert not is_per_table("jobs/dist.log")


def test_shares_after_warm_up():
    distances = StackDistances(np.arange(6), np.array([0, 1, 3]), np.array([0.5, 0.75, 0.995]))
    np.testing.assert_allclose(distances.after_warm_up(), np.array([0.5, 0.75, 0.995]) / 0.995)
    np.testing.assert_allclose(distances.after_warm_up(padding=True), [0, 0.25 / 0.495, 1])
    only_new = StackDistances(np.arange(6), np.array([0]), np.array([1.0]))
    assert only_new.after_warm_up(padding=True).tolist() == [1.0]
