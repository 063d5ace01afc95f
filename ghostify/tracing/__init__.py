"""module + example → Traced: one recorded run as a ``torch.fx`` graph, verified by replay.

The graph is *recorded*, not symbolically traced: a copy of the module runs once on the example, every call of a
``torch`` function and of a ``torch.nn`` leaf module becomes a node with its concrete shapes and the module it ran in,
and Python decides branches and loops as it always does.  Replaying the graph must then reproduce the output; a
recording that does not is refused, naming the module where it first went wrong.

The user's module comes out untouched: the run happens on a copy (parameters are shared with it, for they are the bulk
of the memory; a module that writes to its parameters while running is copied whole instead).
"""

from ghostify.tracing.again import recorded_again, recorded_shapes, without_numbers
from ghostify.tracing.copies import private_copy
from ghostify.tracing.naming import is_leaf, qualified_names
from ghostify.tracing.others import other_runs
from ghostify.tracing.parts import one_example, recordable
from ghostify.tracing.trace import trace
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import call_arguments, cloned, tensors_in, tensors_of_call
from ghostify.tracing.wording import cannot_run

__all__ = [
    "Traced",
    "call_arguments",
    "cannot_run",
    "cloned",
    "is_leaf",
    "one_example",
    "other_runs",
    "private_copy",
    "qualified_names",
    "recordable",
    "recorded_again",
    "recorded_shapes",
    "tensors_in",
    "tensors_of_call",
    "trace",
    "without_numbers",
]
