"""Recipe: one experiment as data.  Every setting of the tool is declared in this room, once, with its default and its
meaning.

An unknown key is an error, never ignored.
"""

from ghostify.recipe.budget import BudgetSettings, RuntimeName
from ghostify.recipe.data import DataSettings, Interpolation
from ghostify.recipe.experiment import (
    AnalysisSettings,
    Arrange,
    FitMode,
    FitSettings,
    ModelSettings,
)
from ghostify.recipe.ghost import (
    CheapInput,
    CheapOperation,
    Entry,
    GhostRatio,
    GhostSettings,
    Keep,
    Method,
    Parts,
    Pointwise,
    Preset,
    Ratio,
    Role,
    Rounding,
    SiteSettings,
    StageCheap,
    StageForm,
    Stream,
    of_convolutions,
    of_stages,
)
from ghostify.recipe.making import group_of, make_recipe, meaning, read_recipe, require_images, require_undecided
from ghostify.recipe.sweep import SweepSettings
from ghostify.recipe.training import AUTO, TrainSettings
from ghostify.recipe.whole import Recipe
from ghostify.settings import make_settings, read_yaml, validated

__all__ = [
    "AUTO",
    "AnalysisSettings",
    "Arrange",
    "BudgetSettings",
    "CheapInput",
    "CheapOperation",
    "DataSettings",
    "Entry",
    "FitMode",
    "FitSettings",
    "GhostRatio",
    "GhostSettings",
    "Interpolation",
    "Keep",
    "Method",
    "ModelSettings",
    "Parts",
    "Pointwise",
    "Preset",
    "Ratio",
    "Recipe",
    "Role",
    "Rounding",
    "RuntimeName",
    "SiteSettings",
    "StageCheap",
    "StageForm",
    "Stream",
    "SweepSettings",
    "TrainSettings",
    "group_of",
    "make_recipe",
    "make_settings",
    "meaning",
    "of_convolutions",
    "of_stages",
    "read_recipe",
    "read_yaml",
    "require_images",
    "require_undecided",
    "validated",
]
