"""Named recipes: how published results prepared Criteo, as configurations that `prepare` takes."""

from __future__ import annotations

from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.published import RECIPES, published

RECIPE_NAMES = tuple(RECIPES)


def named_recipe(
    name: str, dataset: str = "kaggle", max_ind_range: int | None = None, min_count: int | None = None
) -> DataConfig:
    """Return a recipe that prepares Criteo as a published result did.

    What the sources say, what they leave open and what is done then is in `tfdlrm.spec.published`, and told by
    `python -m tfdlrm.pipelines.prepare explain`.

    Args:
        name: `"fb"` (facebookresearch/dlrm), `"torchrec"`, `"nvidia"` (DeepLearningExamples), `"tfm"`
            (tensorflow/models) or `"tfdlrm"` (this project's own).
        dataset: `"kaggle"`, one file; or `"terabyte"`, a file a day, the last of which is held out. Defaults to Kaggle.
        max_ind_range: What keys (torchrec: ids) are taken modulo of. Defaults to what the source's command says.
        min_count: Fewest times a value must be seen to get a row of its own. Defaults as `max_ind_range` does.

    Raises:
        ConfigError: there is no such recipe or data set, or the recipe has no such setting.

    Example:
        >>> recipe = named_recipe("fb", "terabyte")
        >>> recipe.coding.modulus, recipe.coding.id_order, recipe.vocabulary_rows
        (10000000, 'first_seen', 'all')
    """
    return DataConfig.model_validate(published(name).settings(dataset, max_ind_range, min_count))
