from __future__ import annotations

import numpy as np
import pytest

from tests.data.packed_samples import as_arrays
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.generators.laws import IdLaw, RowLaw
from tfdlrm.data.generators.random_rows import RandomRows
from tfdlrm.data.generators.write import write_prepared
from tfdlrm.data.read_counts import read_counts
from tfdlrm.spec.features import FeatureSpec, SparseFeature, TableConfig
from tfdlrm.spec.table_signal import row_steps

SPEC = FeatureSpec(
    sparse=[
        SparseFeature(name="a", table="both", hotness=3),
        SparseFeature(name="b", table="both"),
        SparseFeature(name="c", table="one"),
    ],
    tables=[
        TableConfig(name="both", vocabulary_size=700, embedding_dim=4),
        TableConfig(name="one", vocabulary_size=1, embedding_dim=4),
    ],
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    law, ids = RowLaw(bags="variable"), IdLaw(kind="powerlaw")
    splits = {name: RandomRows(SPEC, ids, law, 3, name).batches(rows) for name, rows in (("train", 3000), ("test", 99))}
    return folder, write_prepared(folder, SPEC, splits, {})


def test_counts_of_all_training_rows(data):
    folder, manifest = data
    counts = read_counts(folder, manifest)
    (rows,) = map(as_arrays, packed_dataset(folder, "train", 3000))
    ids = rows["sparse"][:, :4]
    by_id = np.bincount(ids[ids >= 0], minlength=700)
    edges = row_steps(0, 700)
    assert counts["both"].edges.tolist() == edges.tolist()
    assert counts["both"].reads.tolist() == [by_id[a:b].sum() for a, b in zip(edges, edges[1:], strict=False)]
    assert (counts["one"].edges.tolist(), counts["one"].reads.tolist()) == ([0, 1], [3000])
    assert counts["both"].reads.sum() < 12_000  # padding is no read


def test_a_sample_is_the_same_each_time(data):
    folder, manifest = data
    one, two = (read_counts(folder, manifest, rows=10) for _ in range(2))
    assert one["both"].reads.tolist() == two["both"].reads.tolist()
    assert 0 < one["one"].reads.sum() <= 3000
