"""Models of facebookresearch/dlrm and TorchRec answer here what they answered there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.models.test_golden import GOLDEN
from tfdlrm.export import torch_dlrm
from tfdlrm.export.torch_files import read_torch_file
from tfdlrm.spec.compression import Compression
from tfdlrm.spec.errors import ConfigError, DataError, SpecError
from tfdlrm.spec.features import FeatureSpec

FINAL = GOLDEN / "dot_sgd_final.pt"


def facebook(rows=(9, 4), dim=2, dense=3, interaction="dot"):
    """Return the state dict of a small model, every weight drawn anew."""
    rng = np.random.default_rng(3)
    n = len(rows) + 1
    width = {"dot": dim + n * (n - 1) // 2, "itself": dim + n * (n + 1) // 2, "cat": n * dim}[interaction]
    shapes = {f"emb_l.{i}.weight": (size, dim) for i, size in enumerate(rows)}
    for prefix, widths in (("bot_l", (dense, 5, dim)), ("top_l", (width, 6, 1))):
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            shapes |= {f"{prefix}.{2 * i}.weight": (outputs, inputs), f"{prefix}.{2 * i}.bias": (outputs,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def spec_of(rows=(9, 4), dim=2, dense=3, **first):
    return FeatureSpec(
        dense=[{"name": f"d{i}"} for i in range(dense)],
        sparse=[{"name": f"f{i}", "table": f"t{i}", **(first if i == 0 else {})} for i in range(len(rows))],
        tables=[{"name": f"t{i}", "vocabulary_size": n, "embedding_dim": dim} for i, n in enumerate(rows)],
    )


def torchrec():
    return np.load(GOLDEN / "torchrec_dlrm.npz")


def test_a_file_of_the_reference_answers_as_the_reference():
    golden = np.load(GOLDEN / "dot_sgd.npz")
    meta = json.loads(str(golden["meta"]))
    model = torch_dlrm.load(FINAL)
    assert [t.vocabulary_size for t in model.spec.tables] == meta["tables"]
    assert model.bottom_units == tuple(meta["bottom"][1:])
    assert model.top_units == tuple(meta["top_hidden"])
    assert (model.interaction_name, model.interaction_itself, model.spec.n_dense) == ("dot", False, 13)
    answer = model({"dense": golden["dense"][0], "sparse": golden["ids"][0, :, :, 0]})
    np.testing.assert_allclose(answer, golden["forward/final_on_step0"], atol=1e-5)


@pytest.mark.parametrize("name", ["torchrec_dlrm.pt", "torchrec_dlrm_train.pt"])
def test_a_file_of_torchrec_answers_as_torchrec(name):
    golden = torchrec()
    model = torch_dlrm.load(GOLDEN / name)
    assert [t.name for t in model.spec.tables] == ["t_cat_0", "t_cat_1", "t_cat_2"]
    batch = {"dense": golden["dense"], "sparse": golden["ids"]}
    np.testing.assert_allclose(model(batch), golden["probability"], atol=1e-5)
    np.testing.assert_allclose(model.logits(batch), golden["logits"], rtol=1e-5, atol=1e-5)


def test_an_npz_and_a_mapping_of_the_same_names(tmp_path):
    golden = torchrec()
    state = {name.removeprefix("final/"): golden[name] for name in golden if name.startswith("final/")}
    np.savez(tmp_path / "weights.npz", **{f"module.{name}": array for name, array in state.items()})
    batch = {"dense": golden["dense"], "sparse": golden["ids"]}
    for source in (state, tmp_path / "weights.npz"):
        np.testing.assert_allclose(torch_dlrm.load(source)(batch), golden["probability"], atol=1e-5)


def test_a_tensor_is_read_through_what_tensors_offer():
    class Tensor:
        dtype = "torch.float32"

        def __init__(self, array):
            self.array = array

        def detach(self):
            return self

        cpu = detach

        def numpy(self):
            return self.array

    state = facebook()
    model = torch_dlrm.load({name: Tensor(array) for name, array in state.items()})
    np.testing.assert_array_equal(model.embedding.get_table("C1"), state["emb_l.0.weight"])


def test_learned_weights_of_rows_answer_as_the_reference():
    numbers = np.load(GOLDEN / "facebook_tricks.npz")
    spec = FeatureSpec(
        dense=[{"name": f"d{i}"} for i in range(3)],
        sparse=[{"name": f"f{i}", "table": f"t{i}", "hotness": 3} for i in range(3)],
        tables=[{"name": f"t{i}", "vocabulary_size": n, "embedding_dim": 4} for i, n in enumerate((30, 4, 18))],
    )
    model = torch_dlrm.load(GOLDEN / "facebook_learned.pt", spec)
    answer = model({"dense": numbers["learned/dense"], "sparse": numbers["learned/sparse"]})
    np.testing.assert_allclose(answer, numbers["learned/probability"], atol=1e-5)


STORED_IN_PARTS = {
    "qr_mult": (4, "mult", 1),
    "qr_add": (4, "add", 3),
    "md": (None, None, 3),
}


def spec_in_parts(name, hotness=None):
    """Return the spec of a model with tables of 30, 4 and 18 rows, the small one whole."""
    collisions, operation, bags = STORED_IN_PARTS[name]
    if collisions:
        large = [{"quotient_remainder": {"collisions": collisions, "operation": operation}}] * 2
    else:
        large = [{"dim": 2}, {"dim": 1}]
    return FeatureSpec(
        dense=[{"name": f"d{i}"} for i in range(3)],
        sparse=[{"name": f"f{i}", "table": f"t{i}", "hotness": hotness or bags} for i in range(3)],
        tables=[
            {"name": f"t{i}", "vocabulary_size": n, "embedding_dim": 4, "compression": compression}
            for i, (n, compression) in enumerate(((30, large[0]), (4, None), (18, large[1])))
        ],
    )


@pytest.mark.parametrize("name", STORED_IN_PARTS)
def test_tables_stored_in_parts_answer_as_the_reference(name):
    numbers = np.load(GOLDEN / "facebook_tricks.npz")
    model = torch_dlrm.load(GOLDEN / f"facebook_{name}.pt", spec_in_parts(name))
    answer = model({"dense": numbers[f"{name}/dense"], "sparse": numbers[f"{name}/sparse"]})
    np.testing.assert_allclose(answer, numbers[f"{name}/probability"], atol=1e-5)


def test_parts_are_inferred_but_for_the_operation():
    numbers = np.load(GOLDEN / "facebook_tricks.npz")
    with pytest.raises(ConfigError, match=r"`qr_operation` must be 'mult' or 'add'.*`emb_l.0`"):
        torch_dlrm.load(GOLDEN / "facebook_qr_mult.pt")
    model = torch_dlrm.load(GOLDEN / "facebook_qr_mult.pt", qr_operation="mult")
    assert [table.vocabulary_size for table in model.spec.tables] == [32, 4, 20]  # at most: 30 and 18 were trained
    answer = model({"dense": numbers["qr_mult/dense"], "sparse": numbers["qr_mult/sparse"]})
    np.testing.assert_allclose(answer, numbers["qr_mult/probability"], atol=1e-5)
    projected = torch_dlrm.load(GOLDEN / "facebook_md.pt")
    assert [t.compression and t.compression.dim for t in projected.spec.tables] == [2, None, 1]


def test_sums_that_are_multiplied_are_refused():
    with pytest.raises(SpecError, match=r"`hotness` of feature `f0` must be 1: .*sums the quotient rows.*Received: 3"):
        torch_dlrm.load(GOLDEN / "facebook_qr_mult.pt", spec_in_parts("qr_mult", hotness=3))


def test_parts_of_another_shape_are_refused():
    message = (
        r"`emb_l.0` must be stored as table `t0` .*: rows \(30, 2\), projection \(2, 4\). Received: quotient \(8, 4\)"
    )
    with pytest.raises(SpecError, match=message):
        torch_dlrm.load(GOLDEN / "facebook_qr_add.pt", spec_in_parts("md"))
    spec = spec_in_parts("md")
    hashed = spec.tables[0].model_copy(update={"vocabulary_size": 99, "compression": Compression(hash_rows=30, dim=2)})
    other = FeatureSpec(dense=spec.dense, sparse=spec.sparse, tables=(hashed, *spec.tables[1:]))
    with pytest.raises(SpecError, match=r"`hash_rows` of table `t0` must be None.*Received: 30"):
        torch_dlrm.load(GOLDEN / "facebook_md.pt", other)


@pytest.mark.parametrize(
    ("kind", "expected"), [("dot", ("dot", False)), ("itself", ("dot", True)), ("cat", ("cat", False))]
)
def test_the_interaction_is_told_by_the_first_top_layer(kind, expected):
    model = torch_dlrm.load(facebook(rows=(9, 4, 5), dim=4, interaction=kind))
    assert (model.interaction_name, model.interaction_itself) == expected


def test_half_precision_is_widened_exactly():
    state = {name: array.astype(np.float16) for name, array in facebook().items()}
    model = torch_dlrm.load(state)
    np.testing.assert_array_equal(model.embedding.get_table("C2"), state["emb_l.1.weight"].astype(np.float32))
    np.testing.assert_array_equal(model.top.hidden[0].get_weights()[0], state["top_l.0.weight"].T.astype(np.float32))


def test_a_loaded_model_trains_on():
    model = torch_dlrm.load(facebook())
    before = model.embedding.get_table("C1")
    model.compile("sgd")
    batch = {"dense": np.ones([8, 3], np.float32), "sparse": np.zeros([8, 2], np.int32)}
    model.fit(batch, np.ones([8, 1], np.float32), verbose=0)
    after = model.embedding.get_table("C1")
    assert (after[0] != before[0]).any()
    np.testing.assert_array_equal(after[1:], before[1:])


def test_tables_of_torchrec_are_found_by_name_and_may_be_shared():
    golden = torchrec()
    state = {name.removeprefix("final/"): golden[name] for name in golden if name.startswith("final/")}
    middle = "sparse_arch.embedding_bag_collection.embedding_bags.t_cat_1.weight"
    del state[middle]  # the second feature reads the first table from here on
    tables = [{"name": f"t_cat_{i}", "vocabulary_size": n, "embedding_dim": 4} for i, n in ((2, 11), (0, 7))]
    sparse = [{"name": n, "table": t} for n, t in (("a", "t_cat_0"), ("b", "t_cat_0"), ("c", "t_cat_2"))]
    spec = FeatureSpec(dense=[{"name": f"d{i}"} for i in range(3)], sparse=sparse, tables=tables)
    model = torch_dlrm.load(state, spec)
    for name in ("t_cat_0", "t_cat_2"):
        key = f"sparse_arch.embedding_bag_collection.embedding_bags.{name}.weight"
        np.testing.assert_array_equal(model.embedding.get_table(name), state[key])
    other = FeatureSpec(dense=spec.dense, sparse=spec.sparse[::-1], tables=spec.tables)
    with pytest.raises(SpecError, match=r"in the order .*\['b', 'a', 'c'\].*Received: \['c', 'b', 'a'\]"):
        torch_dlrm.load(state, other)


WRONG_SPECS = {
    "rows": (spec_of(rows=(9, 5)), r"`emb_l.1` must be stored as table `t1` .* rows \(5, 2\). Received: rows \(4, 2\)"),
    "dim": (spec_of(dim=3), r"`emb_l.0` .* table `t0` .*: rows \(9, 3\). Received: rows \(9, 2\)"),
    "tables": (spec_of(rows=(9, 4, 3)), r"the spec's 3 tables.*Received: 2, \['emb_l.0', 'emb_l.1'\]"),
    "dense": (spec_of(dense=4), r"`bot_l.0.weight`, shape \(5, 3\), must take the spec's 4 dense features"),
}


@pytest.mark.parametrize(("spec", "message"), WRONG_SPECS.values(), ids=WRONG_SPECS)
def test_another_spec_is_refused_with_both_shapes(spec, message):
    with pytest.raises(SpecError, match=message):
        torch_dlrm.load(facebook(), spec)


def without(name):
    return {key: value for key, value in facebook().items() if key != name}


def changed(**shapes):
    return facebook() | {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


WRONG_STATES = {
    "missing table": (without("emb_l.0.weight"), r"holds no `emb_l.0.weight`"),
    "missing layer": (without("bot_l.0.weight"), r"holds no `bot_l.0.weight`"),
    "missing bias": (without("top_l.2.bias"), r"holds no `top_l.2.bias`"),
    "unknown weight": (changed(**{"emb_l.0.scale": (3,)}), r"no part of a DLRM: \['emb_l.0.scale'\]"),
    "two models": (changed(**{"other.emb_l.0.weight": (9, 2)}), r"under the prefixes \['', 'other.'\]"),
    "interaction": (
        changed(**{"top_l.0.weight": (6, 7)}),
        r"`top_l.0.weight` must take what 2 sparse .*: 5 for dot, 8 for dot with self-interaction, 6 for cat. "
        r"Received: shape \(6, 7\)",
    ),
    "width": (changed(**{"emb_l.1.weight": (4, 3)}), r"`emb_l.1`, rows of shape \(4, 3\), must be as wide as the 2"),
    "chain": (changed(**{"bot_l.2.weight": (2, 4)}), r"`bot_l.2.weight` must take the 5 outputs of `bot_l.0`"),
    "bias": (changed(**{"bot_l.0.bias": (4,)}), r"`bot_l.0.bias` must have .* shape \(5, 3\). Received: shape \(4,\)"),
    "rank": (changed(**{"bot_l.0.weight": (5,)}), r"`bot_l.0.weight` must have rank 2. Received: shape \(5,\)"),
    "outputs": (
        changed(**{"top_l.2.weight": (2, 6), "top_l.2.bias": (2,)}),
        r"`top_l.2.weight` must have one output. Received: shape \(2, 6\)",
    ),
    "row weights": (changed(**{"v_W_l.0": (8,)}), r"`v_W_l.0` must have .* each row .*Received: shape \(8,\)"),
    "integers": (facebook() | {"emb_l.0.weight": np.zeros((9, 2), np.int8)}, r"must hold floating-point .*int8"),
    "no array": (facebook() | {"emb_l.0.weight": "x"}, r"`emb_l.0.weight` must be an array. Received: str"),
    "another model": ({"conv.weight": np.zeros(3)}, r"must hold the weights of a DLRM .*\['conv.weight'\]"),
    "several": ({"a": facebook(), "b": facebook()}, r"must hold one state dict of a DLRM. Received: \['a', 'b'\]"),
    "DCN": ({"over_arch.model.1.bias": np.zeros(1), "inter_arch.crossnet.bias.0": np.zeros(1)}, r"TorchRec's DLRM_DCN"),
}


@pytest.mark.parametrize(("state", "message"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_another_architecture_is_refused_by_name(state, message):
    with pytest.raises(DataError, match=message):
        torch_dlrm.load(state)


def test_dot_and_cat_of_one_width_must_be_told_apart():
    state = facebook(rows=(9, 4, 5), dim=2, interaction="dot")
    assert state["top_l.0.weight"].shape == facebook(rows=(9, 4, 5), dim=2, interaction="cat")["top_l.0.weight"].shape
    with pytest.raises(ConfigError, match=r"`interaction` must be given.*shape \(6, 8\)"):
        torch_dlrm.load(state)
    assert torch_dlrm.load(state, interaction="cat").interaction_name == "cat"
    with pytest.raises(DataError, match=r"give: 6 for cat. Received: shape \(6, 5\)"):
        torch_dlrm.load(facebook(), interaction="cat")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "weights.npz"))):
        torch_dlrm.load(tmp_path / "weights.npz")
    with pytest.raises(FileNotFoundError):
        torch_dlrm.load(tmp_path / "none.pt")
    with pytest.raises(DataError, match="must hold the weights of a DLRM"):
        torch_dlrm.load(Path(__file__).with_name("torch_files") / "training_state.pt")


def test_tables_are_read_from_the_file_piece_by_piece():
    table = read_torch_file(FINAL)["state_dict"]["emb_l.0.weight"]
    assert isinstance(table.base, np.memmap)
    assert not table.flags.writeable
