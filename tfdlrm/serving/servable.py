"""One loaded version of a model: its signatures, ready to be called with arrays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfdlrm.serving.codec import TensorInfo
from tfdlrm.serving.errors import Code, StatusError, invalid
from tfdlrm.serving.tensors import Array

_TAGS = {"serve"}
# TensorFlow Serving says the names of DataType, not those of `tf.DType`.
_TYPE_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


@dataclasses.dataclass(frozen=True)
class Servable:
    """A version in memory. Requests hold a reference, so one that is being replaced stays until they are answered.

    Attributes:
        version: The number of its directory.
        signatures: What can be called, by name.
        metadata: All its SignatureDefs as JSON values, as `GET .../metadata` shows them.
        loaded: What `tf.saved_model.load` returned; it owns the variables the signatures read.
        definitions: The SignatureDefs themselves, by name.
    """

    version: int
    signatures: Mapping[str, Signature]
    metadata: Mapping[str, Any]
    loaded: Any
    definitions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _types: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict, repr=False)

    def signature(self, name: str) -> Signature:
        """Return a signature by name.

        Raises:
            StatusError: There is none of that name.
        """
        if name not in self.signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        return self.signatures[name]

    def input_types(self, name: str) -> Mapping[str, int]:
        """Return the DataType of each input of a signature, by input name; the signature must be there."""
        if name not in self._types:  # looked up for every request, which takes long in a message
            self._types[name] = {alias: info.dtype for alias, info in self.definitions[name].inputs.items()}
        return self._types[name]


def load_servable(path: Path, version: int) -> Servable:
    """Load a SavedModel with plain TensorFlow, as any server would: no Keras, no code of this package.

    Args:
        path: The version directory, which holds `saved_model.pb`.
        version: Its number.

    Raises:
        StatusError: There is no SavedModel, or it cannot be loaded.
    """
    file = path / "saved_model.pb"
    if not file.is_file():
        raise StatusError(Code.NOT_FOUND, f"Could not find SavedModel .pb at supplied export directory path: {path}")
    description = saved_model_pb2.SavedModel()
    try:
        description.ParseFromString(file.read_bytes())
        graphs = [graph for graph in description.meta_graphs if set(graph.meta_info_def.tags) == _TAGS]
        if not graphs:
            raise StatusError(Code.NOT_FOUND, f"Could not find meta graph def matching supplied tags: serve in {path}")
        loaded = tf.saved_model.load(str(path), tags=sorted(_TAGS))
        definitions = graphs[0].signature_def
        functions = loaded.signatures
        signatures = {name: Signature(functions[name], definitions[name]) for name in definitions if name in functions}
    except tf.errors.OpError as error:
        raise StatusError(_code(error), f"{error.message} ({path})") from error
    except DecodeError as error:
        raise StatusError(Code.DATA_LOSS, f"Cannot parse {file}: {error}") from error
    except StatusError:
        raise
    except Exception as error:  # a damaged model fails in whatever way its reader trips over it
        raise StatusError(Code.UNKNOWN, f"{type(error).__name__}: {error} ({path})") from error
    metadata = {name: _to_json(definitions[name]) for name in definitions}
    return Servable(version, signatures, metadata, loaded, {name: definitions[name] for name in definitions})


class Signature:
    """A named function of a SavedModel over arrays.

    A ranking model has dozens of inputs of one type and shape, and handing each to TensorFlow costs more than a small
    model takes to answer. So such inputs are stacked into one tensor, which the graph takes apart again.
    """

    def __init__(self, function: Callable[..., Any], definition: Any) -> None:
        """Wrap one signature.

        Args:
            function: The loaded function; takes its tensors by keyword.
            definition: Its SignatureDef.
        """
        self.inputs: Mapping[str, TensorInfo] = {name: _info(i) for name, i in sorted(definition.inputs.items())}
        self._function = function
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, info in self.inputs.items():
            # Without a known rank there is no telling what would stack: such an input is a group of its own.
            kind = (info.dtype, info.shape) if info.shape is not None else (info.dtype, None, name)
            groups.setdefault(kind, []).append(name)
        self._groups = list(groups.values())
        self._packed: Callable[..., Any] | None = None
        if len(self._groups) < len(self.inputs):
            types = {name: tf.dtypes.as_dtype(info.dtype) for name, info in definition.inputs.items()}
            self._packed = self._pack([types[names[0]] for names in self._groups])

    def _pack(self, types: list[Any]) -> Callable[..., Any]:
        """Return the function over one tensor per group, the members of a group stacked on a new first axis."""

        def unpack(*stacks: tf.Tensor) -> Any:
            members: dict[str, tf.Tensor] = {}
            for names, stack in zip(self._groups, stacks, strict=True):
                members.update(zip(names, tf.unstack(stack) if len(names) > 1 else [stack], strict=True))
            return self._function(**members)

        specs = []
        for names, dtype in zip(self._groups, types, strict=True):
            shape = self.inputs[names[0]].shape
            specs.append(tf.TensorSpec((len(names), *shape) if shape is not None and len(names) > 1 else shape, dtype))
        packed: Callable[..., Any] = tf.function(unpack, autograph=False).get_concrete_function(*specs)
        return packed

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the function.

        Args:
            arrays: One array for each input, of its type.

        Returns:
            The outputs by name; strings as objects of `bytes`.

        Raises:
            StatusError: A shape the signature does not take, or what TensorFlow refused while running.
        """
        self.check_shapes(arrays)
        try:
            outputs = self._run(arrays)
        except tf.errors.OpError as error:
            raise StatusError(_code(error), _reason(error)) from error
        return {
            name: np.asarray(value.numpy(), dtype=object if value.dtype == tf.string else None)
            for name, value in outputs.items()
        }

    def check_shapes(self, arrays: Mapping[str, Array]) -> None:
        """Refuse arrays of shapes the signature does not take.

        Raises:
            StatusError: INVALID_ARGUMENT, naming the input.
        """
        for name, info in self.inputs.items():
            _check_shape(name, arrays[name].shape, info.shape)

    def _run(self, arrays: Mapping[str, Array]) -> Mapping[str, Any]:
        outputs: Mapping[str, Any]
        groups = [[arrays[name] for name in names] for names in self._groups]
        if self._packed is not None and all(len({array.shape for array in group}) == 1 for group in groups):
            outputs = self._packed(*(tf.constant(np.stack(group) if len(group) > 1 else group[0]) for group in groups))
        else:
            outputs = self._function(**{name: tf.constant(arrays[name]) for name in self.inputs})
        return outputs


def _info(tensor: Any) -> TensorInfo:
    name = tf.dtypes.as_dtype(tensor.dtype).name
    shape = None
    if not tensor.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else dim.size for dim in tensor.tensor_shape.dim)
    return TensorInfo(_TYPE_NAMES.get(name, name), shape)


def _check_shape(name: str, shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> None:
    if wanted is None:
        return
    if len(shape) != len(wanted) or any(size not in (None, got) for got, size in zip(shape, wanted, strict=True)):
        expected = ",".join("?" if size is None else str(size) for size in wanted)
        raise invalid(f"Input {name} must have the shape [{expected}], the batch first. Received: {list(shape)}")


def _to_json(definition: Any) -> Any:
    return MessageToDict(definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _code(error: tf.errors.OpError) -> Code:
    return Code(error.error_code) if error.error_code in set(Code) else Code.UNKNOWN


def _reason(error: tf.errors.OpError) -> str:
    """Return what an op said, without the notes on where in Python the graph was once built."""
    message = str(error.message).rpartition("<stack traces unavailable>\n")[2]
    return re.sub(r" \[Op:[^\]]*\]$", "", message)
