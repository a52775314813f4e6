"""Classify and regress on one servable: what TensorFlow Serving checks before and after a run.

Either transport and the replay at load end here, so that a request is judged the same whichever way it came. As in
TensorFlow Serving without `--enable_signature_method_name_check`, a signature is judged by the names of its inputs and
outputs and not by its method name: TensorFlow 2 writes "predict" into all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdlrm.serving.errors import invalid
from tfdlrm.serving.tensors import Array

if TYPE_CHECKING:
    from tfdlrm.serving.servable import Servable


def classify(servable: Servable, signature_name: str, examples: Sequence[bytes]) -> tuple[Array, Array]:
    """Run a classify signature.

    Args:
        servable: The version asked.
        signature_name: Which signature; it must take `inputs` and give `classes`, `scores` or both.
        examples: Serialized `tf.train.Example`, at least one.

    Returns:
        Labels, objects of `bytes` `[B, C]`, empty where the signature has none; scores, float32 `[B, C]`, 0 where it
        has none.

    Raises:
        StatusError: No such signature, no classify signature, or outputs of another type or shape.
    """
    check_classify(_definition(servable, signature_name, "No signature was found with the name: "))
    outputs = servable.signature(signature_name)({"inputs": _examples(examples)})
    labels, scores = outputs.get("classes"), outputs.get("scores")
    for name, array, dtype in (("classes", labels, "DT_STRING"), ("scores", scores, "DT_FLOAT")):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)}")
        if array.dtype != (np.object_ if dtype == "DT_STRING" else np.float32):
            raise invalid(f"Expected {name} Tensor of {dtype}. Got: {array.dtype.name}")
        if len(array) != len(examples):
            raise invalid(f"Expected {name} output batch size of {len(examples)}. Got: {len(array)}")
    if labels is None:
        assert scores is not None  # `check_classify` has seen one of the two
        labels = np.full(scores.shape, b"", np.object_)
    if scores is None:
        scores = np.zeros(labels.shape, np.float32)
    if labels.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    return labels, scores


def regress(servable: Servable, signature_name: str, examples: Sequence[bytes]) -> Array:
    """Run a regress signature.

    Args:
        servable: The version asked.
        signature_name: Which signature; it must take `inputs` and give `outputs`.
        examples: Serialized `tf.train.Example`, at least one.

    Returns:
        float32 `[B]`.

    Raises:
        StatusError: No such signature, no regress signature, or an output of another type or shape.
    """
    check_regress(_definition(servable, signature_name, "No signature was found with the name: "))
    values = servable.signature(signature_name)({"inputs": _examples(examples)})["outputs"]
    if values.ndim != 1 and (values.ndim != 2 or values.shape[1] != 1):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(values.shape)}"
        )
    if len(values) != len(examples):
        raise invalid(f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype.name}")
    return values.reshape(-1)


def check_classify(definition: Any) -> None:
    """Refuse a SignatureDef that cannot classify.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(definition.outputs)}")
    if "inputs" not in definition.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {_names(definition)}")
    if not {"classes", "scores"} & set(definition.outputs):
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {_names(definition)}"
        )


def check_regress(definition: Any) -> None:
    """Refuse a SignatureDef that cannot regress.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(definition.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in definition.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {_names(definition)}")
    if "outputs" not in definition.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_names(definition)}")


def _definition(servable: Servable, signature_name: str, refusal: str) -> Any:
    if signature_name not in servable.definitions:
        raise invalid(refusal + signature_name)
    return servable.definitions[signature_name]


def _names(definition: Any) -> str:
    return f"inputs {sorted(definition.inputs)}, outputs {sorted(definition.outputs)}"


def _examples(examples: Sequence[bytes]) -> Array:
    if not examples:
        raise invalid("Input is empty.")
    array = np.empty(len(examples), np.object_)
    array[:] = examples
    return array
