"""Plan → Ghosted.  The only place that edits a model, and it edits a copy.

``agreed`` says whether a network can be rewritten as a whole, and gives the plan for that or for its parts; ``rewrite``
takes either.
"""

from ghostify.rewriting.agreed import agreed, agreed_in_parts, carried_out, rehearse
from ghostify.rewriting.parts import rebuilt, rewrite, rewrite_each
from ghostify.rewriting.result import Ghosted, a_plan, a_recording, rewritten
from ghostify.rewriting.rewrite import counted, in_place, replaced, rewrite_run
from ghostify.rules import Choices

__all__ = [
    "Choices",
    "Ghosted",
    "a_plan",
    "a_recording",
    "agreed",
    "agreed_in_parts",
    "carried_out",
    "counted",
    "in_place",
    "rebuilt",
    "rehearse",
    "replaced",
    "rewrite",
    "rewrite_each",
    "rewrite_run",
    "rewritten",
]
