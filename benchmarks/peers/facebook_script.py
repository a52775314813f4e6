"""facebookresearch/dlrm as its users run it: `dlrm_s_pytorch.py` of a checkout that you name, on its own random data.

The figure is the `ms/it` that the script prints; it times the step alone, without the making of random batches.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Shapes, parse, report

MS_PER_STEP = re.compile(r"Finished training it (\d+)/\d+ of epoch \d+, ([0-9.]+) ms/it")


def main() -> None:
    """Measure."""
    args = parse(
        __doc__,
        ("sgd", "adagrad", "rowwise_adagrad"),
        ("float32",),
        lambda parser: parser.add_argument("--checkout", type=Path, required=True, help="of facebookresearch/dlrm"),
    )
    shapes = Shapes.load(args.spec)
    if args.seconds:
        # The script cannot be told; this is its pace on two cores of an ordinary server, rounded up.
        args.steps = max(2, min(args.steps, round(args.seconds * 40_000 / args.batch_size)))
    # One line of the script is one repeat; the first is the warm-up.
    times = step_times(args, shapes)[1:]
    report(args, "facebook_script", args.steps, [1000.0 * args.batch_size / ms for ms in times])


def step_times(args: object, shapes: Shapes) -> list[float]:
    """Run the script once and return its milliseconds per step, one figure for each `steps` steps."""
    dashes = {name: "-".join(str(n) for n in getattr(shapes, name)) for name in ("rows", "bottom_units", "top_units")}
    optimizer = {"sgd": "sgd", "adagrad": "adagrad", "rowwise_adagrad": "rwsadagrad"}[args.optimizer]
    command = [
        *(sys.executable, str(args.checkout.resolve() / "dlrm_s_pytorch.py")),
        f"--arch-sparse-feature-size={shapes.embedding_dim}",
        f"--arch-embedding-size={dashes['rows']}",
        f"--arch-mlp-bot={shapes.n_dense}-{dashes['bottom_units']}",
        f"--arch-mlp-top={dashes['top_units']}",
        *("--data-generation=random", "--num-indices-per-lookup=1", "--num-indices-per-lookup-fixed=True"),
        *("--loss-function=bce", "--round-targets=True", "--learning-rate=0.01", f"--optimizer={optimizer}"),
        *(f"--mini-batch-size={args.batch_size}", f"--num-batches={args.steps * (args.repeats + 1)}"),
        *(f"--print-freq={args.steps}", "--print-time", f"--numpy-rand-seed={args.seed}"),
    ]
    # It writes TensorBoard files where it runs.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    times = [float(ms) for _, ms in MS_PER_STEP.findall(done.stdout)]
    if done.returncode or len(times) != args.repeats + 1:
        raise SystemExit(f"{command[1]} failed with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return times


if __name__ == "__main__":
    main()
