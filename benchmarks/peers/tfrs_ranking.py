"""TensorFlow Recommenders' `Ranking` model with `TPUEmbedding` on a CPU, through `model.fit`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from timing import Batch, Shapes, measure, parse


def main() -> None:
    """Measure."""
    args = parse(__doc__, ("sgd", "adagrad"), ("float32",))
    shapes = Shapes.load(args.spec)
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    import numpy as np
    import tensorflow as tf
    import tensorflow_recommenders as tfrs
    import tf_keras as keras

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    keras.utils.set_random_seed(args.seed)
    names = [f"C{i:02d}" for i in range(1, len(shapes.rows) + 1)]
    features = {
        name: tf.tpu.experimental.embedding.FeatureConfig(
            table=tf.tpu.experimental.embedding.TableConfig(
                vocabulary_size=rows,
                dim=shapes.embedding_dim,
                initializer=tf.random_uniform_initializer(-(rows**-0.5), rows**-0.5),
                combiner="sum",
                name=name,
            )
        )
        for name, rows in zip(names, shapes.rows, strict=True)
    }
    # The optimizers that leave untouched rows alone; the newer ones walk whole tables.
    legacy = keras.optimizers.legacy
    optimizer = legacy.SGD(0.01) if args.optimizer == "sgd" else legacy.Adagrad(0.01)
    model = tfrs.experimental.models.Ranking(
        embedding_layer=tfrs.layers.embedding.TPUEmbedding(feature_config=features, optimizer=optimizer),
        bottom_stack=tfrs.layers.blocks.MLP(list(shapes.bottom_units), final_activation="relu"),
        feature_interaction=tfrs.layers.feature_interaction.DotInteraction(skip_gather=True),
        top_stack=tfrs.layers.blocks.MLP(list(shapes.top_units), final_activation=None),
        # Without the metrics that it would take by default: nobody else computes any.
        task=tfrs.tasks.Ranking(
            loss=keras.losses.BinaryCrossentropy(from_logits=True, reduction=keras.losses.Reduction.NONE)
        ),
    )
    model.compile(optimizer=optimizer, steps_per_execution=10)

    def load(batches: Iterator[Batch]) -> tuple[int, Any]:
        arrays = list(batches)
        sparse = {name: np.stack([batch.sparse[:, i] for batch in arrays]) for i, name in enumerate(names)}
        inputs = {"dense_features": np.stack([batch.dense for batch in arrays]), "sparse_features": sparse}
        labels = np.stack([batch.label[:, 0] for batch in arrays])
        # The thread that tunes tf.data sleeps for ever longer, and the end of an iterator may have to wait for it.
        options = tf.data.Options()
        options.autotune.enabled = False
        return len(arrays), tf.data.Dataset.from_tensor_slices((inputs, labels)).prefetch(2).with_options(options)

    def run(batches: tuple[int, Any]) -> float:
        steps, dataset = batches
        history = model.fit(dataset, steps_per_epoch=steps, epochs=1, verbose=0)
        return float(np.ravel(history.history["loss"][-1])[-1])

    measure(args, "tfrs_ranking", shapes, load, run)


if __name__ == "__main__":
    main()
