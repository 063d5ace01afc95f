"""The ground floor of running graphs: what an operation is, one node run as it was recorded, agreement, borrowed modes.

Whoever runs a recorded graph (its replay, a fit, a check of thinner blocks) runs its nodes by ``run_node`` and compares
by ``agree``; whoever runs somebody's module borrows its modes by ``evaluating`` or ``quiet``.
"""

from ghostify.running.agreement import (
    ELSEWHERE,
    NARROWED,
    REORDERED,
    REPEATED,
    THINNED,
    Tolerance,
    agree,
    coarsest,
    fingerprint,
)
from ghostify.running.ambient import as_called, in_single_precision, undisturbed
from ghostify.running.attempt import Failed, attempt, one_line
from ghostify.running.modes import evaluating, frozen_parts, modes_kept, quiet, random_states_kept, seed, training
from ghostify.running.node import run_node
from ghostify.running.operations import (
    CONVS,
    TRANSPOSED,
    Layers,
    first_argument,
    function_name,
    groups_of,
    is_conv,
    is_transposed,
    is_weighted,
    op_name,
    overwrites,
    overwritten,
    weight_node,
    weight_shape,
    write_target,
)
from ghostify.running.regions import current_regions, uncompiled, within_regions

__all__ = [
    "CONVS",
    "TRANSPOSED",
    "ELSEWHERE",
    "NARROWED",
    "REORDERED",
    "REPEATED",
    "THINNED",
    "Failed",
    "Layers",
    "Tolerance",
    "agree",
    "attempt",
    "as_called",
    "in_single_precision",
    "undisturbed",
    "coarsest",
    "current_regions",
    "evaluating",
    "fingerprint",
    "first_argument",
    "frozen_parts",
    "function_name",
    "groups_of",
    "is_conv",
    "is_transposed",
    "is_weighted",
    "modes_kept",
    "one_line",
    "op_name",
    "overwrites",
    "overwritten",
    "quiet",
    "random_states_kept",
    "run_node",
    "seed",
    "training",
    "uncompiled",
    "weight_node",
    "weight_shape",
    "within_regions",
    "write_target",
]
