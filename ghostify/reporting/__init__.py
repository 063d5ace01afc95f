"""Ghosted + measurements → Report: theory beside count beside clock, per layer and for the whole network."""

from ghostify.reporting.report import Report, compare
from ghostify.rules.rows import LayerReport, Ratios

__all__ = ["LayerReport", "Ratios", "Report", "compare"]
