"""A network that trains → an equal one that runs fast.  The first is edited by nobody; the second is made from it.

``merging.py`` makes plain convolutions of C-Ghost modules, ``norms.py`` folds batch norms into the layers before them,
``selections.py`` orders of outputs into the layers that read them; ``structure.py`` does all of it on a copy of a
recorded network, ``checking.py`` compares the two, ``optimize.py`` is the verb, and ``result.py`` the value.
"""

from ghostify.inference.optimize import (
    example_for_network,
    inference_form,
    optimize,
    optimized_blank,
    recorded_for,
)
from ghostify.inference.result import Change, Optimized

__all__ = [
    "Change",
    "Optimized",
    "example_for_network",
    "inference_form",
    "optimize",
    "optimized_blank",
    "recorded_for",
]
