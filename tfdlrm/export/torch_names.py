"""The names that facebookresearch/dlrm and TorchRec give the weights of a DLRM, and what each of them is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tfdlrm.export.torch_files import Unread
from tfdlrm.spec.errors import DataError, did_you_mean

Array: TypeAlias = npt.NDArray[Any]
Origin = Literal["facebookresearch/dlrm", "TorchRec"]

_ROOTS = {
    "emb_l": "facebookresearch/dlrm",
    "v_W_l": "facebookresearch/dlrm",
    "bot_l": "facebookresearch/dlrm",
    "top_l": "facebookresearch/dlrm",
    "sparse_arch": "TorchRec",
    "dense_arch": "TorchRec",
    "inter_arch": "TorchRec",
    "over_arch": "TorchRec",
}
_NAME = re.compile(rf"((?:\w+\.)*?)({'|'.join(_ROOTS)})\.")
_PARTS = {
    "weight": "rows",
    "embs.weight": "rows",
    "weight_q": "quotient",
    "weight_r": "remainder",
    "proj.weight": "projection",
}
_TABLES = {
    "facebookresearch/dlrm": re.compile(rf"emb_l\.(\d+)\.({'|'.join(map(re.escape, _PARTS))})"),
    "TorchRec": re.compile(r"sparse_arch\.embedding_bag_collection\.embedding_bags\.(.+)\.(weight)"),
}


class TorchTable(NamedTuple):
    """One embedding table of a checkpoint.

    Attributes:
        name: `emb_l.3`, or the table's name in TorchRec.
        parts: `"rows"`, or `"quotient"` and `"remainder"`, and `"projection"` `[width stored, d]`.
        row_weights: `[rows]`, the learned weight of each row in its bag; `None` where it has none.
    """

    name: str
    parts: dict[str, Array]
    row_weights: Array | None


class TorchLayer(NamedTuple):
    """One fully connected layer: `weight` `[outputs, inputs]` and `bias` `[outputs]`, under the names of the file."""

    name: str
    weight: Array
    bias: Array


class TorchWeights(NamedTuple):
    """The weights of a DLRM, tables in the order of their features, layers from input to output.

    Attributes:
        source: The file, for messages.
        origin: Whose names they have.
        tables: One a feature, or fewer where features share one.
        bottom: What the dense features go through.
        top: What the interaction goes through.
    """

    source: str
    origin: Origin
    tables: list[TorchTable]
    bottom: list[TorchLayer]
    top: list[TorchLayer]

    @property
    def embedding_dim(self) -> int:
        """Width d of every vector: what comes out of the bottom layers."""
        return int(self.bottom[-1].weight.shape[0])


def find_state_dict(content: Any, source: str) -> Mapping[str, Any]:
    """Return the state dict of a DLRM: what a file holds, or what lies in it beside other state of a training run.

    Args:
        content: A mapping from names to weights, or one that has such a mapping among its values.
        source: Where it comes from, for messages.

    Raises:
        DataError: there is none, or several.
    """
    if not isinstance(content, Mapping):
        raise DataError(f"{source}: must hold a state dict. Received: {_kind(content)}.")
    inner = {str(key): value for key, value in content.items() if isinstance(value, Mapping)}
    found = {key: value for key, value in {"": content, **inner}.items() if any(_NAME.match(str(k)) for k in value)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise DataError(f"{source}: must hold one state dict of a DLRM. Received: {sorted(found)}.")
    names = [str(key) for value in (*inner.values(), content) for key in value]
    raise DataError(
        f"{source}: must hold the weights of a DLRM of facebookresearch/dlrm (emb_l.0.weight ...) or TorchRec "
        f"(sparse_arch ...). Received: {names[:4]}{' ...' if len(names) > 4 else ''}."
    )


def read_names(state: Mapping[str, Any], source: str) -> TorchWeights:
    """Sort the weights of a state dict by what they are.

    Args:
        state: From names to arrays or tensors, with or without a prefix such as `module.` before all names.
        source: Where it comes from, for messages.

    Raises:
        DataError: a weight is missing, is no plain tensor of floating-point numbers, or belongs to another model.
    """
    matches = {name: match for name in map(str, state) if (match := _NAME.match(name))}
    prefixes = sorted({match[1] for match in matches.values()})
    if len(prefixes) != 1:
        raise DataError(f"{source}: must hold one DLRM. Received: {len(prefixes)}, under the prefixes {prefixes}.")
    names = {str(name).removeprefix(prefixes[0]): name for name in state if str(name).startswith(prefixes[0])}
    origin: Origin = _ROOTS[next(iter(matches.values()))[2]]  # type: ignore[assignment]
    if any(name.startswith("inter_arch.") for name in names):
        kind = "DLRM_DCN" if any(".crossnet." in name for name in names) else "DLRM_Projection"
        raise DataError(f"{source}: must hold a DLRM with dot products or cat. Received: TorchRec's {kind}.")
    weights = {name: _array(state[key], f"{source}: `{key}`") for name, key in names.items()}
    reader = _Names(weights, source)
    if origin == "TorchRec":
        bottom = reader.layers("dense_arch.model._mlp.{}._linear")
        top = [*reader.layers("over_arch.model.0._mlp.{}._linear"), reader.layer("over_arch.model.1")]
    else:  # every other module is an activation
        bottom, top = reader.layers("bot_l.{}", step=2), reader.layers("top_l.{}", step=2)
    tables = reader.tables(origin)
    reader.refuse_unread()
    return TorchWeights(source, origin, tables, bottom, top)


class _Names:
    """Takes weights by name, and knows which were not taken."""

    def __init__(self, weights: dict[str, Array], source: str) -> None:
        self._weights = weights
        self._unread = dict.fromkeys(weights)
        self._source = source

    def take(self, name: str, rank: int) -> Array:
        """Return a weight of the given rank."""
        if name not in self._weights:
            raise DataError(f"{self._source}: holds no `{name}`.{did_you_mean(name, self._unread)}")
        self._unread.pop(name, None)
        weight = self._weights[name]
        if weight.ndim != rank:
            raise DataError(f"{self._source}: `{name}` must have rank {rank}. Received: shape {weight.shape}.")
        return weight

    def layer(self, name: str) -> TorchLayer:
        """Return one fully connected layer."""
        weight, bias = self.take(f"{name}.weight", 2), self.take(f"{name}.bias", 1)
        if bias.shape != weight.shape[:1]:
            raise DataError(
                f"{self._source}: `{name}.bias` must have a number for each output of `{name}.weight`, shape "
                f"{weight.shape}. Received: shape {bias.shape}."
            )
        return TorchLayer(name, weight, bias)

    def layers(self, pattern: str, step: int = 1) -> list[TorchLayer]:
        """Return the layers numbered 0, step, 2 step ...; each must fit the one before."""
        numbered = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)") + r"\.")
        last = max((int(match[1]) for name in self._weights if (match := numbered.match(name))), default=0)
        layers = [self.layer(pattern.format(i)) for i in range(0, last + 1, step)]
        self.refuse_unless_chained(layers)
        return layers

    def refuse_unless_chained(self, layers: list[TorchLayer]) -> None:
        """Raise unless each layer takes as many inputs as the one before has outputs."""
        for before, after in zip(layers, layers[1:], strict=False):
            if after.weight.shape[1] != before.weight.shape[0]:
                raise DataError(
                    f"{self._source}: `{after.name}.weight` must take the {before.weight.shape[0]} outputs of "
                    f"`{before.name}`. Received: shape {after.weight.shape}."
                )

    def tables(self, origin: Origin) -> list[TorchTable]:
        """Return the tables: by number, or in the order that the state dict has them in."""
        found: dict[str, dict[str, Array]] = {}
        for name in self._weights:
            match = _TABLES[origin].fullmatch(name)
            if match:
                weight = self.take(name, 2)
                part = _PARTS[match[2]]
                found.setdefault(match[1], {})[part] = weight.T if part == "projection" else weight
        if origin == "TorchRec":
            return [TorchTable(name, parts, None) for name, parts in found.items()]
        count = 1 + max(map(int, found), default=0)
        return [self._numbered(i, found.get(str(i), {})) for i in range(count)]

    def _numbered(self, number: int, parts: dict[str, Array]) -> TorchTable:
        name, key = f"emb_l.{number}", f"v_W_l.{number}"
        if not parts:
            self.take(f"{name}.weight", 2)
        if "projection" in parts:
            self.take(f"{name}.embs.weight", 2)
        if "quotient" in parts or "remainder" in parts:
            self.take(f"{name}.weight_q", 2)
            self.take(f"{name}.weight_r", 2)
        row_weights = self.take(key, 1) if key in self._weights else None
        if row_weights is not None and ("rows" not in parts or len(row_weights) != len(parts["rows"])):
            shapes = {part: array.shape for part, array in parts.items()}
            raise DataError(
                f"{self._source}: `{key}` must have a number for each row of a whole table `{name}`. "
                f"Received: shape {row_weights.shape}, table stored as {shapes}."
            )
        return TorchTable(name, parts, row_weights)

    def refuse_unread(self) -> None:
        """Raise if a weight has no place in a DLRM."""
        if self._unread:
            names = list(self._unread)
            raise DataError(
                f"{self._source}: holds weights that are no part of a DLRM: {names[:4]}"
                f"{f' and {len(names) - 4} more' if len(names) > 4 else ''}."
            )


def _array(weight: Any, name: str) -> Array:
    """Return a weight as an array; a tensor of PyTorch without importing it."""
    if isinstance(weight, Unread):
        raise DataError(
            f"{name} must be a plain tensor. Received: {weight.of}; gather sharded weights before they are saved."
        )
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu()
        # NumPy has no bfloat16 of its own; float32 holds all its values.
        weight = weight.float().numpy() if str(weight.dtype) == "torch.bfloat16" else weight.numpy()
    if not isinstance(weight, np.ndarray):
        raise DataError(f"{name} must be an array. Received: {_kind(weight)}.")
    if not (np.issubdtype(weight.dtype, np.floating) or weight.dtype == ml_dtypes.bfloat16):
        raise DataError(f"{name} must hold floating-point numbers. Received: {weight.dtype}.")
    return weight


def _kind(value: Any) -> str:
    return value.of if isinstance(value, Unread) else type(value).__name__
