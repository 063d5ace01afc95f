"""How redundant a network's feature maps are, and what that allows."""

from ghostify.analysis.advice import advised
from ghostify.analysis.analyze import LEAST_IMAGES, analyze
from ghostify.analysis.carried_out import with_plan
from ghostify.analysis.pictures import SEEN, Camera, Pictures, as_picture, first_image, with_converted
from ghostify.analysis.result import Analysis, read_analysis

__all__ = [
    "LEAST_IMAGES",
    "SEEN",
    "Analysis",
    "Camera",
    "Pictures",
    "advised",
    "analyze",
    "as_picture",
    "first_image",
    "read_analysis",
    "with_converted",
    "with_plan",
]
