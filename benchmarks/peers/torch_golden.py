"""Writes what PyTorch and TorchRec themselves save and compute, for tests/golden and tests/export/torch_files.

Needs an environment of its own with torch 2.13.0, torchrec 1.8.0 and fbgemm-gpu-cpu 1.8.0:
`python benchmarks/peers/torch_golden.py GOLDEN_FOLDER FILES_FOLDER [FACEBOOK_DLRM_FOLDER]`; the last is a clone of
facebookresearch/dlrm, whose embedding tricks are run.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

ROWS, DIM, DENSE, SAMPLES = (7, 5, 11), 4, 3, 16


def torchrec(folder: Path) -> None:
    """Write a DLRM of TorchRec, in a bare state dict and as training wraps it, and its logits on a batch."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.models.dlrm import DLRM, DLRMTrain

    torch.manual_seed(5)
    names = [f"cat_{i}" for i in range(len(ROWS))]
    model = DLRM(
        EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=rows, feature_names=[name])
                for name, rows in zip(names, ROWS, strict=True)
            ],
            device=torch.device("cpu"),
        ),
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[6, DIM],
        over_arch_layer_sizes=[8, 5, 1],
    )
    for parameter in model.parameters():  # no weight is so small that a wrong column would not show
        parameter.data.normal_()
    dense = torch.randn(SAMPLES, DENSE)
    ids = torch.stack([torch.randint(rows, [SAMPLES]) for rows in ROWS], dim=1)
    one_each = torch.ones(SAMPLES * len(ROWS), dtype=torch.int32)
    bags = KeyedJaggedTensor(names, ids.T.reshape(-1), lengths=one_each)
    with torch.no_grad():
        logits = model(dense, bags)
    torch.save(model.state_dict(), folder / "torchrec_dlrm.pt")
    torch.save({"model": DLRMTrain(model).state_dict(), "epoch": 1}, folder / "torchrec_dlrm_train.pt")
    np.savez(
        folder / "torchrec_dlrm.npz",
        dense=dense.numpy(),
        ids=ids.numpy().astype(np.int32),
        logits=logits.numpy(),
        probability=torch.sigmoid(logits).numpy(),
        **{f"final/{name}": value.numpy() for name, value in model.state_dict().items()},
    )


def facebook_tricks(folder: Path, source: Path) -> None:
    """Write DLRM_Net of facebookresearch/dlrm with quotient-remainder, projected and weighted tables."""
    sys.path.insert(0, str(source))
    from dlrm_s_pytorch import DLRM_Net

    numbers = {}
    rows = np.array([30, 4, 18])
    for name, options, hotness in (
        ("qr_mult", {"qr_flag": True, "qr_operation": "mult", "qr_collisions": 4, "qr_threshold": 10}, 1),
        ("qr_add", {"qr_flag": True, "qr_operation": "add", "qr_collisions": 4, "qr_threshold": 10}, 3),
        ("md", {"md_flag": True, "md_threshold": 1}, 3),
        ("learned", {"weighted_pooling": "learned"}, 3),
    ):
        torch.manual_seed(7)
        np.random.seed(7)
        model = DLRM_Net(
            [2, 4, 1] if name == "md" else DIM,
            rows,
            np.array([DENSE, 5, DIM]),
            np.array([DIM + 6, 6, 1]),
            arch_interaction_op="dot",
            sigmoid_top=1,
            **options,
        )
        for parameter in model.parameters():
            parameter.data.normal_()
        dense = torch.randn(SAMPLES, DENSE)
        ids = [torch.randint(int(n), [SAMPLES, hotness]) for n in rows]
        offsets = [torch.arange(0, SAMPLES * hotness, hotness)] * len(rows)
        with torch.no_grad():
            answer = model(dense, offsets, [table.reshape(-1) for table in ids])
        torch.save({"state_dict": model.state_dict(), "iter": 1}, folder / f"facebook_{name}.pt")
        numbers |= {
            f"{name}/dense": dense.numpy(),
            f"{name}/sparse": torch.cat(ids, dim=1).numpy().astype(np.int32),
            f"{name}/probability": answer.numpy(),
        }
    np.savez(folder / "facebook_tricks.npz", **numbers)


def odd_files(folder: Path) -> None:
    """Write small files of every kind that a reader may meet; 0, 1, 2 ... are the numbers in them."""
    count = torch.arange(24, dtype=torch.float32)
    table = count.reshape(4, 6)
    parameter = torch.nn.Parameter(table.clone())
    tensors = OrderedDict(
        float32=table.clone(),
        float64=table.double(),
        float16=table.half(),
        bfloat16=table.bfloat16(),
        int64=table.long(),
        int32=table.int(),
        int16=table.short(),
        int8=table.to(torch.int8),
        uint8=table.to(torch.uint8),
        bool=table > 11,
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 6),
        transposed=table.t(),
        every_other=table[1::2, ::3],
        repeated=count[:4].reshape(4, 1).expand(4, 3),
        shared=table,
        parameter=parameter,
    )
    torch.save({"nested": {"deep": [tensors, (1, 2.5, None, "é", {3})]}}, folder / "tensors.pt")
    optimizer = torch.optim.Adagrad([parameter])
    parameter.sum().backward()
    optimizer.step()
    extra = {"opt": optimizer.state_dict(), "auc": np.float64(0.5), "dtype": torch.float32, "where": Path("x")}
    torch.save({"state_dict": {"w": table}, "device": torch.device("cpu"), **extra}, folder / "training_state.pt")
    torch.save({"w": table}, folder / "legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    torchrec(Path(sys.argv[1]))
    odd_files(Path(sys.argv[2]))
    if len(sys.argv) > 3:
        facebook_tricks(Path(sys.argv[1]), Path(sys.argv[3]))
