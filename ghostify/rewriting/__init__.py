"""Plan → Ghosted.  The only place that edits a model, and it edits a copy.

``rewrite`` takes a network recorded as a whole; ``rewrite_parts`` one of which only parts can be recorded, and
``agreed`` says which of the two a network is.
"""

from ghostify.rewriting.parts import Parts, agreed, agreed_in_parts, rebuilt, rewrite_parts
from ghostify.rewriting.recorded import TracedParts, survey, trace_parts
from ghostify.rewriting.rewrite import (
    Ghosted,
    a_plan,
    a_recording,
    counted,
    in_place,
    rehearse,
    replaced,
    rewrite,
    rewritten,
)
from ghostify.rules import Choices

__all__ = [
    "Choices",
    "Ghosted",
    "Parts",
    "TracedParts",
    "a_plan",
    "a_recording",
    "agreed",
    "agreed_in_parts",
    "counted",
    "in_place",
    "rehearse",
    "rebuilt",
    "replaced",
    "rewrite",
    "rewrite_parts",
    "rewritten",
    "survey",
    "trace_parts",
]
