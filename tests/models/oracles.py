"""Every model's forward pass in NumPy, float64, from its paper's formula; the weights are read out of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, product
from typing import Any

import numpy as np

Batch = Mapping[str, np.ndarray]


def forward(model: Any, batch: Batch) -> np.ndarray:
    """Return probabilities [B, 1]."""
    return 1 / (1 + np.exp(-ORACLES[type(model).__name__](model, batch)))


def pooled(collection: Any, spec: Any, batch: Batch) -> list[np.ndarray]:
    """Return the pooled vectors of the collection's features, each [B, d]; ids lie as `spec` says."""
    result = []
    for feature in collection.spec.sparse:
        columns = slice(*spec.id_columns[feature.name])
        ids = batch["sparse"][:, columns]
        table = collection.get_table(feature.table).astype(np.float64)
        share = (ids >= 0).astype(np.float64)
        if feature.weighted:
            share = share * batch["weights"][:, columns]
        total = np.einsum("bh,bhd->bd", share, table[np.maximum(ids, 0)])
        if feature.combiner == "mean" and (feature.hotness > 1 or feature.weighted):
            weight = share.sum(axis=1, keepdims=True)
            total = np.divide(total, weight, out=np.zeros_like(total), where=weight != 0)
        result.append(total)
    return result


def mlp(layer: Any, x: np.ndarray, last_is_linear: bool = True) -> np.ndarray:
    for i, dense in enumerate(layer.hidden):
        kernel, bias = dense.get_weights()
        x = x @ kernel.astype(np.float64) + bias
        if i < len(layer.hidden) - 1 or not last_is_linear:
            x = np.maximum(x, 0)
    return x


def linear(model: Any, batch: Batch) -> np.ndarray:
    """b + sum of id weights + w x."""
    result = sum(pooled(model.linear, model.spec, batch)) + model.linear_terms.bias.numpy()
    if model.linear_terms.weight is not None:
        result = result + batch["dense"] @ model.linear_terms.weight.numpy()
    return result


def vectors(model: Any, batch: Batch) -> list[np.ndarray]:
    """x_j v_j of dense features, then pooled vectors, each [B, d]."""
    scaled = []
    if model.dense_vectors is not None:
        scaled = [batch["dense"][:, [j]] * v for j, v in enumerate(model.dense_vectors.vectors.numpy())]
    return scaled + pooled(model.embedding, model.spec, batch)


def pairs(fields: list[np.ndarray]) -> np.ndarray:
    return sum((a * b).sum(axis=1, keepdims=True) for a, b in combinations(fields, 2))


def flat(model: Any, batch: Batch) -> np.ndarray:
    dense = [batch["dense"]] if model.spec.n_dense else []
    return np.concatenate([*dense, *pooled(model.embedding, model.spec, batch)], axis=1)


def crossed(network: Any, x0: np.ndarray) -> np.ndarray:
    x = x0
    for factors, bias in zip(network.kernels, network.biases, strict=True):
        matrix = np.linalg.multi_dot([f.numpy() for f in factors]) if len(factors) > 1 else factors[0].numpy()
        inside, outside = (0, bias.numpy()) if network.kernel == "vector" else (bias.numpy(), 0)
        x = x0 * (x @ matrix + inside) + outside + x
    return x


def logistic_regression(model: Any, batch: Batch) -> np.ndarray:
    return linear(model, batch)


def matrix_factorization(model: Any, batch: Batch) -> np.ndarray:
    user, item = pooled(model.embedding, model.spec, batch)
    biases = sum(pooled(model.linear, model.spec, batch)) + model.linear_terms.bias.numpy()
    return (user * item).sum(axis=1, keepdims=True) + biases


def factorization_machine(model: Any, batch: Batch) -> np.ndarray:
    return linear(model, batch) + pairs(vectors(model, batch))


def deepfm(model: Any, batch: Batch) -> np.ndarray:
    fields = vectors(model, batch)
    return linear(model, batch) + pairs(fields) + mlp(model.top, np.concatenate(fields, axis=1))


