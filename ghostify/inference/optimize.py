"""``optimize``: a network that trains → the same function in the form that runs fastest."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ghostify.arguments import example_input, network, or_none, takes
from ghostify.costs import Cost, cost_of, own_params
from ghostify.errors import TraceError
from ghostify.inference.checking import checked, in_channels_last
from ghostify.inference.result import Change, Optimized
from ghostify.inference.structure import in_inference_form
from ghostify.planning import Plan
from ghostify.rewriting import Ghosted
from ghostify.running import random_states_kept, seed, undisturbed
from ghostify.scanning import scan
from ghostify.scanning.form import Form, example_for
from ghostify.tracing import Recording, record, trace
from ghostify.tracing.record import record_parts


def _rewritten_or_network(value: Any) -> Any:
    return value if isinstance(value, Ghosted) else network(value)


@takes(ghosted=_rewritten_or_network, example=or_none(example_input))
@undisturbed()
def optimize(ghosted: Ghosted | nn.Module, example: Any = None) -> Optimized:
    """The inference form of a rewritten network (or of any): equal to it in eval mode, and faster.

    C-Ghost modules that mix their intrinsic maps become two plain convolutions, batch norms are folded into the layers
    before them, and on a CPU the weights are laid out with their channels last.  What ``convert`` or ``load`` gave
    needs no ``example``; of another network it is one input, as ``trace`` takes it.  What was rewritten in parts is
    optimised in the same parts.  The network itself stays as it is, and is the one to train.

    Raises ``TraceError`` when it cannot be recorded or there is no example of what it takes, ``RewriteError`` when the
    result would compute something else.
    """
    module = network(ghosted)
    trained = ghosted if isinstance(ghosted, Ghosted) else None
    given = example_for_network(trained, module) if example is None else example
    recording = recorded_for(trained.plan, module, given) if trained else record(module, given)
    parts: dict[str, nn.Module] = {}
    cost, changes = Cost(), list[Change]()
    for name, traced in recording.parts.items():
        result, done = in_inference_form(traced)
        cost += cost_of(checked(traced, result))
        parts[name] = result
        changes += [change.within(name) for change in done]
    whole = in_channels_last(recording, _put_together(recording, parts))
    cost = cost.model_copy(update={"params": own_params(whole)})
    told = trained or _as_it_is(recording, module)
    shared = (told.plan, told.before, told.after, told.fit, told.notes, told.budget)
    return Optimized(whole, *shared, inference=cost, changes=tuple(changes))


def inference_form(recording: Recording) -> nn.Module:
    """A recorded network in its inference form, unchecked: for who wants to know how fast it is."""
    parts = {name: in_inference_form(traced)[0] for name, traced in recording.parts.items()}
    return in_channels_last(recording, _put_together(recording, parts))


def optimized_blank(module: nn.Module, plan: Plan, example: Any) -> tuple[nn.Module, tuple[Change, ...]]:
    """The inference form of a network whose weights mean nothing yet, which a saved one is read into; and what was
    changed.  ``plan`` is what it was rewritten by.
    """
    recording = recorded_for(plan, module, example)
    made = {name: in_inference_form(traced) for name, traced in recording.parts.items()}
    changes = [change.within(name) for name, (_, done) in made.items() for change in done]
    return _put_together(recording, {name: part for name, (part, _) in made.items()}), tuple(changes)


def recorded_for(plan: Plan, module: nn.Module, example: Any) -> Recording:
    """A rewritten network recorded as a whole or in parts, as it was when its plan was made."""
    if plan.parts is None:
        return Recording.of(trace(module, example))
    return record_parts(module, example, plan.parts.reason)


def _put_together(recording: Recording, parts: dict[str, nn.Module]) -> nn.Module:
    """A copy of the model with its parts in their inference form, in eval mode."""
    memo = {id(recording.model.get_submodule(name)): part for name, part in parts.items()}
    return copy.deepcopy(recording.model, memo).eval()


def _as_it_is(recording: Recording, module: nn.Module) -> Ghosted:
    """A network that nothing was swapped in."""
    seen = scan(recording)
    plan = Plan(network=seen.network, inputs=seen.inputs, before=seen.cost, after=seen.cost, parts=seen.parts)
    return Ghosted(module, plan, seen, seen)


def example_for_network(trained: Ghosted | None, module: nn.Module) -> Any:
    """An input like the one that a network was converted with."""
    form = Form.of_scan(trained.before) if trained else None
    if form is None or not form.kinds:
        raise TraceError(
            f"Nothing says what {type(module).__name__} takes; give one input of it: optimize(network, example)."
        )
    with random_states_kept(torch.device("cpu")):
        seed()
        return example_for(module, form, random=True)
