"""Recording → Scan: where a network could be rewritten, and what all of it costs.  Names and numbers only."""

from ghostify.scanning.result import InParts, Scan, Site
from ghostify.scanning.scan import scan
from ghostify.scanning.whole import forms, network_nodes, scan_result

__all__ = ["InParts", "Scan", "Site", "forms", "network_nodes", "scan", "scan_result"]
