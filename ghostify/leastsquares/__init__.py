"""Least squares that knows no graph: moments, solves, reduced rank, and the positions they are taken at."""
