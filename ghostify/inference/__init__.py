"""A network that trains → an equal one that runs fast.  The first is edited by nobody; the second is made from it.

``merging.py`` makes plain convolutions of C-Ghost modules, ``norms.py`` folds batch norms into the layers before them,
``selections.py`` orders of outputs into the layers that read them; ``optimize.py`` does all of it on a copy and checks
that; ``result.py`` is the value.
"""

from ghostify.inference.optimize import in_inference_form, optimize
from ghostify.inference.result import Change, Optimized

__all__ = ["Change", "Optimized", "in_inference_form", "optimize"]
