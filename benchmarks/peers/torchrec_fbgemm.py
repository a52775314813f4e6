"""TorchRec's DLRM parts on FBGEMM's fused CPU tables: dense part in PyTorch, sparse update inside the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timing import Batch, Shapes, measure, parse


def main() -> None:
    """Measure."""
    args = parse(__doc__, ("sgd", "rowwise_adagrad"), ("float32", "bfloat16"))
    shapes = Shapes.load(args.spec)

    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
    from torchrec.models.dlrm import DenseArch, InteractionArch, OverArch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    sgd = args.optimizer == "sgd"
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, shapes.embedding_dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in shapes.rows],
        optimizer=EmbOptimType.EXACT_SGD if sgd else EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
        # Ids are known to be in range, and a check would only cost the peer time.
        bounds_check_mode=BoundsCheckMode.NONE,
        device=torch.device("cpu"),
    )
    for rows, weights in zip(shapes.rows, tables.split_embedding_weights(), strict=True):
        weights.data.uniform_(-(rows**-0.5), rows**-0.5)
    bottom = DenseArch(shapes.n_dense, list(shapes.bottom_units))
    interaction = InteractionArch(len(shapes.rows))
    top = OverArch(shapes.top_inputs, list(shapes.top_units))
    dense = [*bottom.parameters(), *top.parameters()]
    optimizer = torch.optim.SGD(dense, lr=0.01) if sgd else torch.optim.Adagrad(dense, lr=0.01)
    loss_of = torch.nn.BCEWithLogitsLoss()
    offsets = torch.arange(args.batch_size * len(shapes.rows) + 1, dtype=torch.int64)

    def load(batches: Iterator[Batch]) -> list[Any]:
        return [
            (
                torch.from_numpy(batch.dense),
                # Table by table, as FBGEMM wants the ids.
                torch.from_numpy(batch.sparse.T.reshape(-1).astype("int64")),
                torch.from_numpy(batch.label),
            )
            for batch in batches
        ]

    def run(batches: list[Any]) -> float:
        for values, ids, label in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
                looked_up = tables(ids, offsets).view(args.batch_size, len(shapes.rows), shapes.embedding_dim)
                logits = top(interaction(bottom(values), looked_up))
            loss = loss_of(logits.float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    measure(args, "torchrec_fbgemm", shapes, load, run)


if __name__ == "__main__":
    main()
