"""`python -m tfdlrm.pipelines.import_torch`: a DLRM of facebookresearch/dlrm or TorchRec as a model of this package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdlrm.data.files import publish
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.table import print_tables
from tfdlrm.report.html import Table
from tfdlrm.spec.coding import NO_ROW, Unseen
from tfdlrm.spec.errors import ConfigError, SpecError, why_unreadable
from tfdlrm.spec.features import FeatureSpec

if TYPE_CHECKING:
    from tfdlrm.data.encoder import FeatureEncoder
    from tfdlrm.export.torch_names import TorchWeights

_WORDS = ("zeros", "missing", "rare")
_EXAMPLES = {
    "--checkpoint dlrm.pt": "only look: layers, tables, shapes",
    "--checkpoint dlrm.pt --out saved_models/dlrm": "export it for serving",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.import_torch", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="file of torch.save, or .npz of the same names")
    add("--out", type=Path, metavar="PATH", help="FILE.keras, or a folder of versions for serving (default: only look)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--spec", type=Path, metavar="FILE", help="what the model reads: a FeatureSpec as JSON")
    source.add_argument(
        "--tables-from",
        type=Path,
        metavar="DIR",
        help="prepared data set: the model reads what it holds, and the export raw values",
    )
    add("--unseen", type=_unseen, metavar="HOW", help=f"a value without a row counts as: {', '.join(_WORDS)}, or a row")
    add("--interaction", choices=("dot", "cat"), help="where the shapes allow both")
    add("--qr-operation", choices=("mult", "add"), help="how quotient and remainder rows are composed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _unseen(text: str) -> Unseen:
    if text in _WORDS:
        return text  # type: ignore[return-value]
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be one of {', '.join(_WORDS)}, or a row. Received: {text!r}.")


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.checkpoint, args.spec)
    to_keras = args.out is not None and args.out.suffix == ".keras"
    if to_keras:
        refuse_directories(args.out)
    elif args.out is not None and args.tables_from is None and args.unseen is None:
        raise ConfigError(
            "`--unseen` must say what an id outside its table counts as: zeros, or a row. Received: none."
        )
    if args.tables_from is None and args.unseen in ("missing", "rare"):
        raise ConfigError(f"`--unseen` must be zeros or a row without --tables-from. Received: {args.unseen}.")
    load_tensorflow()
    from tfdlrm.export import torch_dlrm

    weights = torch_dlrm.read(args.checkpoint)
    encoder = _encoder(args)
    spec = encoder.spec.with_embedding_dim(weights.embedding_dim) if encoder is not None else _spec(args.spec)
    model = torch_dlrm.load(weights, spec, interaction=args.interaction, qr_operation=args.qr_operation)
    print_tables(*_architecture(weights, model))
    if to_keras:
        _save(model, args.out)
        say(f"Model: {args.out}")
    elif args.out is not None:
        say(f"Model: {_export(model, encoder, args.out, args.unseen)}")
    return 0


def _spec(path: Path | None) -> FeatureSpec | None:
    if path is None:
        return None
    try:
        return FeatureSpec.from_json(path.read_text(encoding="utf-8"))
    except (SpecError, UnicodeDecodeError) as error:
        why = why_unreadable(error) if isinstance(error, UnicodeDecodeError) else error
        raise SpecError(f"{path}: {why}") from None


def _encoder(args: argparse.Namespace) -> FeatureEncoder | None:
    if args.tables_from is None:
        return None
    from tfdlrm.data.encoder import FeatureEncoder

    return FeatureEncoder.load(args.tables_from, args.unseen)


def _architecture(weights: TorchWeights, model: Any) -> tuple[Table, Table]:
    """Return the tables and the layers that were found, as tables of text."""
    spec: FeatureSpec = model.spec
    names = {table: [f.name for f in spec.sparse if f.table == table] for table in (t.name for t in spec.tables)}
    tables = [
        [
            table.name,
            ", ".join(names[table.name]),
            f"{table.vocabulary_size:,}",
            " + ".join(f"{part.part} {part.rows:,} x {part.dim}" for part in table.stored),
        ]
        for table in spec.tables
    ]
    layers = [
        [layer.name, side, " x ".join(map(str, layer.weight.shape)), str(layer.weight.dtype)]
        for side, stack in (("bottom", weights.bottom), ("top", weights.top))
        for layer in stack
    ]
    kind = f"{model.interaction_name}{' with self-interaction' if model.interaction_itself else ''}"
    return (
        Table(f"{weights.origin}: {len(tables)} tables", ["table", "read by", "rows", "stored as"], tables),
        Table(
            f"{spec.n_dense} dense features; interaction: {kind}; {model.count_params():,} parameters",
            ["layer", "side", "outputs x inputs", "type"],
            layers,
        ),
    )


def _save(model: Any, path: Path) -> None:
    """Write a .keras file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keras wants the file's name to end as it does, so that the temporary part of the name is a folder.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        model.save(written)
        publish(written, path)


def _export(model: Any, encoder: FeatureEncoder | None, base: Path, unseen: Unseen) -> Path:
    """Write the next version of a SavedModel: on raw values where there is an encoder, on ids in any case."""
    from tfdlrm.export.saved_model import export_model

    if encoder is not None:
        return export_model(model, encoder, base)
    row = NO_ROW if unseen == "zeros" else int(unseen)
    return export_model(model, None, base, oov_rows={table.name: row for table in model.spec.tables})


if __name__ == "__main__":
    sys.exit(main())
