"""One file per kind of source, as ``data.source`` names it: KIND, or KIND:PLACE."""

from ghostify.sources.kinds.asked import Asked
from ghostify.sources.kinds.cifar import cifar10, cifar100
from ghostify.sources.kinds.fake import fake
from ghostify.sources.kinds.folder import folder
from ghostify.sources.kinds.numerals import digits
from ghostify.sources.kinds.shards import webdataset

PLACED = {"folder": folder, "cifar10": cifar10, "cifar100": cifar100, "webdataset": webdataset}
"""Kinds that are somewhere: behind a colon it is said where."""
PLACELESS = {"digits": digits, "fake": fake}

__all__ = ["PLACED", "PLACELESS", "Asked"]
