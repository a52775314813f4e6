"""`DLRM_Net` of facebookresearch/dlrm, from a checkout that you name, in a bare training loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import Batch, Shapes, measure, parse


def main() -> None:
    """Measure."""
    args = parse(
        __doc__,
        ("sgd", "adagrad", "rowwise_adagrad"),
        ("float32", "bfloat16"),
        lambda parser: parser.add_argument("--checkout", type=Path, required=True, help="of facebookresearch/dlrm"),
    )
    shapes = Shapes.load(args.spec)
    sys.path.insert(0, str(args.checkout))

    import torch
    from dlrm_s_pytorch import DLRM_Net
    from optim.rwsadagrad import RWSAdagrad

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    top = np.array([shapes.top_inputs, *shapes.top_units])
    model = DLRM_Net(
        shapes.embedding_dim,
        np.array(shapes.rows),
        np.array([shapes.n_dense, *shapes.bottom_units]),
        top,
        arch_interaction_op="dot",
        sigmoid_bot=-1,
        sigmoid_top=top.size - 2,
        loss_function="bce",
    )
    optimizers = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": RWSAdagrad}
    optimizer = optimizers[args.optimizer](model.parameters(), lr=0.01)
    offsets = torch.arange(args.batch_size).repeat(len(shapes.rows), 1)

    def load(batches: Iterator[Batch]) -> list[Any]:
        return [
            (
                torch.from_numpy(batch.dense),
                [torch.from_numpy(np.ascontiguousarray(ids)).long() for ids in batch.sparse.T],
                torch.from_numpy(batch.label),
            )
            for batch in batches
        ]

    def run(batches: list[Any]) -> float:
        for values, ids, label in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
                probability = model(values, offsets, ids)
            # Its loss takes probabilities; PyTorch refuses that loss in half precision.
            loss = model.loss_fn(probability.float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    measure(args, "facebook_dlrm", shapes, load, run)


if __name__ == "__main__":
    main()
