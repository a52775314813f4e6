"""docs/coming_from/facebook_dlrm.md: every flag of the reference's script is there, and what it names here exists."""

from __future__ import annotations

import argparse
import re

import pytest

from docs.hooks.commands import parser_of, subcommands
from docs.hooks.configuration import keys_of
from tests.docs.blocks import ROOT
from tfdlrm.spec.config import RunConfig

# `parser.add_argument` of dlrm_s_pytorch.py, in its order.
FLAGS = """
arch-sparse-feature-size arch-embedding-size arch-mlp-bot arch-mlp-top arch-interaction-op arch-interaction-itself
weighted-pooling md-flag md-threshold md-temperature md-round-dims qr-flag qr-threshold qr-operation qr-collisions
activation-function loss-function loss-weights loss-threshold round-targets data-size num-batches data-generation
rand-data-dist rand-data-min rand-data-max rand-data-mu rand-data-sigma data-trace-file data-set raw-data-file
processed-data-file data-randomize data-trace-enable-padding max-ind-range data-sub-sample-rate num-indices-per-lookup
num-indices-per-lookup-fixed num-workers memory-map mini-batch-size nepochs learning-rate print-precision
numpy-rand-seed sync-dense-params optimizer dataset-multiprocessing inference-only quantize-mlp-with-bit
quantize-emb-with-bit save-onnx use-gpu local_rank dist-backend print-freq test-freq test-mini-batch-size
test-num-workers print-time print-wall-time debug-mode enable-profiling plot-compute-graph tensor-board-filename
save-model load-model mlperf-logging mlperf-acc-threshold mlperf-auc-threshold mlperf-bin-loader mlperf-bin-shuffle
mlperf-grad-accum-iter lr-num-warmup-steps lr-decay-start-step lr-num-decay-steps
""".split()  # noqa: SIM905
PAGE = (ROOT / "docs/coming_from/facebook_dlrm.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `--")]
KEYS = keys_of(RunConfig)
NAMES = [name for _, here, _ in ROWS for name in re.findall(r"`([^`]+)`", here)]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def test_every_flag_has_a_row() -> None:
    assert len(FLAGS) == 76
    assert sorted(row[0] for row in ROWS) == sorted(f"`--{flag}`" for flag in FLAGS)


def test_every_row_says_what_stands_for_it_or_why_nothing_does() -> None:
    assert [flag for flag, here, note in ROWS if not here and len(note) < 20] == []


@pytest.mark.parametrize("name", sorted({name for name in NAMES if " " not in name}))
def test_key_exists(name: str) -> None:
    assert name in KEYS


@pytest.mark.parametrize("words", sorted({name for name in NAMES if " " in name}))
def test_argument_exists(words: str) -> None:
    command, *inner = words.split()
    parser = parser_of(f"tfdlrm.pipelines.{command}")
    while inner and not inner[0].startswith("--"):
        parser = dict(subcommands(parser))[inner.pop(0)]
    assert set(inner) <= options_of(parser)
    # A command alone is one that has subcommands, or a subcommand.
    assert inner or words == "cluster run"


def test_keys_named_in_notes_exist() -> None:
    sections = "data|model|train|distribute|evaluate|export"
    named = {name for row in ROWS for name in re.findall(rf"`((?:{sections})(?:\.\w+)+)`", row[2])}
    assert named - set(KEYS) == set()


def test_keys_are_those_of_a_config() -> None:
    assert {"name", "data.sparse.hotness", "model.tables.dtype", "train.schedule.power"} <= set(KEYS)
    assert "model.no_such" not in KEYS


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_is_explained(key: str) -> None:
    """The page of all keys is made from docstrings: one that says nothing about a key leaves a gap there."""
    assert KEYS[key]
