"""How published results prepared Criteo, as settings of `[data]`, read in the sources of each.

`tfdlrm.spec.recipes` makes configurations of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tfdlrm.spec.criteo import DENSE_COLUMNS, MLPERF_V2, SPARSE_COLUMNS
from tfdlrm.spec.errors import ConfigError, did_you_mean

DATASETS = ("kaggle", "terabyte")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A recipe of others.

    Attributes:
        name: Its name here.
        title: Whose it is.
        source: Where its rules were read.
        notes: What the source leaves open or does otherwise, and what is done here instead.
        make: Returns the settings for a data set, told `max_ind_range` and `min_count`, `None` for the source's own.
        max_ind_range: What that argument means here; `None` where there is nothing it could change.
        min_count: The same.
    """

    name: str
    title: str
    source: str
    notes: tuple[str, ...]
    make: Callable[[str, int | None, int | None], Settings]
    max_ind_range: str | None = None
    min_count: str | None = None

    def settings(self, dataset: str, max_ind_range: int | None = None, min_count: int | None = None) -> Settings:
        """Return the recipe as `[data]` states it.

        Args:
            dataset: `"kaggle"` or `"terabyte"`.
            max_ind_range: As `--max-ind-range` of facebookresearch/dlrm. Defaults to what the source's command has.
            min_count: Fewest times a value is seen that gets a row of its own. Defaults to what the source's command
                has.

        Raises:
            ConfigError: the data set is unknown, or the recipe has no such setting.
        """
        if dataset not in DATASETS:
            raise ConfigError(
                f"`dataset` must be one of {', '.join(DATASETS)}. Received: {dataset!r}."
                f"{did_you_mean(str(dataset), DATASETS)}"
            )
        for name, value, meaning in (
            ("max_ind_range", max_ind_range, self.max_ind_range),
            ("min_count", min_count, self.min_count),
        ):
            if value is not None and meaning is None:
                raise ConfigError(f"`{name}` must be left out of the recipe `{self.name}`. Received: {value}.")
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be at least 1. Received: {value}.")
        return self.make(dataset, max_ind_range, min_count)


def published(name: object) -> Published:
    """Return the recipe of that name.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(
            f"`recipe` must be one of {', '.join(RECIPES)}. Received: {name!r}.{did_you_mean(str(name), RECIPES)}"
        )
    return RECIPES[name]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """Return settings with changes on top, section by section; a list replaces a list.

    Example:
        >>> merged({"coding": {"min_count": 3, "first_id": 0}}, {"coding": {"min_count": 1}})
        {'coding': {'min_count': 1, 'first_id': 0}}
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _days(dataset: str, **more: Any) -> Settings:
    """Return the split whose last day is held out: of seven equal parts, or of the files."""
    return {"by": "days", "days": 7 if dataset == "kaggle" else 0, **more}


def _dense(transform: str) -> list[Settings]:
    return [{"name": name, "transform": transform} for name in DENSE_COLUMNS]


def _sparse(**of_each: tuple[int, ...]) -> list[Settings]:
    columns = []
    for place, name in enumerate(SPARSE_COLUMNS):
        columns.append({"name": name, **{key: values[place] for key, values in of_each.items()}})
    return columns


def _given(**values: Any) -> Settings:
    return {key: value for key, value in values.items() if value is not None}


def _fb(dataset: str, max_ind_range: int | None, min_count: int | None) -> Settings:
    modulus = 10_000_000 if max_ind_range is None and dataset == "terabyte" else max_ind_range
    coding = {"missing_key": 0, "id_order": "first_seen", "first_id": 0, "oov_row": "none"}
    return {
        "dense": _dense("log1p"),
        "coding": {**coding, **_given(modulus=modulus)},
        "vocabulary_rows": "all",
        "split": _days(dataset),
        **({"drop_negatives": 0.875} if dataset == "terabyte" else {}),
    }


def _torchrec(dataset: str, max_ind_range: int | None, min_count: int | None) -> Settings:
    rows = MLPERF_V2 if max_ind_range is None else (max_ind_range,) * len(MLPERF_V2)
    if dataset == "kaggle":
        if min_count is not None:
            raise ConfigError(
                "`min_count` must be left out of the recipe `torchrec` for kaggle, which counts nothing. "
                f"Received: {min_count}."
            )
        return {
            "dense": _dense("log_file_minimum"),
            "sparse": _sparse(kind=("modulo",) * len(rows), buckets=rows),  # type: ignore[arg-type]
            "coding": {"missing_key": 0, "first_id": 0, "oov_row": 0},
            "split": {"by": "whole_and_half"},
        }
    coding = {"missing_key": 0, "id_order": "first_seen", "rare_row": 1, "first_id": 2, "oov_row": "none"}
    return {
        "dense": _dense("log_file_minimum"),
        "sparse": _sparse(id_modulus=rows),
        "coding": {**coding, **_given(min_count=min_count)},
        "vocabulary_rows": "all",
        "split": _days(dataset, last_day="validation_first"),
    }


