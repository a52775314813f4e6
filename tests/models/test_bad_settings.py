"""Settings of models that cannot be: each is refused with the argument, the rule, and what came."""

import pytest

from tests.models.contract import DIM, SETTINGS, SPECS, make_model
from tfdlrm.models.build import MODELS
from tfdlrm.spec.errors import ConfigError

WITH_MLP = [case for case, (_, settings) in SETTINGS.items() if "top_units" in settings]


@pytest.mark.parametrize("case", WITH_MLP)
@pytest.mark.parametrize("top_units", [[8, 2], []])
def test_top_units_must_end_with_1(case, top_units):
    with pytest.raises(ConfigError, match=r"in `model`: `top_units\[-1\]` must be 1. Received: \["):
        make_model(case, top_units=top_units)


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("matrix_factorization", {"pair": None}, r"`pair` must name two .*\['user', 'tags', 'item'\]. Received: None"),
        ("matrix_factorization", {"pair": ["user", "itm"]}, "`pair` must name .*Received: `itm`. Did you mean `item`"),
        ("matrix_factorization", {"pair": ["user", "x0"]}, "`pair` must name sparse features, .*Received: `x0`"),
        ("matrix_factorization", {"pair": ["user", "user"]}, "`pair` must name different features"),
        ("wide_deep", {"crosses": [["user", "itm"]]}, "`crosses` must name .*Received: `itm`. Did you mean `item`"),
        ("wide_deep", {"crosses": [["user"]]}, r"`crosses` must combine two or more .*Received: \['user'\]"),
        ("wide_deep", {"crosses": [[]]}, "`crosses` must combine two or more"),
        ("wide_deep", {"crosses": [["user", "user"]]}, "`crosses` must name different features"),
        ("wide_deep", {"crosses": [["user", "item"]] * 2}, "`crosses` must differ"),
        ("xdeepfm", {"cin_units": []}, "`cin_units` must be one or more numbers"),
        (
            "dlrm_dcnv2",
            {"bottom_units": [5, 3]},
            r"`bottom_units\[-1\]` must equal `embedding_dim`. Received: \[5, 3\]",
        ),
    ],
)
def test_refused_by_the_model(case, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_model(case, **settings)


@pytest.mark.parametrize("name", ["dcn", "dcn_v2", "dlrm_dcnv2"])
def test_no_cross_layer_and_no_rank(name):
    with pytest.raises(ValueError, match="`cross_layers` must be at least 1. Received: 0"):
        MODELS[name](SPECS["plain"], cross_layers=0)
    if name != "dcn":
        with pytest.raises(ValueError, match="`cross_rank` must be at least 1. Received: 0"):
            MODELS[name](SPECS["plain"], cross_rank=0)


def test_other_arguments():
    with pytest.raises(ValueError, match='`structure` must be "stacked" or "parallel". Received: \'beside\''):
        MODELS["dcn_v2"](SPECS["plain"], structure="beside")
    with pytest.raises(ValueError, match="`cross_rows` must be at least 1. Received: 0"):
        MODELS["wide_deep"](SPECS["plain"], cross_rows=0)


def unequal():
    spec = SPECS["plain"]
    tables = (spec.tables[0].model_copy(update={"embedding_dim": 2 * DIM}), *spec.tables[1:])
    return spec.model_copy(update={"tables": tables})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("matrix_factorization", {"pair": ("user", "item")}),
        ("factorization_machine", {}),
        ("deepfm", {}),
        ("xdeepfm", {}),
        ("dlrm", {"bottom_units": (DIM,)}),
        ("dlrm_dcnv2", {"bottom_units": (DIM,)}),
    ],
)
def test_tables_of_two_widths_where_one_is_needed(name, settings):
    message = r"`embedding_dim` must be the same for every table of a \w+. Received: \[4, 8\]"
    with pytest.raises(ValueError, match=message):
        MODELS[name](unequal(), **settings)
