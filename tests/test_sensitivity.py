"""What errors of a layer's outputs do to the network's, against derivatives taken one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghostify.fitting import rewrite_fitted
from ghostify.fitting.sensitivity import metric, sensitivities
from ghostify.planning import plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.tracing import trace

COUNT = 256


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()


def images() -> Tensor:
    return torch.randn(COUNT, 2, 3, 3, generator=torch.Generator().manual_seed(1))


def exact(module: nn.Sequential, x: Tensor) -> Tensor:
    """Σ Jᵀ J over images and places, of the outputs over their deviation: (4, 4)."""
    z = module[0](x).detach()

    def outputs(one: Tensor) -> Tensor:
        return module[1:](one[None].clone())[0]

    j = torch.func.vmap(torch.func.jacrev(outputs))(z) / module(x).std()  # (N, 3, 4, H, W)
    return torch.einsum("noahw,nobhw->ab", j, j).double().detach()


@pytest.mark.parametrize("frozen", [False, True])
def test_random_projections_have_the_mean_of_all_derivatives(frozen: bool) -> None:
    module = net().requires_grad_(not frozen)
    traced = trace(module, images())
    (conv,) = (node for node in traced.graph.nodes if node.target == "0")
    found = sensitivities(traced, module, [images()], {conv})[conv] / 2  # two projections
    module[1] = nn.ReLU()
    wanted = exact(module, images())
    torch.testing.assert_close(found, wanted, rtol=0.15, atol=0.1 * float(wanted.diagonal().mean()))


def test_directions_that_change_no_output_do_not_count() -> None:
    """The classifier reads the difference of two maps, so what both have in common is lost without harm."""
    module = net()
    module[1] = nn.Identity()
    with torch.no_grad():
        module[4].weight[:, 1] = -module[4].weight[:, 0]
    traced = trace(module, images())
    (conv,) = (node for node in traced.graph.nodes if node.target == "0")
    found = sensitivities(traced, module, [images()], {conv})[conv]
    common = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
    assert common @ found @ common < 1e-6 * found.diagonal().sum()


def test_without_any_derivative_the_own_weights_stay() -> None:
    weights = torch.tensor([4.0, 1.0])
    assert metric(weights, torch.zeros(2, 2, dtype=torch.float64)).tolist() == [[1, 0], [0, 0.25]]


def test_a_ghost_keeps_the_direction_that_the_outputs_depend_on() -> None:
    """Two maps vary twice as much as the others, and the classifier reads them for nothing."""
    module = net()
    module[1] = nn.Identity()
    with torch.no_grad():
        module[0].weight[:2] *= 2
        module[4].weight[:, :2] = 0
    traced = trace(module, images()[:1])
    settings = GhostSettings(cheap="pointwise", s=2, min_saving=0, also=["stem"])
    wanted = plan(scan_for(traced, settings), settings)

    def missed(sensitive: bool) -> float:
        made = rewrite_fitted(traced, wanted, images(), {"sensitive": sensitive}).module.eval()
        with torch.no_grad():
            given = module(images())
            return float((made(images()) - given).square().mean() / given.var(0).mean())

    assert missed(True) < 0.1 < 0.5 < missed(False)
