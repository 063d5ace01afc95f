"""Ghosted + measurements → Report: theory beside count beside clock, per layer and for the whole network."""

from ghostify.reporting.report import LayerReport, Ratios, Report, compare

__all__ = ["LayerReport", "Ratios", "Report", "compare"]
