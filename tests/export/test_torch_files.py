"""Files that PyTorch wrote read as it meant them; damaged and hostile ones are refused, and none of them runs."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tfdlrm.export.torch_files import Unread, read_torch_file
from tfdlrm.spec.errors import DataError

FILES = Path(__file__).with_name("torch_files")
COUNT = np.arange(24).reshape(4, 6)

TYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
}


# --- Pickles put together by hand, opcode by opcode, as in the format's description in pickletools.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else pickle.dumps(value, 2)[2:-1]


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(key="0", count=6, offset=0, shape=(2, 3), strides=(3, 1), storage="FloatStorage") -> bytes:
    storage_id = (
        b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(count) + b"t"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    rest = number(offset) + numbers(*shape) + numbers(*strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage_id + b"Q" + rest + b"tR"


def mapping(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def write(path, pickled, storages=None, compression=zipfile.ZIP_STORED, **more):
    """Write a file of the zip format around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("saved/data.pkl", b"\x80\x02" + pickled + b".")
        for name, content in more.items():
            archive.writestr(f"saved/{name}", content)
        for key, content in (storages or {"0": np.arange(6, dtype="<f4").tobytes()}).items():
            archive.writestr(f"saved/data/{key}", content)
    return path


@pytest.fixture(scope="module")
def tensors():
    [tensors, rest] = read_torch_file(FILES / "tensors.pt")["nested"]["deep"]
    assert rest == (1, 2.5, None, "é", {3})
    return tensors


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_number(tensors, name):
    assert tensors[name].dtype == TYPES[name]
    np.testing.assert_array_equal(tensors[name], COUNT.astype(TYPES[name]))


def test_views_as_torch_saved_them(tensors):
    np.testing.assert_array_equal(tensors["bool"], COUNT > 11)
    assert tensors["scalar"].shape == () and tensors["scalar"] == 3.5
    assert tensors["empty"].shape == (0, 6)
    np.testing.assert_array_equal(tensors["transposed"], COUNT.T)
    np.testing.assert_array_equal(tensors["every_other"], [[6, 9], [18, 21]])
    np.testing.assert_array_equal(tensors["repeated"], [[0] * 3, [1] * 3, [2] * 3, [3] * 3])
    np.testing.assert_array_equal(tensors["parameter"], COUNT)
    assert np.shares_memory(tensors["shared"], tensors["transposed"])
    assert not np.shares_memory(tensors["shared"], tensors["float32"])
    with pytest.raises(ValueError, match="read-only"):
        tensors["shared"][0, 0] = 1


def test_other_state_of_a_training_run_does_no_harm():
    state = read_torch_file(FILES / "training_state.pt")
    np.testing.assert_array_equal(state["state_dict"]["w"], COUNT)
    np.testing.assert_array_equal(state["opt"]["state"][0]["sum"], np.ones([4, 6]))
    assert state["where"].of == "pathlib.PosixPath"
    assert isinstance(state["auc"], Unread) and isinstance(state["device"], Unread)


