"""model + example → Recording: recorded runs as ``torch.fx`` graphs, each verified by replay.

``record`` records a model as a whole or, where it resists, in its largest parts; ``trace`` records one run (a
``Traced``).

The graph is *recorded*, not symbolically traced: a copy of the module runs once on the example, every call of a
``torch`` function and of a ``torch.nn`` leaf module becomes a node with its concrete shapes and the module it ran in,
and Python decides branches and loops as it always does.  Replaying the graph must then reproduce the output; a
recording that does not is refused, naming the module where it first went wrong.

The user's module comes out untouched: the run happens on a copy (parameters are shared with it, for they are the bulk
of the memory; a module that writes to its parameters while running is copied whole instead).
"""

from ghostify.tracing.again import recorded_again, recorded_shapes, without_numbers
from ghostify.tracing.copies import private_copy
from ghostify.tracing.naming import is_leaf, own_parameters, qualified_names
from ghostify.tracing.others import other_runs
from ghostify.tracing.parts import one_example, recordable
from ghostify.tracing.record import reason_of, record, record_parts, run_watched
from ghostify.tracing.recording import WHOLE, NoParts, Recording
from ghostify.tracing.sized import sized_as, sized_like
from ghostify.tracing.trace import trace
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import call_arguments, cloned, tensors_in, tensors_of_call
from ghostify.tracing.wording import GIVEN_NOTHING, cannot_run

__all__ = [
    "GIVEN_NOTHING",
    "NoParts",
    "Recording",
    "WHOLE",
    "Traced",
    "call_arguments",
    "cannot_run",
    "cloned",
    "is_leaf",
    "one_example",
    "other_runs",
    "own_parameters",
    "private_copy",
    "qualified_names",
    "reason_of",
    "record",
    "record_parts",
    "recordable",
    "recorded_again",
    "recorded_shapes",
    "tensors_in",
    "tensors_of_call",
    "run_watched",
    "sized_as",
    "sized_like",
    "trace",
    "without_numbers",
]
