"""A trained DLRM of facebookresearch/dlrm or TorchRec as a `DLRM` of this package, without PyTorch."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfdlrm.export.torch_files import read_torch_file
from tfdlrm.export.torch_names import TorchTable, TorchWeights, find_state_dict, read_names
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.errors import ConfigError, DataError, SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig

Interaction = Literal["dot", "cat"]
QuotientRemainderOperation = Literal["mult", "add"]


def read(checkpoint: Path | str | Mapping[str, Any]) -> TorchWeights:
    """Return the weights of a checkpoint, sorted by what they are; those of a `torch.save` file stay in the file.

    Args:
        checkpoint: A file of `torch.save` (a state dict, or a training state that has one in it) or an `.npz` with the
            same names, or a mapping from those names to arrays or tensors.

    Raises:
        OSError: the file cannot be opened.
        DataError: the checkpoint is damaged, or is no DLRM that can be read; names the weight.
    """
    if isinstance(checkpoint, Mapping):
        return read_names(find_state_dict(checkpoint, "`checkpoint`"), "`checkpoint`")
    return read_names(find_state_dict(_content(Path(checkpoint)), str(checkpoint)), str(checkpoint))


def load(
    checkpoint: Path | str | Mapping[str, Any] | TorchWeights,
    spec: FeatureSpec | None = None,
    *,
    interaction: Interaction | None = None,
    qr_operation: QuotientRemainderOperation | None = None,
    **kwargs: Any,
) -> DLRM:
    """Return a model with the weights of a checkpoint; it answers what the original answers, and may train on.

    Widths, tables and the kind of interaction are read from the shapes. What no checkpoint holds is taken as the
    original trains it: ReLU after each layer but the last of the top, sum pooling (or what `spec` says), a sigmoid at
    the end. A learned weight of each row (`v_W_l` of facebookresearch/dlrm) is multiplied into the row. TorchRec puts
    the dot products in another order: the columns of the first top layer are permuted.

    Args:
        checkpoint: As for `read`, or what `read` returned. Tables of a `torch.save` file are copied piece by piece, so
            that the file may be larger than the memory left beside the model.
        spec: What the model reads. Its i-th feature reads the checkpoint's i-th table; tables of TorchRec are found by
            name where all names are those of the checkpoint. `None` names dense features I1, I2 ... with the transform
            `identity`, and sparse ones C1, C2 ... or as TorchRec names their tables, each one-hot with its own table.
        interaction: `"dot"` or `"cat"`; needed only where the shapes allow both.
        qr_operation: How quotient and remainder rows are composed, which no shape tells; needed without `spec`
            where a table is stored so.
        **kwargs: Passed to `DLRM`: `name`, `dtype`, `seed`, `dropout`, `embedding_l2`.

    Raises:
        OSError: the file cannot be opened.
        DataError: the checkpoint is damaged, or is no DLRM that can be read; names the weight.
        SpecError: checkpoint and spec disagree; names both shapes.
        ConfigError: an argument is needed that shapes do not tell.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> shapes = {"emb_l.0": (10, 2), "bot_l.0": (2, 3), "top_l.0": (1, 3)}
        >>> weights = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
        >>> model = load(weights | {"bot_l.0.bias": np.zeros(2), "top_l.0.bias": np.zeros(1)})
        >>> model.interaction_name, model.bottom_units, model.spec.n_dense
        ('dot', (2,), 3)
    """
    weights = checkpoint if isinstance(checkpoint, TorchWeights) else read(checkpoint)
    _refuse_unless_of_one_width(weights)
    if spec is None:
        spec, tables = _inferred_spec(weights, qr_operation), weights.tables
    else:
        tables = _matched(spec, weights)
    operation, itself = _interaction(weights, len(spec.sparse), interaction)
    model = DLRM(
        spec,
        bottom_units=[layer.weight.shape[0] for layer in weights.bottom],
        top_units=[layer.weight.shape[0] for layer in weights.top],
        interaction=operation,
        interaction_itself=itself,
        **kwargs,
    )
    model.build()
    for table, found in zip(spec.tables, tables, strict=True):
        _fill_table(model, table, found)
    first, *later = weights.top
    if weights.origin == "TorchRec":
        columns = _lower_from_upper(weights.embedding_dim, len(spec.sparse) + 1)
        first = first._replace(weight=first.weight[:, columns])
    assert model.bottom is not None, "every checkpoint has bottom layers, and so dense features"
    for mlp, layers in ((model.bottom, weights.bottom), (model.top, [first, *later])):
        for dense, layer in zip(mlp.hidden, layers, strict=True):
            dense.set_weights([np.asarray(layer.weight.T, np.float32), np.asarray(layer.bias, np.float32)])
    return model


def _content(path: Path) -> Any:
    if path.suffix != ".npz":
        return read_torch_file(path)
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: must be an .npz of arrays: {error}.") from None


def _refuse_unless_of_one_width(weights: TorchWeights) -> None:
    """Raise unless every table gives vectors as wide as the bottom layers do, and the top layers end in one number."""
    last, dim = weights.bottom[-1], weights.embedding_dim
    for table in weights.tables:
        for part, array in table.parts.items():
            if array.shape[1] != dim and (part != "rows" or "projection" not in table.parts):
                raise DataError(
                    f"{weights.source}: `{table.name}`, {part} of shape {array.shape}, must be as wide as the {dim} "
                    f"outputs of `{last.name}`, shape {last.weight.shape}."
                )
    if weights.top[-1].weight.shape[0] != 1:
        raise DataError(
            f"{weights.source}: `{weights.top[-1].name}.weight` must have one output. "
            f"Received: shape {weights.top[-1].weight.shape}."
        )


def _inferred_spec(weights: TorchWeights, qr_operation: QuotientRemainderOperation | None) -> FeatureSpec:
    named = weights.origin == "TorchRec"
    tables = []
    for number, table in enumerate(weights.tables, 1):
        rows, compression = _stored_as(table, qr_operation, weights.source)
        tables.append(
            TableConfig(
                name=table.name if named else f"C{number}",
                vocabulary_size=rows,
                embedding_dim=weights.embedding_dim,
                compression=compression,
            )
        )
    n_dense = weights.bottom[0].weight.shape[1]
    return FeatureSpec(
        dense=tuple(DenseFeature(name=f"I{i + 1}", transform="identity") for i in range(n_dense)),
        sparse=tuple(SparseFeature(name=table.name, table=table.name) for table in tables),
        tables=tuple(tables),
    )


def _stored_as(
    table: TorchTable, qr_operation: QuotientRemainderOperation | None, source: str
) -> tuple[int, dict[str, Any] | None]:
    """Return the rows of a table as ids see them, and how they are stored."""
    if "quotient" in table.parts:
        if qr_operation is None:
            raise ConfigError(
                f"{source}: `qr_operation` must be 'mult' or 'add', as the model was trained: `{table.name}` is stored "
                "as quotient and remainder rows, whose shapes do not tell."
            )
        collisions = len(table.parts["remainder"])
        split = {"collisions": collisions, "operation": qr_operation}
        # The last quotient row may have stood for fewer ids; the checkpoint does not say for how many.
        return len(table.parts["quotient"]) * collisions, {"quotient_remainder": split}
    rows, width = table.parts["rows"].shape
    return rows, {"dim": width} if "projection" in table.parts else None


def _matched(spec: FeatureSpec, weights: TorchWeights) -> list[TorchTable]:
    """Return the checkpoint's tables in the order of the spec's; raise unless all shapes are those of the spec."""
    found = {table.name: table for table in weights.tables}
    names = [table.name for table in spec.tables]
    if len(found) != len(names):
        raise SpecError(
            f"{weights.source}: the checkpoint must have the spec's {len(names)} tables, {names}. "
            f"Received: {len(found)}, {list(found)}."
        )
    if set(found) != set(names):  # by position, then
        found = dict(zip(dict.fromkeys(feature.table for feature in spec.sparse), weights.tables, strict=True))
    # Features stand in the order of the checkpoint's tables: the columns of its first top layer depend on it.
    order = [feature.name for name in found for feature in spec.sparse if feature.table == name]
    if order != list(spec.sparse_names):
        raise SpecError(
            f"{weights.source}: the spec must have its features in the order of the checkpoint's tables, {order}. "
            f"Received: {list(spec.sparse_names)}."
        )
    n_dense = weights.bottom[0].weight.shape[1]
    if n_dense != spec.n_dense:
        raise SpecError(
            f"{weights.source}: `{weights.bottom[0].name}.weight`, shape {weights.bottom[0].weight.shape}, must take "
            f"the spec's {spec.n_dense} dense features. Received: {n_dense}."
        )
    for feature in spec.sparse:
        _refuse_multiplied_sums(feature, spec.table_of(feature), weights.source)
    for table in spec.tables:
        _refuse_unless_stored_alike(table, found[table.name], weights.source)
    return [found[name] for name in names]


def _refuse_multiplied_sums(feature: SparseFeature, table: TableConfig, source: str) -> None:
    split = None if table.compression is None else table.compression.quotient_remainder
    if split is not None and split.operation == "mult" and feature.hotness > 1:
        raise SpecError(
            f"{source}: `hotness` of feature `{feature.name}` must be 1: facebookresearch/dlrm sums the quotient rows "
            "of a bag and its remainder rows, then multiplies the two sums, while here each id has a vector, the "
            f"product of its rows, and a bag is their sum. Received: {feature.hotness}."
        )


def _refuse_unless_stored_alike(table: TableConfig, found: TorchTable, source: str) -> None:
    wanted = {part.part: (part.rows, part.dim) for part in table.stored}
    if wanted != {part: array.shape for part, array in found.parts.items()}:
        raise SpecError(
            f"{source}: `{found.name}` must be stored as table `{table.name}` of the spec: {_shapes(wanted)}. "
            f"Received: {_shapes_of(found)}."
        )
    if table.compression is not None and table.compression.hash_rows is not None:
        raise SpecError(
            f"{source}: `hash_rows` of table `{table.name}` must be None: `{found.name}` was trained on ids, "
            f"not on their hashes. Received: {table.compression.hash_rows}."
        )


def _shapes_of(table: TorchTable) -> str:
    return _shapes({part: array.shape for part, array in table.parts.items()})


def _shapes(parts: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{part} {tuple(shape)}" for part, shape in parts.items())


def _interaction(weights: TorchWeights, n_sparse: int, wanted: Interaction | None) -> tuple[Interaction, bool]:
    """Return the kind of interaction, and whether it keeps the products of vectors with themselves."""
    if wanted not in (None, "dot", "cat"):
        raise ConfigError(f"`interaction` must be 'dot' or 'cat'. Received: {wanted!r}.")
    first, n, dim = weights.top[0], n_sparse + 1, weights.embedding_dim
    widths: dict[tuple[Interaction, bool], int] = {("dot", False): dim + math.comb(n, 2)}
    if weights.origin != "TorchRec":
        widths |= {("dot", True): dim + math.comb(n + 1, 2), ("cat", False): n * dim}
    possible = [kind for kind, width in widths.items() if width == first.weight.shape[1]]
    fitting = [kind for kind in possible if wanted in (None, kind[0])]
    if not possible or (wanted is not None and not fitting):
        shapes = ", ".join(
            f"{width} for {operation}{' with self-interaction' if itself else ''}"
            for (operation, itself), width in widths.items()
            if wanted in (None, operation)
        )
        raise DataError(
            f"{weights.source}: `{first.name}.weight` must take what {n_sparse} sparse features and one dense vector "
            f"of width {dim} give: {shapes}. Received: shape {first.weight.shape}."
        )
    if len(fitting) > 1:
        raise ConfigError(
            f"{weights.source}: `interaction` must be given, 'dot' or 'cat': both fit `{first.name}.weight`, shape "
            f"{first.weight.shape}."
        )
    return fitting[0]


def _lower_from_upper(dim: int, vectors: int) -> list[int]:
    """Return, for each input of our first top layer, its place in TorchRec's.

    Both put the dense vector first. Of the products, TorchRec takes the upper triangle row by row, (0,1), (0,2) ...
    (`InteractionArch` in torchrec/models/dlrm.py); ours is the lower triangle row by row, (1,0), (2,0), (2,1) ...

    >>> _lower_from_upper(2, 4)
    [0, 1, 2, 3, 5, 4, 6, 7]
    """
    place = {pair: dim + k for k, pair in enumerate(itertools.combinations(range(vectors), 2))}
    return [*range(dim), *(place[j, i] for i in range(vectors) for j in range(i))]


def _fill_table(model: DLRM, table: TableConfig, found: TorchTable) -> None:
    parts = found.parts
    if found.row_weights is not None:
        rows = np.asarray(parts["rows"], np.float32) * np.asarray(found.row_weights, np.float32)[:, np.newaxis]
        parts = {**parts, "rows": rows}
    if table.compression is None:
        model.embedding.set_table(table.name, parts["rows"])
        return
    for part, array in parts.items():
        model.embedding.set_part(table.name, part, array)
