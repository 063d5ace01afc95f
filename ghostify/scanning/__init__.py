"""Traced → Scan: the sites where a network could be rewritten, and what everything costs.  Names and numbers only."""

from ghostify.scanning.result import Scan, Site
from ghostify.scanning.whole import forms, network_nodes, scan

__all__ = ["Scan", "Site", "forms", "network_nodes", "scan"]
