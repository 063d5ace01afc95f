"""The C-Ghost module (IJCV paper, Eq. 1-5).

    Eq. 1   Y  = X * f + b                 an ordinary convolution,  (N, c, H, W) → (N, n, H', W')
    Eq. 2   Y' = X * f'                    the primary convolution,  (N, c, H, W) → (N, m, H', W')   m = ⌈n/s⌉
    Eq. 3   y_ij = Φ_ij(y'_i)              s−1 cheap operations,     (N, m, H', W') → (N, m, H', W') each

The output is ``[Y', Φ_1(Y'), …, Φ_{s−1}(Y')]`` sliced to n maps.  Two departures from the letter of the paper: the
cheap part is s−1 depthwise convolutions instead of one with a channel multiplier (the same function up to channel
order, and inference engines keep it on their fast path), and with g groups the maps are interleaved by group, so that
every group of outputs still reads its own group of inputs and no other.  It is as true of one and of three dimensions.

The cheap operation is a value (``ghostify.cheap``): the papers' s−1 depthwise convolutions, a pointwise one over all
intrinsic maps, or the sum of both:

    [Φ_1(Y'), …, Φ_{s−1}(Y')] + P·Y'       the pointwise convolution,  (N, m, H', W') → (N, n−m, H', W')
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ghostify.cheap import USUAL, Cheap
from ghostify.errors import PlanError
from ghostify.ghosts.carrying_over import factors, mixture, projection
from ghostify.ghosts.narrowing import (
    PLAIN,
    Conv,
    dimensions,
    folded,
    has_own_forward,
    narrowed,
    not_narrowable,
    prepared,
)
from ghostify.ghosts.selecting import interleaved, selected

# To symbolic tracing one call each, for they ask their input for its format or its dimensions.
fx.wrap("interleaved")
fx.wrap("selected")
fx.wrap("linear_maps")
fx.wrap("_of_linear")

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def intrinsic_maps(n: int, s: int, groups: int = 1) -> int:
    """m, the number of intrinsic maps for n outputs: ⌈n/s⌉, taken group by group."""
    return groups * math.ceil(n / groups / s)


Norm = Callable[[int], nn.Module]
Act = Callable[[], nn.Module]


class _Form(NamedTuple):
    """What a ghost module is besides the geometry of the convolution it stands for."""

    s: int
    cheap: Cheap
    m: int | None
    norm: Norm | None
    act: Act | None
    ordered: bool


class CGhost(nn.Module):
    """A C-Ghost module with the contract of ``nn.Conv2d``: (N, c, H, W) → (N, n, H', W').

    Takes ``nn.Conv2d``'s arguments (they belong to the primary convolution) and the ghost's own: the ratio ``s`` ≥ 2
    and the ``cheap`` operation, a value or what one is written as (``"depthwise 3"``, ``"pointwise"``); in its place,
    the odd size ``d`` of depthwise filters and the rank ``pointwise`` of a 1x1 convolution over all intrinsic maps that
    is added to them (0 for none, ``min(m, n − m)`` or more for a full one).  ``m`` is the number of intrinsic maps
    where it is not ⌈n/s⌉.  ``norm`` (channels → module) and ``act`` (→ module) follow the primary convolution and each
    depthwise one, as in C-GhostNet; without them the module is linear, as in the papers' converted networks.
    ``ordered`` gives it a buffer ``order`` (n,): output c is then the map at place ``order[c]`` of what is
    concatenated, so that any output may be intrinsic.  Raises ``PlanError`` for a ratio above the width of a group, an
    even ``d``, or a pointwise convolution with groups, ``norm`` or ``act``.
    """

    if TYPE_CHECKING:  # torch.jit.script reads annotations of a class, and none with a bar in it
        order: Tensor | None
    __jit_unused_properties__: ClassVar[list[str]] = ["bias", "operation", "_own_primary"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        s: int = 2,
        d: int = USUAL,
        norm: Callable[[int], nn.Module] | None = None,
        act: Callable[[], nn.Module] | None = None,
        pointwise: int = 0,
        ordered: bool = False,
        cheap: Cheap | str | None = None,
        m: int | None = None,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}

        def primary(filters: int) -> Conv:
            fields = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
            return nn.Conv2d(in_channels, filters, *fields, **place)

        form = _Form(s, _one_of(cheap, d, pointwise), m, norm, act, ordered)
        self._assemble(primary, out_channels, groups, bias, form, place)

    def _assemble(
        self,
        primary: Callable[[int], Conv],
        out_channels: int,
        groups: int,
        bias: bool,
        form: _Form,
        place: dict[str, Any],
    ) -> None:
        """Put the parts together; ``primary`` makes a convolution of m filters, of any class and dimensions."""
        s, cheap, asked, norm, act, ordered = form
        check(out_channels, s, cheap, groups, linear=norm is None and act is None, m=asked)
        m = intrinsic_maps(out_channels, s, groups) if asked is None else asked
        conv: Any = primary(m)
        self.m, self.s, self.d, self.rank = m, s, cheap.d, cheap.rank(out_channels, m)
        self.out_channels, self.groups = out_channels, groups
        self._take_geometry(conv)
        plain: Any = PLAIN[self._dimensions]
        self.primary = _part(conv, m, norm, act, place)
        filters = cheap.filters(plain, m, s, bias, **place)
        self.cheap = nn.ModuleList(_part(conv, m, norm, act, place) for conv in filters)
        self.pointwise = _one_module(cheap.mixing(plain, out_channels, m, bias, **place))
        self.register_buffer("order", torch.arange(out_channels, device=place["device"]) if ordered else None)

    def _take_geometry(self, conv: Any) -> None:
        """Have the fields of the primary convolution: a forward may ask a layer for them, as one does who pads."""
        self.in_channels, self.kernel_size, self.stride = conv.in_channels, conv.kernel_size, conv.stride
        self.padding, self.dilation, self.padding_mode = conv.padding, conv.dilation, conv.padding_mode
        self._dimensions = dimensions(conv)
        self._channels = -1 - self._dimensions
        """The dimension of the channels, counted from the right, for an image may come without a batch."""

    @classmethod
    def from_conv(
        cls,
        conv: Conv,
        s: int = 2,
        d: int = USUAL,
        norm: Norm | None = None,
        act: Act | None = None,
        pointwise: int = 0,
        order: Sequence[int] | None = None,
        *,
        cheap: Cheap | str | None = None,
        m: int | None = None,
    ) -> CGhost:
        """The module that takes the place of ``conv``, on its device, in its dtype and mode, with its weights.

        The simplest honest rule of carrying weights: within each group the first filters become the primary ones as
        they are.  The filter of each ghost map is projected on its intrinsic map's, ``⟨w_j, w_i⟩ / ⟨w_i, w_i⟩``, and
        that one number is the centre tap of its depthwise filter; a pointwise convolution beside it begins at zero.
        One that is alone begins as the projection on all of them, ``P = W_g W_pᵀ (W_p W_pᵀ)⁻¹``.  Ghosts so made are
        rough; fitting refines them.  ``order`` makes the module ordered so; "first" filters are then those of the
        outputs whose maps stand first.

        A convolution with a forward of its own becomes a primary convolution of its own class, and filters are compared
        as it prepares them; raises ``PlanError`` where fewer filters would give other maps.  Parametrisations are
        folded: the primary convolution is a plain one with the weight they give.
        """
        if has_own_forward(conv):
            if reason := not_narrowable(conv):
                raise PlanError(f"The convolution {reason}.")
        elif parametrize.is_parametrized(conv):
            conv = folded(conv)
        ghost = cls.__new__(cls)
        nn.Module.__init__(ghost)
        place = {"device": "meta", "dtype": conv.weight.dtype}
        form = _Form(s, _one_of(cheap, d, pointwise), m, norm, act, order is not None)
        fields = (conv.out_channels, conv.groups, conv.bias is not None)
        ghost._assemble(partial(_primary, conv, order), *fields, form, place)
        weight, bias = prepared(conv) if has_own_forward(conv) else (conv.weight, conv.bias)
        ghost._take_over(conv, weight, bias, order)
        return ghost

    # What forward calls is written in the part of Python that torch.jit.script knows: no star, no super, no keywords
    # of zip, and one type per name.
    def forward(self, x: Tensor) -> Tensor:
        return self._maps(x)

    def _maps(self, x: Tensor) -> Tensor:
        return self._all_of(self.primary(x))

    def _all_of(self, y: Tensor) -> Tensor:
        """The n maps of the m intrinsic ones."""
        ghosts = [cheap(y) for cheap in self.cheap]
        if self.pointwise is not None:
            ghosts = self._added(ghosts, self.pointwise(y))
        ghosts.insert(0, y)
        merged = self._merge(ghosts)
        if self.order is None:
            return merged
        return selected(merged, self.order, self._channels)

    def renumber(self, out_channels: int) -> None:
        """Bring its numbers in line with parts that have been given fewer channels, and give so many together."""
        conv: Any = _conv_of(self.primary)
        self.m, self.out_channels = conv.out_channels, out_channels
        self.in_channels, self.groups = conv.in_channels, conv.groups
        if isinstance(self.pointwise, nn.Sequential):
            self.rank = self.pointwise[0].out_channels  # type: ignore[assignment]
        else:
            self.rank = min(self.rank, self.m, out_channels - self.m)

    @property
    def operation(self) -> Cheap:
        """Its cheap operation; ``cheap`` are the depthwise convolutions of that, by the name their weights have."""
        depthwise = self.d if len(self.cheap) else None
        if self.pointwise is None:
            return Cheap(depthwise)
        return Cheap(depthwise, self.rank if isinstance(self.pointwise, nn.Sequential) else "full")

    @torch.no_grad()
    def linear_map(self, on_vectors: bool = False) -> tuple[Tensor, Tensor | None] | None:
        """What follows the primary convolution as one 1x1 convolution, in the module's order of maps, in float64.

        The weight (n, m), of which m rows are those of the identity, and the bias (n,), None where there is none.  None
        of both where there is no such convolution: with depthwise filters larger than 1x1, unless what they read are
        vectors (maps of 1x1), or with norms and activations.
        """
        if isinstance(self.primary, nn.Sequential) or not (self.d == 1 or on_vectors):
            return None
        rest = copy.deepcopy(self, {id(self.primary): nn.Identity()}).double()
        # A linear operation on maps is known by what it makes of unit maps, and of none.
        units = torch.eye(self.m, device=next(self.parameters()).device, dtype=torch.float64)
        probes = torch.cat([units, units.new_zeros(1, self.m)])
        made = rest._all_of(probes.reshape(*probes.shape, *[1] * self._dimensions)).flatten(1)
        return (made[:-1] - made[-1]).T.contiguous(), made[-1] if _conv_of(self.primary).bias is not None else None

    def extra_repr(self) -> str:
        ordered = "" if self.order is None else ", ordered"
        return f"{self.in_channels}, {self.out_channels}, s={self.s}, cheap={self.operation}{ordered}"

    def _added(self, ghosts: list[Tensor], pointwise: Tensor) -> list[Tensor]:
        """s−1 tensors (N, m, H, W) and one (N, n−m, H, W) → their sums, n−m maps in pieces of m, the last one shorter.

        Where m·(s−1) ≥ n, the last ghosts are all dropped, as the slice would drop them.  Without depthwise ones the
        pointwise convolution's are the ghosts.
        """
        if len(ghosts) == 0:
            return [pointwise]
        m, left = self.m, self.out_channels - self.m
        sums: list[Tensor] = []
        for index, ghost in enumerate(ghosts):
            start = index * m
            width = min(m, left - start)
            if width > 0:
                kept = ghost if width == m else ghost.narrow(self._channels, 0, width)
                added = pointwise if width == left else pointwise.narrow(self._channels, start, width)
                sums.append(kept + added)
        return sums

    def _merge(self, maps: list[Tensor]) -> Tensor:
        """s tensors (N, m, H, W) → (N, n, H, W): concatenated, group by group, and sliced where they are too many."""
        exact = self.pointwise is not None or self.s * self.m == self.out_channels
        width, channels = self.out_channels // self.groups, self._channels
        if self.groups > 1:
            return interleaved(maps, self.groups, channels, None if exact else width)
        merged = torch.cat(maps, channels)
        return merged if exact else merged.narrow(channels, 0, width)

    def _take_over(
        self, old: nn.Module, weight: Tensor, bias: Tensor | None, order: Sequence[int] | None = None
    ) -> None:
        """Leave the meta device for where ``old`` is, with its weights, mode and frozenness.

        A primary convolution of its own class is there already and has them.
        """
        kept = set(self._own_primary.modules()) if self._own_primary is not None else set()
        parts = [part for part in self.modules() if part not in kept]
        for part in parts:
            part.to_empty(device=weight.device, recurse=False)
        if self.order is not None and order is not None:
            self.order = torch.tensor(order, device=weight.device)
            # Output c is the map at place order[c], so the filter of a place is that of the output it comes out as.
            inverse = self.order.argsort()
            weight, bias = weight[inverse], None if bias is None else bias[inverse]
        for part in parts:
            if not isinstance(part, Conv) and hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]
        with torch.no_grad():
            self._carry(weight, bias)
        for part in parts:
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(old.weight.requires_grad)  # type: ignore[arg-type]
        self.train(old.training)

    def _carry(self, weight: Tensor, bias: Tensor | None) -> None:
        """Fill all convolutions from a filter bank (n, c/g, k, k) and its bias (n)."""
        if weight.is_meta:
            return
        banks = self._by_part(weight)
        biases = self._by_part(bias) if bias is not None else None
        if self._own_primary is None:
            primary = _conv_of(self.primary)
            primary.weight.copy_(banks[0])
            if biases is not None:
                primary.bias.copy_(biases[0])  # type: ignore[union-attr]
        if len(self.cheap):
            self._carry_taps(banks, biases)
        else:
            self._carry_mixture(banks, biases)

    def _carry_taps(self, banks: list[Tensor], biases: list[Tensor] | None) -> None:
        """Fill the depthwise convolutions, each with a number in its centre, and a pointwise one beside them by zero.

        Of a pointwise convolution of low rank only A is zero, because a gradient must find its way: B takes the first
        maps.
        """
        for i, part in enumerate(self.cheap, start=1):
            conv, tap = _conv_of(part), projection(banks[i], banks[0])
            conv.weight.zero_()
            conv.weight.flatten(1)[:, self.d**self._dimensions // 2] = tap
            if biases is not None:
                conv.bias.copy_(biases[i] - tap * biases[0])  # type: ignore[union-attr]
        if isinstance(self.pointwise, nn.Sequential):
            nn.init.dirac_(self.pointwise[0].weight)  # type: ignore[arg-type]
        if self.pointwise is not None:
            nn.init.zeros_([*self.pointwise.parameters()][-1])

    def _carry_mixture(self, banks: list[Tensor], biases: list[Tensor] | None) -> None:
        """Fill a pointwise convolution that is alone: ghosts are the mixtures nearest to their filters."""
        left = self.out_channels - self.m  # parts of m maps may be a few more
        nearest = mixture(torch.cat(banks[1:])[:left], banks[0])
        convs = [part for part in self.pointwise.modules() if isinstance(part, Conv)]  # type: ignore[union-attr]
        for conv, factor in zip(convs, factors(nearest, self.rank if len(convs) > 1 else 0), strict=True):
            conv.weight.copy_(factor.reshape(conv.weight.shape))
        if biases is not None:
            rest = torch.cat(biases[1:])[:left]
            convs[-1].bias.copy_(rest - nearest.to(rest.dtype) @ biases[0])  # type: ignore[union-attr]

    def _by_part(self, values: Tensor) -> list[Tensor]:
        """(n, …) → s tensors (m, …): the outputs each part stands for; zeros where the slice drops them."""
        grouped = values.unflatten(0, (self.groups, -1))
        per_part = self.m // self.groups
        missing = self.s * per_part - grouped.shape[1]
        if missing > 0:
            grouped = torch.cat([grouped, grouped.new_zeros(self.groups, missing, *grouped.shape[2:])], 1)
        return [part.flatten(0, 1) for part in grouped.split(per_part, 1)]

    @property
    def bias(self) -> None:
        """None where there is no bias, for a forward that asks; where there is one, there is no such attribute.

        For the biases of the parts are no bias of n maps: who reads or writes one must fail, and not be given another.
        """
        if _conv_of(self.primary).bias is not None:
            raise AttributeError("bias")  # nn.Module says it in full

    @property
    def _own_primary(self) -> Conv | None:
        """The primary convolution, if it has a forward of its own."""
        conv = _conv_of(self.primary)
        return conv if has_own_forward(conv) else None


class CGhostLinear(CGhost):
    """A 1x1 C-Ghost module with the contract of ``nn.Linear`` on vectors, (N, c) → (N, n), and on maps whose channels
    come last, (N, H, W, c) → (N, H, W, n).
    """

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        s: int = 2,
        d: int = USUAL,
        pointwise: int = 0,
        *,
        cheap: Cheap | str | None = None,
        m: int | None = None,
    ) -> CGhostLinear:
        """The module that takes the place of ``linear``, with its weights, as ``from_conv`` carries them."""
        if parametrize.is_parametrized(linear):
            linear = folded(linear)
        ghost = cls(
            linear.in_features,
            linear.out_features,
            1,
            bias=linear.bias is not None,
            device="meta",
            dtype=linear.weight.dtype,
            s=s,
            cheap=_one_of(cheap, d, pointwise),
            m=m,
        )
        ghost._take_over(linear, linear.weight[:, :, None, None], linear.bias)
        return ghost

    def forward(self, x: Tensor) -> Tensor:
        return _of_linear(self._maps(linear_maps(x)), x)


def linear_maps(x: Tensor) -> Tensor:
    """What a linear layer reads or gives, as maps: (N, c) → (N, c, 1, 1), (N, H, W, c) → (N, c, H, W).  A view."""
    return x[:, :, None, None] if x.dim() == 2 else x.permute(0, 3, 1, 2)


def _of_linear(maps: Tensor, x: Tensor) -> Tensor:
    """Maps as what a linear layer gives for x: (N, n, 1, 1) → (N, n), (N, n, H, W) → (N, H, W, n).

    What nn.Linear gives is contiguous, and may be viewed; so is this, for convolutions keep channels last.
    """
    return maps.flatten(1) if x.dim() == 2 else maps.permute(0, 2, 3, 1).contiguous()


def check(n: int, s: int, cheap: Cheap, groups: int = 1, linear: bool = True, m: int | None = None) -> None:
    """Raise ``PlanError`` unless n outputs in ``groups`` groups can be made with ratio ``s`` and a cheap operation.

    A pointwise convolution takes one group, and parts without norm and activation (``linear``).  ``m``: the number of
    intrinsic maps, where it is set.
    """
    if s < 2:
        raise PlanError(f"ratio s = {s}: a ghost module needs s of 2 or more.")
    if s > n // groups:
        raise PlanError(f"ratio s = {s} is larger than the {n // groups} output maps{' of a group' * (groups > 1)}.")
    cheap.require(groups, linear)
    if m is not None:
        _check_intrinsic(m, n, s, cheap, groups)


def _check_intrinsic(m: int, n: int, s: int, cheap: Cheap, groups: int) -> None:
    """Depthwise filters make s−1 ghosts of each intrinsic map, so these must be ⌈n/s⌉ or more; a mixture any number."""
    least = groups if cheap.depthwise is None else intrinsic_maps(n, s, groups)
    if not least <= m < n or m % groups:
        raise PlanError(
            f"m = {m} intrinsic maps: of {n} outputs{f' in {groups} groups' if groups > 1 else ''} they must be "
            f"{least} to {n - groups}{f', a multiple of {groups}' if groups > 1 else ''}."
        )


def _one_of(cheap: Cheap | str | None, d: int, rank: int) -> Cheap:
    """The cheap operation, told by a value or by the two numbers of filters and a pointwise convolution."""
    if cheap is None:
        return Cheap.of_numbers(d, rank)
    if (d, rank) != (USUAL, 0):
        raise PlanError(f"cheap = {cheap} and d = {d}, pointwise = {rank} both tell the cheap operation; give cheap.")
    return Cheap.of(cheap)


def _one_module(convs: list[nn.Module]) -> nn.Module | None:
    """Convolutions one after the other as a module; None for none."""
    if len(convs) > 1:
        return nn.Sequential(*convs)
    return convs[0] if convs else None


def _primary(conv: Conv, order: Sequence[int] | None, m: int) -> Conv:
    """The convolution of m filters in the place of ``conv``: a plain one on the meta device, or one of its own class
    with the filters of the intrinsic maps.
    """
    if has_own_forward(conv):
        places = torch.arange(conv.out_channels) if order is None else torch.tensor(order).argsort()
        return narrowed(conv, places.view(conv.groups, -1)[:, : m // conv.groups].flatten().tolist())
    plain: Any = PLAIN[dimensions(conv)]
    fields = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias is not None)
    made: Conv = plain(conv.in_channels, m, *fields, conv.padding_mode, device="meta", dtype=conv.weight.dtype)
    return made


def _part(
    conv: Conv,
    channels: int,
    norm: Callable[[int], nn.Module] | None,
    act: Callable[[], nn.Module] | None,
    place: dict[str, Any],
) -> nn.Module:
    followers = [norm(channels).to(**place)] if norm else []
    followers += [act()] if act else []
    return nn.Sequential(conv, *followers) if followers else conv


def _conv_of(part: nn.Module) -> Conv:
    conv = part[0] if isinstance(part, nn.Sequential) else part
    assert isinstance(conv, Conv)
    return conv
