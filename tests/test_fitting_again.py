"""A network that holds ghosts already is converted and fitted once more, by every method."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit_judging import images, network
from torch import nn

import ghostify
from ghostify import Ghosted, convert
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost

X = images(32)
FIRST: dict[str, dict[str, Any]] = {
    "plain": {"min_saving": 0, "pointwise": "none"},
    "pointwise": {"min_saving": 0},
    "low rank": {"min_saving": 0, "pointwise": 1},
    "parts of their own": {"min_saving": 0, "parts": "norm-act"},
    "g-ghost": {"method": "g-ghost"},
    "thin": {"method": "thin", "width": 0.5},
    "width": {"method": "width", "width": 0.5},
}
SECOND = {name: FIRST[name] for name in ("plain", "pointwise", "g-ghost", "thin", "width")} | {
    "both": {"method": "both"}
}
CGHOSTS = ("plain", "pointwise", "low rank", "parts of their own")


@cache
def once(name: str) -> Ghosted:
    """Converted in some blocks, if layer by layer, so that there is something left before and behind."""
    return convert(network(), X[:1], FIRST[name] | ({"include": ("2.*",)} if name in CGHOSTS else {}), images=X)


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_a_converted_network_is_converted_again(first: str, second: str) -> None:
    """Or it is said in one line why not; what was a ghost already is fitted as the layers it is made of."""
    before = once(first)
    try:
        again = convert(before.module, X[:1], SECOND[second], images=X)
    except PlanError:
        return
    assert again.fit is not None and again.fit.error is not None and again.fit.unfitted is not None
    assert 0 < again.fit.error <= again.fit.unfitted
    names = [layer.target for layer in again.fit.layers]
    old = {name for name, part in before.module.named_modules() if isinstance(part, CGhost)}
    assert old.isdisjoint(names) and len(names) == len(set(names))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))).eval()


@pytest.mark.parametrize("later", ["0", "1"])
@pytest.mark.parametrize("pointwise", ["none", "auto"])
def test_a_new_ghost_before_an_old_one(later: str, pointwise: str, tmp_path: Path) -> None:
    """Saved, and read again."""
    settings = {"min_saving": 0, "also": ("stem", "classifier"), "pointwise": pointwise}
    old = convert(convolutions(), X[:1], settings | {"include": ("2",)}, images=X)
    new = convert(old.module, X[:1], settings | {"include": (later,)}, images=X)
    assert isinstance(new.module.get_submodule(later), CGhost) and isinstance(new.module.get_submodule("2"), CGhost)
    kinds = {layer.target: layer.kind for layer in new.fit.layers}  # type: ignore[union-attr]
    assert kinds[later] == "ghost" and kinds["2.primary"] == "layer"
    ghostify.save(new, tmp_path / "run")
    again = ghostify.load(tmp_path / "run", model=old.module, example=X[:1])
    with torch.no_grad():
        assert torch.equal(again.module(X), new.module(X))


# -- what is excluded stays ------------------------------------------------------------------------------------


def parts_within(module: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in module.state_dict().items() if key.startswith(f"{name}.")}


FITS: list[dict[str, Any]] = [{}, {"kept": False}, {"arrange": "reorder"}, {"how": "polish", "seconds": 0.2}]


@pytest.mark.parametrize(
    ("method", "excluded", "fit"),
    [
        *product(("pointwise",), ("2", "2.body.0", "4"), FITS),
        *product(("plain", "thin"), ("2.body.0",), FITS),
    ],
    ids=str,
)
def test_what_is_excluded_keeps_every_number(method: str, excluded: str, fit: dict[str, Any]) -> None:
    """Weights, norms and their statistics, though what it reads has changed: of a block, a layer, the head."""
    model = network()
    ghosted = convert(model, X[:1], FIRST[method] | {"exclude": (excluded,)}, images=X, fit=fit)
    assert ghosted.fit is not None and ghosted.fit.layers
    found, wanted = parts_within(ghosted.module, excluded), parts_within(model, excluded)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("method", ["plain", "pointwise"])
def test_norms_of_kept_layers_stay_where_those_are_not_fitted(method: str) -> None:
    """Kept by a pattern of what to take."""
    model = network()
    fit = {"kept": False, "arrange": "none"}
    ghosted = convert(model, X[:1], FIRST[method] | {"include": ("1.*",)}, images=X, fit=fit)
    for name in ("0", "2", "3", "4"):
        found, wanted = parts_within(ghosted.module, name), parts_within(model, name)
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
