"""What every rule of the registry keeps to, whatever it rewrites: the protocol, on the whole zoo."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import pytest
import torch
from zoo import ZOO, Net

from ghostify import scan, trace
from ghostify.errors import PlanError
from ghostify.fitting import rewrite_fitted
from ghostify.names import overlap
from ghostify.networks import resnet20
from ghostify.planning import Plan, check, needs_of, plan
from ghostify.planning.proposing import proposing
from ghostify.recipe import GhostSettings, Method, Role
from ghostify.rewriting import replaced
from ghostify.rules import RULES, Needs, Skip, Swap, protocol, rule_of
from ghostify.scanning import Scan
from ghostify.tracing import Traced

METHODS: list[Method] = [method for method in get_args(Method) if method != "auto"]
each_case = pytest.mark.parametrize(
    ("net", "method"), [pytest.param(net, method, id=f"{net.name}-{method}") for net in ZOO for method in METHODS]
)


def settings_of(method: Method) -> GhostSettings:
    """Under which everything that a rule can rewrite is rewritten."""
    if any(rule.name == "c-ghost" for rule in proposing(method)):
        return GhostSettings(method=method, also=get_args(Role), min_saving=0)
    return GhostSettings(method=method)


@cache
def traced(net: Net) -> Traced:
    return trace(net.build(), net.example())


@cache
def scanned(net: Net, needs: Needs) -> Scan:
    return scan(traced(net), **vars(needs))


def in_turn(net: Net, method: Method) -> list[tuple[Any, Scan, list[Swap | Skip]]]:
    """Each rule of a method, the network as earlier ones leave it, and what it proposes; up to one that refuses."""
    settings = settings_of(method)
    seen = scanned(net, needs_of(settings))
    found = []
    for rule in proposing(method):
        try:
            rule.admit(seen, settings)
            proposed = rule.propose(seen, settings, fitted=False)
        except PlanError:
            break  # a network without stages, or one that cannot become narrower
        found.append((rule, seen, proposed))
        seen = rule.after(seen, swaps_in(proposed))
    return found


def swaps_in(entries: list[Swap | Skip]) -> list[Swap]:
    return [entry for entry in entries if not isinstance(entry, Skip)]


# -- the registry ----------------------------------------------------------------------------------------------


def test_a_rule_is_found_by_what_its_swaps_call_it() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule.swap.model_fields["rule"].default == rule.name and rule.noun


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_rule(method: Method) -> None:
    assert proposing(method)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_swaps_is_read_back_as_swaps_of_their_rules(method: Method) -> None:
    settings = settings_of(method)
    model = trace(resnet20(), torch.randn(1, 3, 16, 16))
    made = plan(scan(model, **vars(needs_of(settings))), settings)
    again = Plan.model_validate_json(made.model_dump_json())
    assert made.swaps and again == made
    assert all(type(swap) is rule_of(swap).swap for swap in again.swaps)


# -- planning --------------------------------------------------------------------------------------------------


@each_case
def test_a_rule_decides_once_about_each_subject_by_its_first_name(net: Net, method: Method) -> None:
    for rule, seen, proposed in in_turn(net, method):
        assert len({entry.target for entry in proposed}) == len(set(proposed))
        assert all(rule_of(swap) is rule and rule.named(swap, seen) == swap for swap in swaps_in(proposed))


@each_case
def test_a_plan_checked_is_the_same_plan(net: Net, method: Method) -> None:
    """Complete and priced alike, by the scan that its own swaps ask for, which may know less than the settings'."""
    settings = settings_of(method)
    try:
        made = plan(scanned(net, needs_of(settings)), settings)
    except PlanError:
        return  # a network without stages, or one that cannot become narrower
    again = check(made, scanned(net, needs_of(made)))
    assert set(again.skips) == set(made.skips)
    assert again.model_copy(update={"skips": made.skips}) == made


@each_case
def test_what_a_swap_takes_is_out_of_reach_of_later_rules(net: Net, method: Method) -> None:
    """Of a rule that opens what it made, nothing is taken; of any other, all that it touches."""
    for rule, seen, proposed in in_turn(net, method)[:-1]:
        later = rule.after(seen, swaps_in(proposed))
        taken = {module for swap in swaps_in(proposed) for module in rule.touches(swap, seen)}
        names = [*(site.name for site in later.sites), *later.others]
        left = {name for name in names if any(overlap(name, module) for module in taken)}
        assert bool(left) == bool(rule.opens and taken)


@each_case
def test_a_swap_of_what_is_excluded_is_refused(net: Net, method: Method) -> None:
    """Whatever it touches, by its rule; what lies elsewhere is no reason."""
    for rule, seen, proposed in in_turn(net, method):
        for swap in swaps_in(proposed)[:1]:
            rule.require_kept(swap, seen, [])
            with pytest.raises(PlanError, match="exclude"):
                rule.require_kept(swap, seen, [seen.sites[-1].name if rule.alone else rule.touches(swap, seen)[0]])


@each_case
def test_names_can_be_changed_and_changed_back(net: Net, method: Method) -> None:
    """As those of a part are in the plan of the whole: every name, and nothing else."""
    for _, _, proposed in in_turn(net, method):
        for entry in proposed:
            moved = entry.renamed(lambda name: f"body.{name}")
            assert moved != entry and moved.renamed(lambda name: name.removeprefix("body.")) == entry
            if not isinstance(moved, Skip) and not rule_of(moved).alone:
                assert all(name.startswith("body.") for name in (moved.target, *moved.touches))


# -- rewriting and fitting -------------------------------------------------------------------------------------


def test_stages_are_searched_once_per_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once for each swap: neither in rewriting, nor when it is asked where weights come from."""
    recorded = trace(resnet20(), torch.randn(2, 3, 16, 16))
    made = plan(scan(recorded), method="g-ghost")
    assert len(made.swaps) == 3

    def search(recorded: Traced) -> Any:
        pytest.fail("a rule searched the stages that the scan has found")

    monkeypatch.setattr(protocol, "find_stages", search)
    rewrite_fitted(recorded, made, torch.randn(16, 3, 16, 16), "data")
    with pytest.raises(pytest.fail.Exception, match="searched"):
        replaced(resnet20(), made.swaps, torch.randn(2, 3, 16, 16))  # here nothing was scanned


def test_the_zoo_has_something_for_every_rule() -> None:
    """Or what is said of swaps here would be said of none."""
    swapped = {
        swap.rule for net in ZOO for method in METHODS for *_, own in in_turn(net, method) for swap in swaps_in(own)
    }
    assert swapped == {rule.name for rule in RULES}
