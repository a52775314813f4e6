"""Permutation importance: models that listen to one feature, scikit-learn on the plain values, bags moved whole."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn.inspection import permutation_importance as of_values
from sklearn.metrics import log_loss, roc_auc_score

from tfdlrm.metrics.sampling import shifted
from tfdlrm.models.click_model import ClickModel
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.training.importance import permutation_importance

RNG = np.random.default_rng(8)
ROWS = 600


def spec_of(hotness=1, weighted=False):
    return FeatureSpec(
        dense=[{"name": "x"}, {"name": "y"}],
        sparse=[{"name": "a", "table": "a"}, {"name": "b", "table": "b", "hotness": hotness, "weighted": weighted}],
        tables=[{"name": n, "vocabulary_size": 9, "embedding_dim": 4} for n in "ab"],
    )


def rows_of(spec, logit=None, parts=3):
    inputs = {
        "dense": RNG.normal(size=(ROWS, 2)).astype(np.float32),
        "sparse": RNG.integers(0, 9, (ROWS, spec.n_ids)).astype(np.int32),
    }
    if spec.has_weights:
        inputs["weights"] = np.exp2(-inputs["sparse"].astype(np.float32))
    score = inputs["dense"][:, 0] if logit is None else logit(inputs)
    label = (RNG.random(ROWS) < expit(score)).astype(np.float32)[:, None]
    cuts = np.array_split(np.arange(ROWS), parts)
    return [({name: values[cut] for name, values in inputs.items()}, label[cut]) for cut in cuts]


class Formula(ClickModel):
    """A model that is a function of its inputs, without weights."""

    def __init__(self, spec, formula):
        super().__init__(spec)
        self.formula = formula

    def build_layers(self):
        """There are none."""

    def logits(self, inputs, training=None):
        return self.formula(inputs)


@pytest.mark.parametrize(
    ("feature", "formula"),
    [
        ("y", lambda inputs: 2 * inputs["dense"][:, 1:2]),
        ("a", lambda inputs: tf.cast(inputs["sparse"][:, :1], tf.float32) - 4),
        ("b", lambda inputs: tf.reduce_max(inputs["weights"][:, 1:] * 4, axis=1, keepdims=True) - 1),
    ],
)
def test_features_that_a_model_does_not_read_have_no_importance_at_all(feature, formula):
    spec = spec_of(hotness=3, weighted=True)
    found = permutation_importance(
        Formula(spec, formula), rows_of(spec, lambda i: np.asarray(formula(i))[:, 0]), 3, seed=4
    )
    assert [f.name for f in found.features] == ["x", "y", "a", "b"]
    for each in found.features:
        if each.name == feature:
            assert min(each.log_loss) > 0.05 and min(each.auc) > 0.03
        else:
            assert each.log_loss == each.auc == (0.0, 0.0, 0.0)


def test_a_bag_is_permuted_with_its_weights():
    """Weights are 2 ** -id, so that a weight times 2 ** its own id is 1; pairs torn apart would show."""
    spec = spec_of(hotness=3, weighted=True)

    def formula(inputs):
        return tf.reduce_sum(inputs["weights"][:, 1:] * 2 ** tf.cast(inputs["sparse"][:, 1:], tf.float32), 1)[:, None]

    found = permutation_importance(Formula(spec, formula), rows_of(spec), 4)
    assert all(set(each.log_loss) == {0.0} for each in found.features)


@pytest.mark.parametrize("shift", [0.0, float(np.log(0.25))])
def test_it_is_scikit_learns_on_the_values_themselves(shift):
    """Where every feature is one column, scikit-learn can permute the values: the same numbers must come out."""
    spec = spec_of()
    model = DLRM(spec, bottom_units=(8, 4), top_units=(8, 1), seed=3)
    model.build()
    for name in "ab":
        model.embedding.set_table(name, RNG.normal(size=(9, 4)))
    batches = rows_of(spec)
    found = permutation_importance(model, batches, 3, seed=11, logit_shift=shift, batch_size=97)
    inputs = {name: np.concatenate([batch[0][name] for batch in batches]) for name in ("dense", "sparse")}
    labels = np.concatenate([batch[1] for batch in batches])[:, 0]

    class Values:
        def fit(self, values, labels):
            """Scikit-learn asks for it."""

        def clicks(self, values):
            batch = {"dense": values[:, :2].astype(np.float32), "sparse": values[:, 2:].astype(np.int32)}
            return shifted(model(batch).numpy()[:, 0].astype(np.float64), shift)

    def scores(estimator, values, labels, sample_weight=None):
        click = estimator.clicks(values)
        return {
            "log_loss": -log_loss(labels, click, sample_weight=sample_weight),
            "auc": roc_auc_score(labels, click, sample_weight=sample_weight),
        }

    weight = np.where(labels == 1, 1.0, np.exp(-shift))
    values = np.concatenate([inputs["dense"], inputs["sparse"]], axis=1)
    expected = of_values(Values(), values, labels, scoring=scores, n_repeats=3, random_state=11, sample_weight=weight)
    base = scores(Values(), values, labels, weight)
    assert (found.rows, found.log_loss, found.auc) == pytest.approx((ROWS, -base["log_loss"], base["auc"]), rel=1e-4)
    for name in ("log_loss", "auc"):
        own = [getattr(each, name) for each in found.features]
        # The batch size moves last bits, and with them the order of two or three pairs of rows.
        np.testing.assert_allclose(own, expected[name].importances, atol=5e-5)
        assert np.abs(own).max() > 5e-3


def test_a_seed_says_everything_and_progress_counts_every_row():
    spec = spec_of(hotness=2)
    model = DLRM(spec, bottom_units=(8, 4), top_units=(8, 1), seed=3)
    model.build()
    batches, done = rows_of(spec), []
    runs = [permutation_importance(model, batches, 2, seed=seed, progress=done.append) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert sum(done) == 3 * ROWS * (1 + 4 * 2)
    figures = runs[0].features[0].as_dict()
    assert figures["log_loss"]["mean"] == pytest.approx(np.mean(runs[0].features[0].log_loss))
    assert figures["log_loss"]["spread"] == pytest.approx(np.std(runs[0].features[0].log_loss, ddof=1))


def test_rows_of_one_class_have_no_auc():
    spec = spec_of()
    batches = [(inputs, np.ones_like(label)) for inputs, label in rows_of(spec)]
    found = permutation_importance(Formula(spec, lambda inputs: inputs["dense"][:, :1]), batches, 1)
    assert np.isnan(found.auc) and np.isnan(found.features[0].auc[0])
    assert found.features[0].as_dict()["log_loss"]["spread"] is None


@pytest.mark.parametrize(("repeats", "parts", "message"), [(0, 3, "`repeats` must be at least 1"), (1, 0, "one row")])
def test_bad_arguments(repeats, parts, message):
    spec = spec_of()
    batches = rows_of(spec)[:parts]
    with pytest.raises(ValueError, match=message):
        permutation_importance(Formula(spec, lambda inputs: inputs["dense"][:, :1]), batches, repeats)
