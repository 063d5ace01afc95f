"""Recording → Scan: where a network could be rewritten, and what all of it costs.  Names and numbers only."""

from ghostify.scanning.result import InParts, Scan, Site
from ghostify.scanning.scan import scan
from ghostify.scanning.whole import forms, network_nodes, scan_result
from ghostify.scanning.written import nodes_and_outputs

__all__ = ["InParts", "Scan", "Site", "forms", "network_nodes", "nodes_and_outputs", "scan", "scan_result"]
