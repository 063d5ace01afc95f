"""The least squares by which later layers answer an error, against the normal equations written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ghostify.harm.answering import Regression, answering
from ghostify.harm.rows import Affine, Rows

OUTPUTS = 12


def rows(many: int, ceiling: float | None = None, holding: float = 1.0, error: float = 0.0) -> Rows:
    """Outputs at so many positions, and sums that are a linear map of them: ``holding`` for a share of the positions,
    then its opposite; but for some independent error.
    """
    generator = torch.Generator().manual_seed(0)
    y, mix, noise = (torch.randn(size, OUTPUTS, generator=generator) for size in (many, OUTPUTS, many))
    sign = torch.where(torch.arange(many) < holding * many, 1.0, -1.0)[:, None]
    wanted = y + 0.3 * sign * (y @ mix) + error * noise
    slope = torch.linspace(0.5, 2, OUTPUTS)
    return Rows(y, slope * wanted + 0.5, 0.5, slope, ceiling)


def written_out(given: Rows, strength: float) -> Tensor:
    """B = I + cov(t − y, y) (cov(y) + strength I)⁻¹, n x n however few rows there are."""
    y, t = given.y.double(), given.targets(None).double()
    y, d = y - y.mean(0), (t - y) - (t - y).mean(0)
    s = y.T @ y / len(y)
    eye = torch.eye(OUTPUTS, dtype=torch.float64)
    return eye + torch.linalg.solve(s + strength * eye, y.T @ d / len(y)).T


@pytest.mark.parametrize("many", [200, OUTPUTS, 5], ids=["many rows", "as many as outputs", "fewer than outputs"])
def test_the_nearest_map_solves_the_normal_equations_of_all_outputs(many: int) -> None:
    given = rows(many)
    # The ridge is in units of the mean variance of the dimensions that the rows span.
    variance = float((given.y - given.y.mean(0)).square().mean(0).sum()) / min(many, OUTPUTS)
    found = Regression(given, 0.1).nearest(None, 1)
    assert torch.allclose(found.matrix, written_out(given, 0.1 * variance), atol=1e-5)
    mean = given.targets(None).double().mean(0)
    assert torch.allclose(found.matrix @ given.y.double().mean(0) + found.offset, mean, atol=1e-5)


def test_what_a_linear_map_makes_good_is_made_good() -> None:
    given = rows(400)
    found = answering(given, -1)
    assert found is not None
    assert (found(given.y) - given.targets(None)).abs().max() < 1e-2 * given.y.abs().max()


def test_what_makes_other_positions_worse_is_no_answer() -> None:
    """The last quarter, of which no map is made, judges."""
    assert answering(rows(400, holding=0.75), 1) is None


def test_what_a_rectifier_hides_is_not_made_good() -> None:
    """An answer that need not keep what is negative comes nearer where it counts."""
    bent, straight = rows(400, ceiling=float("inf"), error=2.0), rows(400, error=2.0)
    errors = []
    for given in (bent, straight):
        answer = answering(given, -1)
        assert answer is not None
        made = given.slope * answer(given.y) + given.added
        errors.append(float((made.relu() - bent.wanted.relu()).square().mean()))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("shape", [(3, OUTPUTS, 4, 5), (3, OUTPUTS, 7), (3, OUTPUTS)])
def test_a_map_of_channels_is_a_pointwise_convolution(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    matrix, offset = torch.randn(OUTPUTS, OUTPUTS, generator=generator), torch.randn(OUTPUTS, generator=generator)
    value = torch.randn(shape, generator=generator)
    found = Affine(matrix, offset, 1)(value)
    wanted = torch.einsum("mn,bn...->bm...", matrix, value) + offset.reshape(-1, *[1] * (len(shape) - 2))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert found.is_contiguous()  # a network may view it
