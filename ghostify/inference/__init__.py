"""A network that trains → an equal one that runs fast.  The first is edited by nobody; the second is made from it.

``merging.py`` makes plain convolutions of C-Ghost modules, ``norms.py`` folds batch norms into the layers before them,
``optimize.py`` does both on a copy and checks it; ``result.py`` is the value.
"""

from ghostify.inference.optimize import in_inference_form, optimize
from ghostify.inference.result import Change, Optimized

__all__ = ["Change", "Optimized", "in_inference_form", "optimize"]
