"""Carrying trained weights over into what takes their layers' place, in closed form (``docs/fitting.md``).

``rewrite_fitted`` is ``rewrite`` with calibration images: it lets them decide what a plan leaves open (which maps are
intrinsic), rewrites, and gives every ghost, thinned layer and layer after one the weights that best reproduce the
original.
"""

from ghostify.fitting.parts import fitted, rewrite_fitted

__all__ = ["fitted", "rewrite_fitted"]
