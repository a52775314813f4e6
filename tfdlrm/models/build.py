"""From spec and configuration to a model."""

from __future__ import annotations

import tf_keras as keras

from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.config import ModelConfig
from tfdlrm.spec.errors import ConfigError, did_you_mean
from tfdlrm.spec.features import FeatureSpec

MODELS = {"dlrm": DLRM}


def build(config: ModelConfig, spec: FeatureSpec, precision: str = "float32", seed: int | None = None) -> keras.Model:
    """Return the model `config.name` with its weights created.

    Args:
        config: The `[model]` section.
        spec: Features and tables; its tables take `config.embedding_dim`.
        precision: Dtype policy of the dense part. Defaults to `"float32"`.
        seed: Seed of the initial weights. Defaults to `None`.

    Raises:
        ConfigError: the name is unknown or the widths do not fit.
    """
    if config.name not in MODELS:
        raise ConfigError(
            f"`model.name` must be one of {sorted(MODELS)}. "
            f"Received: `{config.name}`.{did_you_mean(config.name, MODELS)}"
        )
    try:
        model = MODELS[config.name](
            spec.with_embedding_dim(config.embedding_dim),
            seed=seed,
            dtype=keras.mixed_precision.Policy(precision),
            **config.model_dump(exclude={"name", "embedding_dim"}),
        )
    except ValueError as error:
        raise ConfigError(f"in `model`: {error}") from None
    model.build()
    return model