def test_a_file_written_by_hand_reads(tmp_path):
    path = write(tmp_path / "a.pt", mapping(w=tensor(), t=tensor(shape=(3, 2), strides=(1, 3)), byteorder=text("-")))
    state = read_torch_file(path)
    np.testing.assert_array_equal(state["w"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(state["t"], [[0, 3], [1, 4], [2, 5]])


HOSTILE = {
    "reduce": b"cos\nsystem\n(" + text("touch {0}") + b"tR",
    "reduce of a builtin": b"cbuiltins\nexec\n(" + text("open('{0}', 'w')") + b"tR",
    "old instance": b"(" + text("touch {0}") + b"ios\nsystem\n",
    "object": b"(cos\nsystem\n" + text("touch {0}") + b"o",
    "new object": b"csubprocess\nPopen\n(" + text("touch {0}") + b"t\x81",
    "by way of an attribute": b"cbuiltins\ngetattr\n(cos\n_wrap_close\n" + text("__init__") + b"tR",
    "stack global": text("os") + text("system") + b"\x93(" + text("touch {0}") + b"tR",
    "name with dots": text("torch._utils") + text("os.system") + b"\x93(" + text("touch {0}") + b"tR",
    "state of an object": b"cos\nsystem\n)R" + mapping(__class__=text("x"), touch=text("{0}")) + b"b",
}


@pytest.mark.parametrize("attack", HOSTILE.values(), ids=HOSTILE)
def test_nothing_in_a_pickle_runs(tmp_path, attack):
    touched = tmp_path / "touched"
    # Lengths of texts stand before them: the name goes in before the pickle is put together.
    state = read_torch_file(write(tmp_path / "a.pt", mapping(w=tensor(), x=_filled(attack, str(touched)))))
    assert isinstance(state["x"], Unread) or issubclass(state["x"], Unread)
    np.testing.assert_array_equal(state["w"], [[0, 1, 2], [3, 4, 5]])
    assert not touched.exists()


def _filled(pickled: bytes, name: str) -> bytes:
    for template in ("touch {0}", "open('{0}', 'w')", "{0}"):
        pickled = pickled.replace(text(template), text(template.format(name)))
    return pickled


@pytest.mark.parametrize("name", ["reduce", "reduce of a builtin", "old instance", "object", "stack global"])
def test_an_unguarded_reader_would_run_it(tmp_path, name):
    touched = tmp_path / "touched"
    pickle.loads(b"\x80\x02" + _filled(HOSTILE[name], str(touched)) + b".")
    assert touched.exists()


BROKEN = {
    "a tensor past its storage": (mapping(w=tensor(shape=(2, 4), strides=(3, 1))), r"\(2, 4\) reads past the 6"),
    "an offset past its storage": (mapping(w=tensor(offset=1)), r"reads past the 6"),
    "a negative stride": (mapping(w=tensor(strides=(-3, 1))), r"impossible shape"),
    "a negative offset": (mapping(w=tensor(offset=-1)), r"impossible shape"),
    "a storage longer than its entry": (mapping(w=tensor(count=7)), r"must hold 7 numbers of float32. Received: 24"),
    "a storage of negative length": (mapping(w=tensor(count=-1)), r"must hold -1 numbers"),
    "no such storage": (mapping(w=tensor(key="9")), r"holds no data/9"),
    "a pickle that ends early": (b"X\xff\x00\x00\x00w", r"data.pkl cannot be read"),
    "a pickle of nonsense": (b"\xff\xff", r"data.pkl cannot be read"),
    "a text as a function": (text("w") + b")R", r"data.pkl cannot be read"),
    "a memo that is not there": (b"h\x07", r"data.pkl cannot be read"),
}


@pytest.mark.parametrize(("pickled", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_pickle_is_refused(tmp_path, pickled, message):
    with pytest.raises(DataError, match=message):
        read_torch_file(write(tmp_path / "a.pt", pickled))


def test_a_storage_of_an_unknown_type_is_a_stand_in(tmp_path):
    state = read_torch_file(write(tmp_path / "a.pt", mapping(w=tensor(storage="QInt8Storage"), v=tensor())))
    assert state["w"].of == "torch.QInt8Storage"
    assert state["v"].shape == (2, 3)


def test_old_and_foreign_files_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"since PyTorch 1.6.*torch.save\(torch.load\(old"):
        read_torch_file(FILES / "legacy.pt")
    (tmp_path / "text.pt").write_text("no zip\n")
    with pytest.raises(DataError, match=r"begins with b'no z'"):
        read_torch_file(tmp_path / "text.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(DataError, match=r"begins with b''"):
        read_torch_file(tmp_path / "empty.pt")
    with pytest.raises(DataError, match=r"must be little-endian. Received: 'big'.*torch.save"):
        read_torch_file(write(tmp_path / "big.pt", mapping(w=tensor()), byteorder=b"big"))
    with pytest.raises(DataError, match=r"`saved/data.pkl` must not be compressed"):
        read_torch_file(write(tmp_path / "small.pt", mapping(w=tensor()), compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "half.pt", "w") as archive:
        archive.writestr("saved/data.pkl", b"\x80\x02" + mapping(w=tensor()) + b".")
        archive.writestr("saved/data/0", bytes(24), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"`saved/data/0` must not be compressed"):
        read_torch_file(tmp_path / "half.pt")
    with pytest.raises(DataError, match=r"TorchScript"):
        read_torch_file(write(tmp_path / "script.pt", mapping(w=tensor()), **{"constants.pkl": b""}))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "no pickle")
    with pytest.raises(DataError, match=r"must hold one data.pkl.*Received: 0"):
        read_torch_file(tmp_path / "other.pt")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    whole = (FILES / "tensors.pt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"cut.pt: cut short or damaged"):
            read_torch_file(tmp_path / "cut.pt")


def test_a_damaged_pickle_is_refused_by_its_checksum(tmp_path):
    whole = bytearray((FILES / "tensors.pt").read_bytes())
    whole[whole.index(b"nested")] ^= 1
    (tmp_path / "flipped.pt").write_bytes(whole)
    with pytest.raises(DataError, match=r"cut short or damaged: Bad CRC-32"):
        read_torch_file(tmp_path / "flipped.pt")


READ_A_ROW = """
import resource, sys
import numpy as np
from tfdlrm.export.torch_files import read_torch_file
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
table = read_torch_file(sys.argv[1])["w"]
print(table.nbytes >> 20, float(table[-1, -1]), peak() - before)
"""


def test_a_large_file_is_not_read_whole(tmp_path):
    rows, dim = 1 << 20, 64  # 256 MiB, holes on disk
    path = tmp_path / "large.pt"
    pickled = b"\x80\x02" + mapping(w=tensor(count=rows * dim, shape=(rows, dim), strides=(dim, 1))) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("large/data.pkl", pickled)
        with archive.open("large/data/0", "w", force_zip64=True) as entry:
            for _ in range(4):
                entry.write(bytes(1 << 26))
    process = subprocess.run(
        [sys.executable, "-c", READ_A_ROW, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    size, value, grown = map(float, process.stdout.split())
    assert (size, value) == (256, 0)
    assert grown < 40
