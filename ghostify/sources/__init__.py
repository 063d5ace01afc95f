"""Where networks and images come from: both by name, as a recipe writes them."""

from __future__ import annotations

from ghostify.sources.data import Data
from ghostify.sources.images import Images
from ghostify.sources.load import load_data
from ghostify.sources.loaders import Loader, data_error
from ghostify.sources.models import build_model, input_shape, model_inputs, require_form
from ghostify.sources.preprocessing import Preprocessing, own_preprocessing
from ghostify.sources.samples import Sample, load_sample, sample_inputs
from ghostify.sources.weights import load_weights

__all__ = [
    "Data",
    "Images",
    "Loader",
    "Preprocessing",
    "Sample",
    "build_model",
    "data_error",
    "input_shape",
    "model_inputs",
    "load_data",
    "load_sample",
    "load_weights",
    "own_preprocessing",
    "require_form",
    "sample_inputs",
]