def xdeepfm(model: Any, batch: Batch) -> np.ndarray:
    fields = vectors(model, batch)
    maps, sums = fields, []
    for kernel in model.cin.get_weights():
        terms = [a * b for a in maps for b in fields]
        maps = [sum(w * term for w, term in zip(column, terms, strict=True)) for column in kernel.T]
        sums += [each.sum(axis=1, keepdims=True) for each in maps]
    cin = np.concatenate(sums, axis=1) @ model.cin_logit.get_weights()[0]
    return linear(model, batch) + cin + mlp(model.top, np.concatenate(fields, axis=1))


def wide_deep(model: Any, batch: Batch) -> np.ndarray:
    total = linear(model, batch) + mlp(model.top, flat(model, batch))
    features = {feature.name: feature for feature in model.spec.sparse}
    for cross in model.crosses_names:
        table = model.crosses.get_table(" x ".join(cross))[:, 0]
        mean = any(features[name].combiner == "mean" for name in cross)
        weighted = any(features[name].weighted for name in cross)
        for sample, ids in enumerate(batch["sparse"]):
            weights = batch["weights"][sample] if weighted else np.ones(len(ids))
            bags = [
                [(int(ids[c]), weights[c] if features[name].weighted else 1.0) for c in range(*columns)]
                for name in cross
                for columns in [model.spec.id_columns[name]]
            ]
            values, shares = [], []
            for combination in product(*bags):
                if all(one >= 0 for one, _ in combination):
                    row = _hash([one for one, _ in combination]) % model.cross_rows
                    share = float(np.prod([weight for _, weight in combination]))
                    values.append(share * table[row])
                    shares.append(share)
            bag = sum(values)
            if mean and shares:
                bag = bag / sum(shares)
            total[sample] += bag
    return total


def _hash(ids: list[int]) -> int:
    state = 0
    for one in ids:
        state = ((state ^ (one + 1)) * 0x9E3779B97F4A7C15) % 2**64
        state ^= state >> 32
    return state


def dcn(model: Any, batch: Batch) -> np.ndarray:
    """With the last layer as the paper has it: both sides one after the other, one product."""
    x0 = flat(model, batch)
    *hidden, last = model.top.hidden
    deep = x0
    for dense in hidden:
        kernel, bias = dense.get_weights()
        deep = np.maximum(deep @ kernel + bias, 0)
    kernel, bias = last.get_weights()
    both = np.concatenate([crossed(model.cross, x0), deep], axis=1)
    return both @ np.concatenate([model.cross_logit.get_weights()[0], kernel]) + bias


def dcn_v2(model: Any, batch: Batch) -> np.ndarray:
    if model.structure == "parallel":
        return dcn(model, batch)
    return mlp(model.top, crossed(model.cross, flat(model, batch)))


def dlrm(model: Any, batch: Batch) -> np.ndarray:
    fields = pooled(model.embedding, model.spec, batch)
    dense = []
    if model.bottom is not None:
        dense = [mlp(model.bottom, batch["dense"], last_is_linear=False)]
        fields = dense + fields
    if model.interaction_name == "cat":
        return mlp(model.top, np.concatenate(fields, axis=1))
    last = 1 if model.interaction_itself else 0
    products = [(fields[i] * fields[j]).sum(axis=1, keepdims=True) for i in range(len(fields)) for j in range(i + last)]
    return mlp(model.top, np.concatenate(dense + products, axis=1))


def dlrm_dcnv2(model: Any, batch: Batch) -> np.ndarray:
    fields = pooled(model.embedding, model.spec, batch)
    if model.bottom is not None:
        fields = [mlp(model.bottom, batch["dense"], last_is_linear=False), *fields]
    return mlp(model.top, crossed(model.cross, np.concatenate(fields, axis=1)))


ORACLES: dict[str, Callable[[Any, Batch], np.ndarray]] = {
    "LogisticRegression": logistic_regression,
    "MatrixFactorization": matrix_factorization,
    "FactorizationMachine": factorization_machine,
    "WideDeep": wide_deep,
    "DCN": dcn,
    "DCNv2": dcn_v2,
    "DeepFM": deepfm,
    "XDeepFM": xdeepfm,
    "DLRM": dlrm,
    "DLRMDCNv2": dlrm_dcnv2,
}
