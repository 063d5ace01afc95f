"""The kinds of parts, and how each is fitted: a plain layer, a C-Ghost module, a G-Ghost stage's ghosts."""
