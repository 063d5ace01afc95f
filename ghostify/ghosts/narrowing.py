"""Convolutions that prepare their weight or their input before they convolve: the same module with fewer filters.

    forward(x) = conv(padded(x), prepared(weight), bias)        (N, c, H, W) → (N, n, H', W')

Where every map depends on its own filter alone (a standardised weight, a gain, a padding of its own), m of the filters
and what belongs to them make a module of the same class that gives m of the maps: the primary convolution of a ghost.
Nothing but a run tells whether that is so, and ``not_narrowable`` makes one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from ghostify.running import NARROWED, agree

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
PLAIN: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""torch's own convolution, by the number of a map's dimensions."""

_Layer = TypeVar("_Layer", bound=nn.Module)


def dimensions(conv: nn.Module) -> int:
    """Of its maps: 1, 2 or 3."""
    return next(n for n, kind in PLAIN.items() if isinstance(conv, kind))


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer runs other code than torch's."""
    base = next(kind for kind in (*PLAIN.values(), nn.Linear) if isinstance(layer, kind))
    parts = ("forward", "_conv_forward")
    return any(getattr(type(layer), part, None) is not getattr(base, part, None) for part in parts)


def per_filter(tensor: Tensor, n: int) -> bool:
    """Whether a tensor holds something for each of n filters."""
    return tensor.dim() > 0 and len(tensor) == n


def narrowed(conv: Conv, filters: Sequence[int]) -> Conv:
    """A copy of ``conv`` that has these filters alone, in this order, with what it holds for each; the rest as it is.

    Its groups stay as many, so ``filters`` must be as many of every group.
    """
    # By the memo of a copy, which puts the fewer in the place of a tensor wherever and by whatever name it is held.
    held = [tensor for tensor in (*conv.parameters(), *conv.buffers()) if per_filter(tensor, conv.out_channels)]
    narrow = copy.deepcopy(conv, {id(tensor): _picked(tensor, filters) for tensor in held})
    narrow.out_channels = len(filters)
    return narrow


def folded(layer: _Layer) -> _Layer:
    """A copy of a parametrised layer whose parameters are what its parametrisations give in eval mode."""
    plain: Any = copy.deepcopy(layer).eval()
    with torch.enable_grad():
        values: dict[str, Tensor] = {name: getattr(plain, name) for name in plain.parametrizations}
    # Not parametrize.remove_parametrizations: it takes the weight from the class, which the original is of, too.
    plain.__class__ = parametrize.type_before_parametrizations(plain)
    del plain.parametrizations
    for name, value in values.items():
        plain.register_parameter(name, nn.Parameter(value.detach(), requires_grad=value.requires_grad))
    result: _Layer = plain.train(layer.training)
    return result


def prepared(conv: Conv) -> tuple[Tensor, Tensor | None]:
    """The filters (n, c/g, k, k) and biases (n) a narrowable convolution convolves with; on meta, those it has."""
    if conv.weight.is_meta:
        return conv.weight, conv.bias
    (call,) = _run(copy.deepcopy(conv).eval(), conv.weight.new_zeros(_image(conv))).calls
    return call["weight"], call.get("bias")


def not_narrowable(conv: Conv) -> str | None:
    """Why a convolution cannot do with some of its filters, as the end of a sentence that begins with its name.

    It is asked on random numbers, so that what it was trained to (a gain of zero) hides nothing, and on the CPU, where
    one on the meta device has an answer, too.
    """
    own = f"is a {type(conv).__name__} with a forward of its own, which"
    try:
        twin, x = _with_random_numbers(conv), torch.randn(_image(conv), generator=torch.Generator().manual_seed(0))
        seen = _run(twin, x)
        if reason := _beside_preparing(seen, twin):
            return f"{own} {reason}"
        for filters in _choices(conv):
            expected = seen.output.index_select(1, torch.tensor(filters))
            if not (expected.isfinite().all() and agree(expected, _run(narrowed(twin, filters), x).output, NARROWED)):
                return f"{own} gives other maps when it has fewer filters"
    except Exception as problem:  # it may be any code
        said = str(problem).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(problem).__name__
        return f"{own} does not run on a small image or with fewer filters ({said})"
    return None


def _picked(tensor: Tensor, filters: Sequence[int]) -> Tensor:
    value = tensor.detach()[torch.tensor(filters, device=tensor.device)]
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _image(conv: Conv) -> tuple[int, ...]:
    """Shape of an image that is large enough for the kernel and its padding."""
    reach = (2 * step * size for step, size in zip(conv.dilation, conv.kernel_size, strict=True))
    return (1, conv.in_channels, *(size + more for more, size in enumerate(reach, start=1)))


def _choices(conv: Conv) -> list[list[int]]:
    """Two choices of filters: the first half of every group, as of a ghost, and the last, which no chance helps."""
    width = conv.out_channels // conv.groups
    groups = [range(start, start + width) for start in range(0, conv.out_channels, width)]
    return [[f for group in groups for f in group[: -(-width // 2)]], [group[-1] for group in groups]]


def _with_random_numbers(conv: Conv) -> Conv:
    """A copy on the CPU, in eval mode and float32, with random parameters: positive, for it may take their roots."""
    twin = copy.deepcopy(conv)
    nowhere = conv.weight.is_meta
    twin = (twin.to_empty(device="cpu") if nowhere else twin.cpu()).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *(twin.buffers() if nowhere else ())):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.75 + 0.25)
    return twin


class _Run(TorchFunctionMode):
    """Notes the convolutions that a module calls, and what it gives."""

    output: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").startswith("conv"):
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            self.calls.append(given | {"output": result})
        return result


def _run(conv: Conv, x: Tensor) -> _Run:
    with torch.no_grad(), _Run() as seen:
        seen.output = conv(x)
    return seen


def _beside_preparing(seen: _Run, conv: Conv) -> str | None:
    """What a forward does besides preparing a weight and an image and convolving them."""
    if len(seen.calls) != 1:
        return f"calls {len(seen.calls)} convolutions and not one"
    (call,) = seen.calls
    if call["weight"].shape != conv.weight.shape:
        return "convolves with a weight of another shape than its own"
    return None if torch.equal(call["output"], seen.output) else "goes on after its convolution"


def holds_its_weights(module: nn.Module) -> bool:
    """Whether ``weight`` and ``bias`` are a layer's own parameters (or None).

    Else a hook computes them before each call, as those of the old ``weight_norm`` and of pruning do, and would write
    over what they are set to.
    """
    return {"weight", "bias"} <= module._parameters.keys()


def has_hooks(module: nn.Module) -> bool:
    """Whether a module, or one in it, carries hooks that a module in its place would not have."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, kind) for part in module.modules() for kind in kinds)
