"""Recipe: all settings of one experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ghostify.recipe.budget import BudgetSettings
from ghostify.recipe.data import DataSettings
from ghostify.recipe.experiment import AnalysisSettings, FitSettings, ModelSettings
from ghostify.recipe.ghost import GhostSettings
from ghostify.recipe.sweep import SweepSettings
from ghostify.recipe.training import TrainSettings
from ghostify.settings import Settings


class Recipe(Settings):
    """One experiment: which network, on which images, ghosted how, trained how."""

    name: str | None = None
    model: ModelSettings
    data: DataSettings | None = None
    pretrain: Annotated[
        TrainSettings | None, Field(description="train the original first, when there are no trained weights")
    ] = None
    ghost: GhostSettings = GhostSettings()
    budget: BudgetSettings = BudgetSettings()
    fit: FitSettings = FitSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    sweep: SweepSettings = SweepSettings()
    finetune: Annotated[TrainSettings | None, Field(description="train the ghosted network afterwards")] = None
    seed: Annotated[int, Field(description="seed of everything random")] = 0
    device: Annotated[str, Field(description="where it runs: auto (a GPU if there is one), cpu, cuda, or cuda:1")] = (
        "auto"
    )
    tensorboard: Annotated[bool, Field(description="write TensorBoard's files into the run folder, too")] = False