def _nvidia(dataset: str, max_ind_range: int | None, min_count: int | None) -> Settings:
    return {
        "dense": _dense("log3_half"),
        "coding": {
            **{"min_count": 15 if min_count is None else min_count, "id_order": "count"},
            **{"missing_row": 0, "rare_row": 0, "oov_row": 0, "first_id": 1},
        },
        "vocabulary_rows": "all",
        "split": _days(dataset, odd_row="second"),
    }


def _tfm(dataset: str, max_ind_range: int | None, min_count: int | None) -> Settings:
    modulus = 5_000_000 if max_ind_range is None else max_ind_range
    coding = {"modulus": modulus, "missing_key": 0, "id_order": "count_digits", "first_id": 0, "oov_row": "none"}
    return {
        "dense": _dense("log1p"),
        "coding": coding,
        "vocabulary_rows": "all",
        "split": _days(dataset, last_day="test"),
    }


def _tfdlrm(dataset: str, max_ind_range: int | None, min_count: int | None) -> Settings:
    return {"coding": _given(min_count=min_count), "split": _days(dataset)}


_KAGGLE_IS_OURS = (
    "The source knows the Terabyte set only; for kaggle the file is cut into seven days of equal length, as "
    "facebookresearch/dlrm cuts it, and the last day is used as the source uses day 23."
)
_ORDER = "The order of rows, which the source may shuffle, is that of the raw files: training shuffles."

RECIPES: dict[str, Published] = {
    recipe.name: recipe
    for recipe in (
        Published(
            name="fb",
            title="facebookresearch/dlrm",
            source="facebookresearch/dlrm: data_utils.py, dlrm_data_pytorch.py, and the scripts "
            "bench/dlrm_s_criteo_{kaggle,terabyte}.sh with the options that the README shows for them",
            notes=(
                "With drop_negatives, which rows are left out is drawn from another generator, so that a run can be "
                "resumed; the last day's halves are halves of its raw rows, where the source halves what is left.",
                "The source takes ids modulo max_ind_range once more when it reads them, which changes none of them.",
                "Without max_ind_range the source stores hashes as int32, which wraps around up to NumPy 1 and fails "
                "from NumPy 2 on; wrapped or not, ids are the same, as no two hashes of 32 bits fall together.",
                _ORDER,
            ),
            make=_fb,
            max_ind_range="keys are taken modulo this",
        ),
        Published(
            name="torchrec",
            title="TorchRec and facebookresearch/dlrm/torchrec_dlrm",
            source="torchrec/datasets/criteo.py with its scripts npy_preproc_criteo and contiguous_preproc_criteo, and "
            "torchrec_dlrm/data/dlrm_dataloader.py, run as torchrec_dlrm/README.MD and its script "
            "process_Criteo_1TB_Click_Logs_dataset.sh do (threshold 0, the table sizes of MLPerf v2)",
            notes=(
                "For terabyte the source's shuffle holds ids as float32 in between, which merges ids above 16,777,216 "
                "with their neighbours in training rows; here they stay exact.",
                "The source's NVTabular scripts are another recipe: ln(x + 3) with missing as 0 before the logarithm "
                '(transform "log3_filled").',
                "For kaggle, text that is no hexadecimal number, which stops the source, counts as missing.",
                _ORDER,
            ),
            make=_torchrec,
            max_ind_range="rows of every table, modulo which ids (kaggle: hashes) are taken",
            min_count="terabyte only: values seen fewer times share row 1",
        ),
        Published(
            name="nvidia",
            title="NVIDIA DeepLearningExamples, DLRM",
            source="DeepLearningExamples: PyTorch/Recommendation/DLRM/preproc/spark_data_utils.py, which "
            "TensorFlow2/Recommendation/DLRM_and_DCNv2/preproc runs too, with that folder's run_spark_cpu.sh and "
            "split_dataset.py",
            notes=(
                "Equally frequent values come in any order in the source (Spark promises none); here the one with the "
                "smaller key comes first.",
                "The source tells values apart by their text; here by the number it stands for. Criteo's eight "
                "lower-case digits make no difference.",
                "The source writes the second half of the last day, and leaves it out of its feature specification: "
                "nothing validates there.",
                _KAGGLE_IS_OURS,
                _ORDER,
            ),
            make=_nvidia,
            min_count="values seen fewer times share row 0; 15 unless it is said",
        ),
        Published(
            name="tfm",
            title="tensorflow/models, official/recommendation/ranking",
            source="tensorflow/models: official/recommendation/ranking/preprocessing/criteo_preprocess.py with the "
            "commands of its README, and tensorflow/transform for the order of a vocabulary",
            notes=(
                "max_vocab_size is a modulus there, not a largest size: 5,000,000 in the README's commands, 10,000,000 "
                "in the script, 40,000,000 in the published table sizes.",
                "Day 23 is the source's only held-out set, used to validate and to judge; here it tests.",
                _KAGGLE_IS_OURS,
                _ORDER,
            ),
            make=_tfm,
            max_ind_range="keys are taken modulo this (the source's max_vocab_size)",
        ),
        Published(
            name="tfdlrm",
            title="this project",
            source="this project",
            notes=(),
            make=_tfdlrm,
            min_count="values seen fewer times in training rows share row 1; 1 unless it is said",
        ),
    )
}
