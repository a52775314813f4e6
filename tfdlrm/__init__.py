"""DLRM in Keras and TensorFlow: raw click logs in, a served model out.

The names below are imported when they are first used, so `import tfdlrm` and `import tfdlrm.spec` load no TensorFlow.

Example:
    ```python
    import tfdlrm

    spec = tfdlrm.FeatureSpec(
        tables=[tfdlrm.TableConfig(name="item", vocabulary_size=1000, embedding_dim=8)],
        dense=[tfdlrm.DenseFeature(name="price")],
        sparse=[tfdlrm.SparseFeature(name="item", table="item")],
    )
    model = tfdlrm.DLRM(spec, bottom_units=[16, 8], top_units=[16, 1])
    ```
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdlrm.data.dataset import packed_dataset
    from tfdlrm.data.encoder import FeatureEncoder
    from tfdlrm.layers.cin import CompressedInteraction
    from tfdlrm.layers.cross import CrossNetwork
    from tfdlrm.layers.dense_vectors import DenseVectors
    from tfdlrm.layers.embedding import EmbeddingCollection
    from tfdlrm.layers.factorization import FactorizationInteraction
    from tfdlrm.layers.interaction import DotInteraction
    from tfdlrm.layers.linear import LinearTerms
    from tfdlrm.layers.mlp import MLP
    from tfdlrm.metrics.binary import evaluate_binary
    from tfdlrm.models.click_model import ClickModel
    from tfdlrm.models.dcn import DCN
    from tfdlrm.models.dcn_v2 import DCNv2
    from tfdlrm.models.deepfm import DeepFM
    from tfdlrm.models.dlrm import DLRM
    from tfdlrm.models.dlrm_dcnv2 import DLRMDCNv2
    from tfdlrm.models.factorization_machine import FactorizationMachine
    from tfdlrm.models.logistic_regression import LogisticRegression
    from tfdlrm.models.matrix_factorization import MatrixFactorization
    from tfdlrm.models.wide_deep import WideDeep
    from tfdlrm.models.xdeepfm import XDeepFM
    from tfdlrm.pipelines.dataframe import from_dataframe
    from tfdlrm.pipelines.table_data import TableData
    from tfdlrm.spec.budget import fit_budget
    from tfdlrm.spec.config import RunConfig, load_config
    from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig
    from tfdlrm.training.optimizers import DLRMOptimizer
    from tfdlrm.training.row_optimizers import SGD, Adagrad, Ftrl, LazyAdam, RowWiseAdagrad

__version__ = "0.1.0"

__all__ = [
    "DCN",
    "DLRM",
    "MLP",
    "SGD",
    "Adagrad",
    "ClickModel",
    "CompressedInteraction",
    "CrossNetwork",
    "DCNv2",
    "DLRMDCNv2",
    "DLRMOptimizer",
    "DeepFM",
    "DenseFeature",
    "DenseVectors",
    "DotInteraction",
    "EmbeddingCollection",
    "FactorizationInteraction",
    "FactorizationMachine",
    "FeatureEncoder",
    "FeatureSpec",
    "Ftrl",
    "LazyAdam",
    "LinearTerms",
    "LogisticRegression",
    "MatrixFactorization",
    "RowWiseAdagrad",
    "RunConfig",
    "SparseFeature",
    "TableConfig",
    "TableData",
    "WideDeep",
    "XDeepFM",
    "evaluate_binary",
    "fit_budget",
    "from_dataframe",
    "load_config",
    "packed_dataset",
]

_HOMES = {
    "Adagrad": "tfdlrm.training.row_optimizers",
    "ClickModel": "tfdlrm.models.click_model",
    "CompressedInteraction": "tfdlrm.layers.cin",
    "CrossNetwork": "tfdlrm.layers.cross",
    "DCN": "tfdlrm.models.dcn",
    "DCNv2": "tfdlrm.models.dcn_v2",
    "DLRM": "tfdlrm.models.dlrm",
    "DLRMDCNv2": "tfdlrm.models.dlrm_dcnv2",
    "DLRMOptimizer": "tfdlrm.training.optimizers",
    "DeepFM": "tfdlrm.models.deepfm",
    "DenseFeature": "tfdlrm.spec.features",
    "DenseVectors": "tfdlrm.layers.dense_vectors",
    "DotInteraction": "tfdlrm.layers.interaction",
    "EmbeddingCollection": "tfdlrm.layers.embedding",
    "FactorizationInteraction": "tfdlrm.layers.factorization",
    "FactorizationMachine": "tfdlrm.models.factorization_machine",
    "FeatureEncoder": "tfdlrm.data.encoder",
    "FeatureSpec": "tfdlrm.spec.features",
    "Ftrl": "tfdlrm.training.row_optimizers",
    "LazyAdam": "tfdlrm.training.row_optimizers",
    "LinearTerms": "tfdlrm.layers.linear",
    "LogisticRegression": "tfdlrm.models.logistic_regression",
    "MLP": "tfdlrm.layers.mlp",
    "MatrixFactorization": "tfdlrm.models.matrix_factorization",
    "RowWiseAdagrad": "tfdlrm.training.row_optimizers",
    "RunConfig": "tfdlrm.spec.config",
    "SGD": "tfdlrm.training.row_optimizers",
    "SparseFeature": "tfdlrm.spec.features",
    "TableConfig": "tfdlrm.spec.features",
    "TableData": "tfdlrm.pipelines.table_data",
    "WideDeep": "tfdlrm.models.wide_deep",
    "XDeepFM": "tfdlrm.models.xdeepfm",
    "evaluate_binary": "tfdlrm.metrics.binary",
    "fit_budget": "tfdlrm.spec.budget",
    "from_dataframe": "tfdlrm.pipelines.dataframe",
    "load_config": "tfdlrm.spec.config",
    "packed_dataset": "tfdlrm.data.dataset",
}

_PACKAGES = ("serving", "tuning")
"""Whose names are asked for with the package before them, as in `tfdlrm.tuning.search`."""


def _choose_keras() -> None:
    """Make `tf.keras` mean tf_keras in this process and those it starts.

    Raises:
        ImportError: If `tf.keras` was used earlier and means another Keras already.
    """
    tensorflow = sys.modules.get("tensorflow")
    # Until it is first used `tf.keras` is a placeholder without a file; reading its dictionary leaves it one.
    keras = None if tensorflow is None else vars(tensorflow).get("keras")
    origin = None if keras is None else vars(keras).get("__file__")
    if origin is not None and "tf_keras" not in origin.split(os.sep):
        version = vars(keras).get("__version__", "of another kind")
        raise ImportError(
            f"`tf.keras` is already Keras {version} in this process, and tfdlrm needs Keras 2 (tf_keras). "
            "Import tfdlrm before the first use of `tf.keras`, or start Python with TF_USE_LEGACY_KERAS=1."
        )
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


_choose_keras()


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"tfdlrm.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tfdlrm' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
