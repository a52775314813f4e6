"""What a written SavedModel says of its signatures, where TensorFlow 2 has no way to say it before it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import fingerprint_pb2, meta_graph_pb2, saved_model_pb2

_MODEL, _FINGERPRINT = "saved_model.pb", "fingerprint.pb"
_BITS = 2**64 - 1
_FACTOR = 0xC6A4A7935BD1E995  # of MurmurHash


def rewrite_signatures(
    directory: Path, inputs: Mapping[str, Mapping[str, str]], methods: Mapping[str, str] | None = None
) -> None:
    """Give signatures of a written SavedModel the names of their inputs and of their methods.

    The fingerprint gets the hash of the signatures as they are then, and stays that of this model: graph, functions and
    variables are not touched. It loses `saved_model_checksum`, that of the file as it was, which TensorFlow makes out
    of bytes that Python cannot make. Where the signatures are hashed by a rule not known here, all of it goes: loaders
    do without one.

    Args:
        directory: A SavedModel.
        inputs: By signature, the name that each input was traced with, by the name that it shall have.
        methods: Method names by signature. Defaults to none.
    """
    path = directory / _MODEL
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = model.meta_graphs[0]
    hashed = _hash_of(graph)
    for signature, names in inputs.items():
        if any(name != wanted for wanted, name in names.items()):
            _rename(graph, signature, {name: wanted for wanted, name in names.items()})
    for signature, method in (methods or {}).items():
        graph.signature_def[signature].method_name = method
    path.write_bytes(model.SerializeToString(deterministic=True))
    _sign(directory / _FINGERPRINT, hashed, _hash_of(graph))


def _rename(graph: meta_graph_pb2.MetaGraphDef, signature: str, wanted: Mapping[str, str]) -> None:
    definition = graph.signature_def[signature]
    inputs = dict(definition.inputs)
    definition.ClearField("inputs")
    for name, info in inputs.items():
        definition.inputs[wanted[name]].CopyFrom(info)
    # What servers read is done; this is what TensorFlow's Python loader calls the function by.
    for node in graph.object_graph_def.nodes:
        function = node.bare_concrete_function
        if node.WhichOneof("kind") == "bare_concrete_function" and set(function.argument_keywords) == set(inputs):
            renamed = [wanted[name] for name in function.argument_keywords]
            function.ClearField("argument_keywords")
            function.argument_keywords.extend(renamed)


def _sign(path: Path, before: int, after: int) -> None:
    if not path.is_file():
        return
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    if fingerprint.signature_def_hash != before:
        path.unlink()
        return
    fingerprint.signature_def_hash = after
    fingerprint.ClearField("saved_model_checksum")
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))


def _hash_of(graph: meta_graph_pb2.MetaGraphDef) -> int:
    """Return TensorFlow's hash of all signatures: names and definitions, in the order of the names."""
    total = 0
    for name in sorted(graph.signature_def):
        for content in (name.encode(), _in_order(graph.signature_def[name])):
            [digest] = tf.fingerprint(tf.constant([content])).numpy()
            total = _combined(total, int.from_bytes(digest.tobytes(), "little"))
    return total


def _in_order(definition: meta_graph_pb2.SignatureDef) -> bytes:
    """Return a definition with its maps in the order of their keys: Python's deterministic order is another one."""
    pieces = [
        [meta_graph_pb2.SignatureDef(inputs={name: definition.inputs[name]}) for name in sorted(definition.inputs)],
        [meta_graph_pb2.SignatureDef(outputs={name: definition.outputs[name]}) for name in sorted(definition.outputs)],
        [meta_graph_pb2.SignatureDef(method_name=definition.method_name)],
        [
            meta_graph_pb2.SignatureDef(defaults={name: definition.defaults[name]})
            for name in sorted(definition.defaults)
        ],
    ]
    return b"".join(piece.SerializeToString() for field in pieces for piece in field)


def _combined(first: int, second: int) -> int:
    """Return the fingerprint of two, by TensorFlow's rule: the mixing step of MurmurHash 2 in 64 bits."""
    mixed = _folded(second * _FACTOR & _BITS) * _FACTOR & _BITS
    total = ((first ^ _FACTOR) ^ mixed) * _FACTOR & _BITS
    return _folded(_folded(total) * _FACTOR & _BITS)


def _folded(value: int) -> int:
    return value ^ (value >> 47)
