"""Which modules of a recorded network become which in its inference form.

A deep copy again, as every rewrite: its memo holds what takes the place of each C-Ghost module, layer and norm.  What
hangs together is read off the recorded run.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ghostify.ghosts import CGhost
from ghostify.ghosts.c_ghost import CGhostLinear
from ghostify.inference.merging import merged
from ghostify.inference.norms import folds, with_norm, without_norm
from ghostify.inference.result import Change
from ghostify.inference.selections import without_orders
from ghostify.module_calls import calls_of
from ghostify.tracing import Traced, trace


def in_inference_form(traced: Traced) -> tuple[nn.Module, tuple[Change, ...]]:
    """A copy of the traced module in its inference form, in eval mode, and what was changed; nothing is checked.

    What changes depends on the structure of the network alone, and not on its weights: so a network built anew from
    its source takes the weights of any other that was optimised.
    """
    made = _merged_ghosts(traced)
    module, reordered = without_orders(traced, made)
    if reordered:
        traced = trace(module, traced.example, verify=False)
        made = _merged_ghosts(traced)
    changes = [Change(target=name, what="reordered") for name in reordered]
    changes += [Change(target=name, what="merged") for name in made]
    memo: dict[int, Any] = {id(traced.part(name)): layers for name, layers in made.items()}
    for fold in folds(traced, made):
        layer, norm = traced.part(fold.layer), traced.part(fold.norm)
        memo[id(layer)] = with_norm(memo.get(id(layer), layer), norm)
        memo[id(norm)] = without_norm(traced, fold.norm)
        changes.append(Change(target=fold.norm, what="folded", into=fold.layer))
    return copy.deepcopy(traced.module, memo).eval(), tuple(changes)


def _merged_ghosts(traced: Traced) -> dict[str, nn.Module]:
    """By name of a C-Ghost module that becomes plain layers, these."""
    made: dict[str, nn.Module] = {}
    for module, names in traced.names.items():
        if isinstance(module, CGhost) and (layers := merged(module, _reads_vectors(traced, module, names[0]))):
            made[names[0]] = layers
    return made


def _reads_vectors(traced: Traced, ghost: CGhost, name: str) -> bool:
    """Whether a ghost stands for a linear layer that was given vectors, (N, c), in every call."""
    if not isinstance(ghost, CGhostLinear):
        return False
    calls = calls_of(traced, name)
    return bool(calls) and all(len(read.meta["shapes"][0]) == 2 for call in calls for read in call.reads)
