"""Grouping of operations by the names that Keras, the gradient tape and the optimizer give them."""

import io

import pytest
from rich.console import Console
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfdlrm.pipelines.benchmarks.profile import OpTime, draw_split, read_trace, split_by_group, split_table

LOOP = "while/body/_1"


def split(*ops):
    return split_by_group([OpTime(*op) for op in ops], "dlrm", "DLRMOptimizer", steps=2)


@pytest.mark.parametrize(
    ("name", "kind", "group", "phase"),
    [
        (f"{LOOP}/while/dlrm/embedding/Gather_3", "ResourceGather", "embedding lookup", "forward"),
        (f"{LOOP}/gradient_tape/while/dlrm/embedding/Slice_1", "Slice", "embedding lookup", "backward"),
        (f"{LOOP}/while/dlrm/bottom/dense_0/Relu", "_FusedMatMul", "bottom MLP", "forward"),
        (f"{LOOP}/gradient_tape/while/dlrm/top/dense_1/MatMul/MatMul_1", "MatMul", "top MLP", "backward"),
        (f"{LOOP}/while/dlrm/interaction/MatMul", "BatchMatMulV2", "interaction", "forward"),
        (f"{LOOP}/while/DLRMOptimizer/gradients/interaction/MatMul", "MatMul", "interaction", "backward"),
        (f"{LOOP}/while/dlrm/concat_1", "ConcatV2", "interaction", "forward"),
        (f"{LOOP}/while/dlrm/linear/Gather_3", "ResourceGather", "embedding lookup", "forward"),
        (f"{LOOP}/while/dlrm/crosses/crosses/Gather", "ResourceGather", "embedding lookup", "forward"),
        (f"{LOOP}/while/dlrm/cross/MatMul_2", "MatMul", "interaction", "forward"),
        (f"{LOOP}/gradient_tape/while/dlrm/cross_logit/MatMul", "MatMul", "interaction", "backward"),
        (f"{LOOP}/while/dlrm/cin/Mul", "Mul", "interaction", "forward"),
        (f"{LOOP}/while/dlrm/linear_terms/Sum", "Sum", "interaction", "forward"),
        ("dlrm/top/dense_0/MatMul", "MatMul", "top MLP", "forward"),
        (f"{LOOP}/while/DLRMOptimizer/DLRMOptimizer/update_2/Unique", "Unique", "sparse update", "backward"),
        (
            f"{LOOP}/while/DLRMOptimizer/DLRMOptimizer/update_6/Apply",
            "ResourceApplyAdagradV2",
            "dense update",
            "backward",
        ),
        (f"{LOOP}/while/DLRMOptimizer/DLRMOptimizer/AssignAddVariableOp", "AssignAdd", "dense update", "backward"),
        ("IteratorGetNext", "IteratorGetNext", "input", "forward"),
        (f"{LOOP}/while/binary_crossentropy/Mean", "Mean", "other", "forward"),
    ],
)
def test_each_operation_has_its_group(name, kind, group, phase):
    result = split((name, kind, 0.010))
    assert result[group][phase] == pytest.approx(5.0)  # 10 ms over two steps
    assert sum(sum(phases.values()) for phases in result.values()) == pytest.approx(5.0)


def test_all_of_a_sparse_update_goes_with_its_table():
    scope = "while/DLRMOptimizer/DLRMOptimizer/update_2"
    result = split((f"{scope}/mul", "Mul", 0.002), (f"{scope}/ResourceScatterSub", "ResourceScatterSub", 0.004))
    assert result["sparse update"]["backward"] == pytest.approx(3.0)
    assert split((f"{scope}/mul", "Mul", 0.002))["dense update"]["backward"] == pytest.approx(1.0)


def space(events):
    result = xplane_pb2.XSpace()
    plane = result.planes.add(name="/host:CPU")
    for number, (name, picoseconds, line) in enumerate(events):
        plane.event_metadata[number].id = number
        plane.event_metadata[number].name = name
        while len(plane.lines) <= line:
            plane.lines.add()
        plane.lines[line].events.add(metadata_id=number, duration_ps=picoseconds)
    return result.SerializeToString()


def test_trace_keeps_operations_and_sums_threads():
    ops = read_trace(
        space(
            [
                ("dlrm/top/MatMul:MatMul", 3_000_000_000, 0),
                ("dlrm/top/MatMul:MatMul", 1_000_000_000, 1),
                ("while:While", 9_000_000_000, 0),
                ("ExecutorState::Process", 9_000_000_000, 0),
                ("EagerLocalExecute: AssignVariableOp", 9_000_000_000, 0),
                ("ParallelFor", 9_000_000_000, 0),
                ("IteratorGetNextOp::DoCompute", 2_000_000_000, 1),
            ]
        )
    )
    assert {(op.name, op.kind): round(op.seconds, 9) for op in ops} == {
        ("dlrm/top/MatMul", "MatMul"): 0.004,
        ("IteratorGetNext", "IteratorGetNext"): 0.002,
    }


def test_table_and_picture(tmp_path):
    result = split(("dlrm/top/MatMul", "MatMul", 0.006), ("gradient_tape/dlrm/top/MatMul", "MatMul", 0.012))
    text = io.StringIO()
    Console(file=text, width=80).print(split_table(result))
    line = next(line for line in text.getvalue().splitlines() if "top MLP" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["top MLP", "3.00", "6.00", "100.0%"]
    draw_split(result, tmp_path / "split.png", "title")
    assert (tmp_path / "split.png").read_bytes().startswith(b"\x89PNG")
