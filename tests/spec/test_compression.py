import json

import pytest

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec, TableConfig

EVERYTHING = {
    "hash_rows": 50,
    "exact_rows": 10,
    "quotient_remainder": {"collisions": 5, "operation": "concat"},
    "dim": 4,
    "dtype": "bfloat16",
}


def table_of(**compression):
    return TableConfig(name="t", vocabulary_size=100, embedding_dim=8, compression=compression)


def test_sizes_of_all_parts():
    table = table_of(**EVERYTHING)
    assert [tuple(part) for part in table.stored] == [
        ("quotient", 10, 2, "bfloat16"),
        ("remainder", 5, 2, "bfloat16"),
        ("projection", 4, 8, "float32"),
    ]
    assert table.stored_bytes == (20 + 10) * 2 + 32 * 4


def test_a_compressed_spec_survives_json():
    spec = FeatureSpec(sparse=[{"name": "a", "table": "t", "learned_weights": True}], tables=[table_of(**EVERYTHING)])
    assert FeatureSpec.from_json(spec.model_dump_json()) == spec
    assert FeatureSpec(**json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    assert tuple(spec.stored("t")[-1]) == ("pooling_weight", 50, 1, "float32")
    with pytest.raises(SpecError, match="must be a table of the spec. Received: `q`"):
        spec.stored("q")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hash_rows": 100}, "`hash_rows` of table `t` must be below its 100 rows. Received: 100"),
        ({"hash_rows": 9, "exact_rows": 9}, "`exact_rows` of table `t` must be below `hash_rows`. Received: 9 and 9"),
        ({"exact_rows": 9}, "`exact_rows` of table `t` must be below `hash_rows`. Received: 9 and None"),
        ({"dim": 8}, "`dim` of table `t` must be below `embedding_dim`. Received: 8 and 8"),
        ({"quotient_remainder": {"collisions": 100}}, "`collisions` of table `t` must be below its 100 rows"),
        (
            {"hash_rows": 20, "quotient_remainder": {"collisions": 20}},
            "`collisions` of table `t` must be below its 20 rows. Received: 20",
        ),
        (
            {"dim": 3, "quotient_remainder": {"operation": "concat"}},
            '`operation` "concat" of table `t` must have an even width to cut in two. Received: 3',
        ),
        ({"quotient_remainder": {"operation": "max"}}, "mult"),
        ({"dtype": "int8"}, "float16"),
        ({"dims": 4}, "dims"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        table_of(**settings)
