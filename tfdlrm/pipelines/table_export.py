"""What `[export]` of a recipe says, kept to where a model of a table in memory is exported."""

from __future__ import annotations

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.encoder_files import EncoderParts
from tfdlrm.spec.coding import Unseen
from tfdlrm.spec.config import ExportConfig
from tfdlrm.spec.errors import ConfigError


def refuse_unkept(rules: ExportConfig, verify: bool, split: str) -> None:
    """Raise where `[export]` asks for what is not done for a table in memory, or cannot be said of its rows.

    Args:
        rules: What it asks for.
        verify: Whether the export is verified.
        split: The rows that it is judged on, `"train"` where there are no others.

    Raises:
        ConfigError: it does; the message names the setting.
    """
    if rules.tables != "float32":
        raise ConfigError(
            '`export.tables` must be "float32" for a table in memory: only the pipelines judge what fewer bytes cost. '
            f"Received: {rules.tables!r}."
        )
    if rules.no_regression and not verify:
        raise ConfigError("`export.no_regression` must be false where `verify` is: answers are what is compared.")
    if split == "train" and (rules.no_regression or rules.min_auc is not None):
        name = "no_regression" if rules.no_regression else "min_auc"
        raise ConfigError(f"`export.{name}` must be absent where every row trains: there are no rows to judge on.")


def serving_encoder(encoder: FeatureEncoder, unseen: Unseen | None) -> FeatureEncoder:
    """Return the encoder as it is served: values without a row count as `unseen` says.

    Raises:
        SpecError: `unseen` names no row of a table that needs one.
    """
    if unseen is None:
        return encoder
    parts = EncoderParts(encoder.spec, encoder.encoding, encoder.vocabularies, dict(encoder.dense_stats))
    return FeatureEncoder(*parts.serving(unseen))
