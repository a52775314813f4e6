import io

import matplotlib.image
import pytest

from tfdlrm.report.budget import budget_picture
from tfdlrm.spec.budget import fit_budget
from tfdlrm.spec.criteo import click_log_spec


@pytest.mark.parametrize("tables", [1, 60])
def test_picture_is_a_png_with_something_on_it(tables):
    plan = fit_budget(click_log_spec([5000] * tables, 4, [1] * tables), 50_000 * tables)
    pixels = matplotlib.image.imread(io.BytesIO(budget_picture(plan)))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 400
    assert pixels[..., :3].std() > 0.05
