from tfdlrm.layers.stacking import plan_stacks
from tfdlrm.spec.criteo import KAGGLE, MLPERF_V2, MLPERF_V2_HOTNESS, criteo_spec


def test_every_table_lies_in_one_stack_and_every_column_is_read_once():
    for spec in (criteo_spec(KAGGLE, 16), criteo_spec(MLPERF_V2, 128, MLPERF_V2_HOTNESS)):
        plan = plan_stacks(spec)
        assert sorted(t.name for s in plan for t in s.tables) == sorted(t.name for t in spec.tables)
        assert sorted(c for s in plan for c in s.columns) == list(range(spec.n_ids))
        assert sum(s.rows - 1 for s in plan) == spec.table_rows


def test_kaggle_is_four_stacks_of_about_equal_lookups():
    plan = plan_stacks(criteo_spec(KAGGLE, 16))
    assert [len(s.columns) for s in plan] == [6, 7, 6, 7]


def test_stacks_stay_below_the_element_limit_unless_one_table_is_larger():
    limit = 2**31 - 1
    plan = plan_stacks(criteo_spec(MLPERF_V2, 128, MLPERF_V2_HOTNESS))
    for stack in plan:
        assert stack.rows * stack.form.width <= limit or len(stack.tables) == 1


def test_offsets_are_the_first_rows_of_the_tables():
    spec = criteo_spec([3] * 26, 2)
    for stack in plan_stacks(spec):
        assert stack.offsets("rows").tolist() == [3 * i for i in range(len(stack.columns))]
