"""Networks written as people write them: each does one thing that trips tools which read models, and says its outcome.

The zoo (``zoo.py``) holds the habits of architectures; here are the habits of code.
"""

from __future__ import annotations

import copy
import threading
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision import tv_tensors
from torchvision.ops import StochasticDepth
from zoo import conv_bn, head, image

PATH = "another input may take another path"
FUNCTIONAL = {"(root):conv2d": "is a functional convolution whose weight no convolution module holds"}
BY_ATEN = {
    f"(root):{name}": FUNCTIONAL["(root):conv2d"] for name in ("conv2d_default", "convolution_default", "convolution")
}
OUTSIDE = "made outside torch's Python functions"


@dataclass(frozen=True)
class Hard:
    """One network and what becomes of it: ``refused`` as a whole, or rewritten but for the layers that are ``kept``."""

    name: str
    constructor: Callable[[], Any]
    example: Callable[[], Any]
    swaps: int = 3
    """How many of its layers become ghosts when every role may."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Layers that stay as they are, with words of the reason."""
    refused: str = ""
    """Words of the error, where there is one."""
    doubt: str = ""
    """Words of what the recording cannot vouch for."""
    warnings: tuple[str, ...] = ()
    """Beginnings of warnings that torch gives when the net runs."""

    def build(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.constructor()


class Body(nn.Module):
    """A stem, a convolution and a head: three layers that can become ghosts.  What is hard is done by ``middle``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 8), nn.Conv2d(8, 8, 3, padding=1), head(8)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.middle(self.stem(x)))


def body_of(middle: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A constructor of the class whose ``middle`` is that function."""
    return type("Body", (Body,), {"middle": middle})


# -- control flow ----------------------------------------------------------------------------------------------


def branching(self: Body, x: Tensor) -> Tensor:
    return self.conv(x) if x.mean() > 0 else self.conv(-x)


def halving(self: Body, x: Tensor) -> Tensor:
    while x.abs().max() > 0.5:
        x = x / 2
    return self.conv(x)


def item_sized(self: Body, x: Tensor) -> Tensor:
    width = 4 + int(x.abs().max().item() > 0)
    return self.conv(x[..., :width])


def shape_arithmetic(self: Body, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = self.conv(x).view(n, c, h * w).reshape(n, c, h, -1)
    return F.pad(y, [0, (-w) % 3, 0, (-h) % 3])[..., : max(h, w) // 2]


class Recurrent(Body):
    """A convolution in a loop, as in a ConvGRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(16, 8, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(3):
            z = torch.sigmoid(self.gate(torch.cat([x, state], 1)))
            state = (1 - z) * state + z * torch.tanh(self.conv(x))
        return state


class Shuffled(Body):
    """A module list used backwards, and another by index, one of its layers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((6, 8), (8, 6)))
        self.order = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        for layer in reversed(self.up):
            x = F.relu(layer(x))
        for index in (2, 0, 2):
            x = x + self.order[index](x)
        return self.conv(x)


class TrainOnly(Body):
    """An auxiliary head that runs in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.middle(self.stem(x))
        return (self.head(x), self.aux(x).mean((2, 3))) if self.training else self.head(x)


class Unused(Body):
    """A convolution that is defined and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(8, 8, 3)


# -- regions ---------------------------------------------------------------------------------------------------


def checkpointed(self: Body, x: Tensor, use_reentrant: bool) -> Tensor:
    return checkpoint(self.conv, x, use_reentrant=use_reentrant)


class CheckpointedInParts(Body):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(conv_bn(8, 8), conv_bn(8, 8))

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(checkpoint_sequential(self.parts, 2, x, use_reentrant=False))


def autocast_inside(self: Body, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.matmul(self.conv(x), x.transpose(2, 3))
        with torch.autocast("cpu", enabled=False):
            y = y.float() @ x
    return y


def without_gradient(self: Body, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = self.conv(x).mean((2, 3), keepdim=True)
    return self.conv(x) * weight


def in_inference_mode(self: Body, x: Tensor) -> Tensor:
    if self.training:
        return self.conv(x)
    with torch.inference_mode():
        return self.conv(x)


class Round(torch.autograd.Function):
    """Rounds forwards, passes the gradient backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.mul(4).round() / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Reverse(torch.autograd.Function):
    """Gives what it is given, and turns its gradient round, as domain-adversarial networks do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def own_gradient(self: Body, x: Tensor) -> Tensor:
    return Round.apply(self.conv(x))


def reversed_gradient(self: Body, x: Tensor) -> Tensor:
    return self.conv(Reverse.apply(x))


def gradient_inside(self: Body, x: Tensor) -> Tensor:
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.conv(given).square().sum(), given)
    return self.conv(x) - 0.1 * slope


# -- values that come from elsewhere, or change on the way -------------------------------------------------------


def through_views(self: Body, x: Tensor) -> Tensor:
    y = self.conv(x).clone()
    y[:, ::2] *= 0.5
    y.select(1, 1).zero_()
    y.view(y.shape[0], -1)[:, :3].fill_(1.0)
    y.narrow(1, 4, 2).copy_(x[:, :2])
    return y.relu_()


def through_numpy(self: Body, x: Tensor) -> Tensor:
    return self.conv(x * torch.from_numpy(np.tanh(x.detach().numpy())))


def noisy(self: Body, x: Tensor) -> Tensor:
    return self.conv(x + 0.1 * torch.randn_like(x) + torch.rand(1))


class OwnGenerator(Body):
    """Noise from a generator that the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x + torch.rand(x.shape, generator=self.generator))


class Stochastic(Body):
    """Dropout of elements, channels and whole branches."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.depth = nn.Dropout2d(0.2), StochasticDepth(0.5, "row")

    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(x + self.depth(self.drop(self.conv(x))), 0.1, self.training)


class Counting(Body):
    """Counts its calls in a buffer that its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def middle(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


class Remembering(Body):
    """Adds the maps of the last call, in a buffer that is another tensor after each."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 8, 8, 8), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        y = self.conv(x + 0.5 * self.last)
        self.last = y.detach()
        return y


class Caching(Body):
    """Makes a grid when it first runs, and keeps it for as long as the shape is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[tuple[int, ...], Tensor] = {}

    def middle(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in self.cache:
            self.cache[size] = torch.linspace(0, 1, size[-1])
        return self.conv(x + self.cache[size])


class Averaging(Body):
    """Keeps a moving average in place, in eval mode too, and centres by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach().mean((0, 2, 3), keepdim=True), 0.1)
        return self.conv(x - self.mean.clone())


class ParameterOnTheWay(Body):
    """Makes a parameter when it first runs."""

    def middle(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.full((x.shape[1], 1, 1), 0.5))
        return self.conv(x * self.scale)


class LayerOnTheWay(Body):
    """Makes a convolution when it first runs."""

    def middle(self, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Conv2d(x.shape[1], 8, 1)
        return self.conv(self.late(x))


class Spectral(Body):
    """A global filter: a product in the frequency domain, of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, 8, 5, 2))

    def middle(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(self.conv(x), norm="ortho") * torch.view_as_complex(self.filter)
        return torch.fft.irfft2(y, s=x.shape[-2:], norm="ortho")


class ComplexOutput(Body):
    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(self.stem(x))
        return torch.complex(maps.mean(1), maps.amax(1)) * torch.exp(1j * self.head(maps).mean())


class ComplexWeights(Body):
    """A convolution of a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.spectral = nn.Conv2d(8, 8, 1, dtype=torch.complex64)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(torch.fft.ifft2(self.spectral(torch.fft.fft2(x))).real)


def rearranged(self: Body, x: Tensor) -> Tensor:
    """Windows into the batch and back, as einops would write ``b c (h i) (w j) -> (b h w) c i j``."""
    b, c, h, w = x.shape
    windows = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
    windows = self.conv(windows)
    return windows.reshape(b, h // 4, w // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class Sequence(nn.Module):
    """Convolutions, then torch's own recurrent layer over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8))
        self.recurrent = nn.LSTM(64, 8, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.features(x).permute(0, 3, 1, 2).flatten(2)
        y, (_, cell) = self.recurrent(columns)
        return self.out(y[:, -1]), cell


# -- inputs and outputs ------------------------------------------------------------------------------------------


class Several(Body):
    """Two inputs and a flag, a list and a number out."""

    def forward(self, x: Tensor, mask: Tensor, scale: float = 1.0) -> tuple[list[Tensor], int]:
        y = self.middle(self.stem(x)) * mask * scale
        return [self.head(y), y], len(x)


class ByKeyword(Body):
    def forward(self, *, image: Tensor, deep: bool = False) -> dict[str, Any]:
        y = self.stem(image)
        return {"out": self.head(self.conv(y) if deep else y), "deep": deep}


class FromDict(Body):
    """One dict in."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.head(self.middle(self.stem(batch["image"]))) + batch["meta"]["shift"]


class Tuple(NamedTuple):
    logits: Tensor
    maps: Tensor


@dataclass
class Output:
    logits: Tensor
    maps: list[Tensor]
    note: str = ""


@dataclass(slots=True)
class Slotted:
    logits: Tensor


class Instances:
    """A plain object with tensors in it, and others like it."""

    def __init__(self, boxes: Tensor, inner: Instances | None = None) -> None:
        self.boxes, self.inner = boxes, inner
        self.options = {"kind": "boxes", "limit": 3}


class AttributeDict(dict[str, Any]):
    """A dict read by attributes, as libraries of models give them out."""

    __getattr__ = dict.__getitem__


class Giving(Body):
    """Its output in a structure of ``form``."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        maps = self.middle(self.stem(x))
        return self.form(self.head(maps), maps)


def as_dataclass(logits: Tensor, maps: Tensor) -> Output:
    return Output(logits, [maps, maps + 1], "done")


def as_slots(logits: Tensor, maps: Tensor) -> Slotted:
    return Slotted(logits)


def as_attribute_dict(logits: Tensor, maps: Tensor) -> AttributeDict:
    return AttributeDict(logits=logits, maps=maps)


def as_objects(logits: Tensor, maps: Tensor) -> list[Instances]:
    return [Instances(logits, Instances(maps)), Instances(maps)]


class Images(Body):
    """A list of images of unequal size, brought to one size, as detectors take them."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        batch = torch.stack([F.interpolate(one[None], size=(8, 8))[0] for one in images])
        logits = self.head(self.middle(self.stem(batch)))
        return [{"scores": row, "size": torch.tensor(one.shape)} for row, one in zip(logits, images, strict=True)]


class WithItsInput(Body):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, super().forward(x)


class OnlyItsInput(Body):
    """Runs, and gives back what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return x


# -- modules that are no plain tree of layers --------------------------------------------------------------------


class Skipping(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self
        x = first(x)
        for layer in others:
            x = x + layer(x)
        return x


def skipping() -> nn.Module:
    return nn.Sequential(Skipping(conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 8, 1)), head(8))


class Dicts(Body):
    """Dicts of layers in dicts."""

    def __init__(self) -> None:
        super().__init__()
        kinds = {kind: nn.Conv2d(8, 8, k, padding=k // 2) for kind, k in (("fine", 1), ("coarse", 3))}
        self.paths = nn.ModuleDict({"left": nn.ModuleDict(kinds), "right": nn.ModuleDict({"fine": nn.Identity()})})

    def middle(self, x: Tensor) -> Tensor:
        for path in self.paths.values():
            x = sum((layer(x) for layer in path.values()), self.conv(x))
        return x


class Delegating(nn.Module):
    """What it does not have itself it asks of the module inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.stem(x)))


class Permissive(Body):
    """Has every attribute, most of them None."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None


class SharedByTwo(nn.Module):
    """One convolution in two parents."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(8, 8, 3, padding=1)
        self.stem, self.head = conv_bn(3, 8), head(8)
        self.left, self.right = nn.Sequential(shared, nn.ReLU()), nn.Sequential(nn.BatchNorm2d(8), shared)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.left(x) + self.right(x))


def twice(self: Body, x: Tensor) -> Tensor:
    return self.conv(self.conv(x))


class Tied(Body):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 8, 3, padding=1)
        self.other.weight = self.conv.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.other(F.relu(self.conv(x)))


def penalised(self: Body, x: Tensor) -> Tensor:
    return self.conv(x) * self.conv.weight.norm()


def by_dtype(self: Body, x: Tensor) -> Tensor:
    return self.conv(x.to(self.conv.weight.dtype))


def on_the_models_device(self: Body, x: Tensor) -> Tensor:
    return self.conv(x.to(next(self.parameters()).device))


def lent_weight(self: Body, x: Tensor) -> Tensor:
    return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)


class FunctionalWeight(Body):
    """A convolution over a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.weight, padding=1))


def by_aten(self: Body, x: Tensor) -> Tensor:
    """Operators with their overloads, as an exporter writes them, on weights that no convolution module holds."""
    weight = torch.ones(8, 8, 1, 1) / 8
    y = torch.ops.aten.conv2d.default(torch.ops.aten.relu_.default(x * 1), weight)
    y = torch.ops.aten.convolution.default(y, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.add.Tensor(self.conv(y), torch.convolution(x, weight, None, [1], [0], [1], False, [0], 1))


def by_aten_of_a_layer(self: Body, x: Tensor) -> Tensor:
    return torch.ops.aten.conv2d.default(x, self.conv.weight, self.conv.bias, [1, 1], [1, 1])


class Unregistered(Body):
    """A convolution in a plain list, where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Conv2d(8, 8, 1)]

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.hidden[0](x))


def forward_called(self: Body, x: Tensor) -> Tensor:
    return self.conv.forward(x)


def by_argument_name(self: Body, x: Tensor) -> Tensor:
    return self.conv(input=x)


def by_kind(self: Body, x: Tensor) -> Tensor:
    y = self.conv(x)
    return F.relu(y) if isinstance(self.conv, nn.Conv2d) else y


class OwnCall(Body):
    """A call of its own before torch's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*(2 * arg for arg in args), **kwargs)


def compiled_part() -> nn.Module:
    """A compiled part in a model that is not."""
    model = Body()
    model.conv = torch.compile(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()), backend="eager")
    return model


def compiled() -> nn.Module:
    return torch.compile(Body(), backend="eager")


def compiled_in_place() -> nn.Module:
    model = Body()
    model.compile(backend="eager")
    return model


def quietly(make: Callable[[], Any]) -> Any:
    """Without the warnings of what torch has deprecated and people still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def scripted() -> Any:
    return quietly(lambda: torch.jit.script(nn.Sequential(conv_bn(3, 8), head(8))))


def jit_traced() -> Any:
    return quietly(lambda: torch.jit.trace(nn.Sequential(conv_bn(3, 8), head(8)).eval(), rgb()))


def script_inside() -> nn.Module:
    model = Body()
    model.stem = quietly(lambda: torch.jit.script(conv_bn(3, 8)))
    return model


def parallel() -> nn.Module:
    with mock.patch("torch.cuda.is_available", return_value=False):  # for a GPU would want the model on it
        return nn.DataParallel(Body())


def reparametrised(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = Body()
    quietly(lambda: change(model.conv))
    return model


def functional_call(self: Body, x: Tensor) -> Tensor:
    return torch.func.functional_call(self.conv, {"weight": self.conv.weight * 2}, (x,))


def mapped(self: Body, x: Tensor) -> Tensor:
    return torch.vmap(self.conv)(x)


# -- hooks and patches -------------------------------------------------------------------------------------------


def halve_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] / 2, *args[1:])


def halve_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output / 2


def halve_keyword(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {key: value / 2 for key, value in kwargs.items()}


def hooked(*names: str) -> nn.Module:
    """A hook before and a hook after each of the modules."""
    model = Body()
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(halve_input)
        module.register_forward_hook(halve_output)
    return model


def hooked_by_keyword() -> nn.Module:
    model = ByKeyword()
    model.register_forward_pre_hook(halve_keyword, with_kwargs=True)
    return model


class Tapping(Body):
    """Takes maps out of a part of itself by a hook that is a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Tensor] = {}
        self.stem.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.taken["stem"] = output

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.taken.pop("stem"))


class TappingOriginal(Body):
    """The same by a function that holds on to the module it was made in, and so to the original in each copy."""

    def __init__(self) -> None:
        super().__init__()
        taken: dict[str, Tensor] = {}
        self.taken = taken
        self.stem.register_forward_hook(lambda module, args, output: taken.update(stem=output))

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(self.taken["stem"])


class CompiledForward(Body):
    """A part of its forward is compiled where it is written."""

    @torch.compile(backend="eager")
    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def symbolically_traced() -> nn.Module:
    """A model that is a graph already."""
    return fx.symbolic_trace(Body())


def exported() -> nn.Module:
    """A graph of tensor operations, in which no layer is left."""
    return quietly(lambda: torch.export.export(Body().eval(), (rgb(),)).module())


class Sliced(Body):
    """Runs slices of a Sequential, each a new module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv_bn(8, 8), nn.Conv2d(8, 8, 1), nn.ReLU())

    def middle(self, x: Tensor) -> Tensor:
        fine = self.layers[:1](x)
        return self.conv(nn.Sequential(*self.layers[1:], nn.Softplus())(fine)) + fine


class Teaching(Body):
    """A teacher that follows its pupil's weights when it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.conv).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            with torch.no_grad():
                for mine, own in zip(self.teacher.parameters(), self.conv.parameters(), strict=True):
                    mine.lerp_(own, 0.1)
        return self.head(self.conv(x)) - self.head(self.teacher(x)).detach()


class Decaying(Body):
    """Gives the norm of its weights, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), torch.stack([p.square().sum() for p in self.parameters()]).sum()


class Asking(Body):
    """Asks a layer what it is made of, as weight initialisers and fusers do."""

    def middle(self, x: Tensor) -> Tensor:
        pad = self.conv.kernel_size[0] // 2 - self.conv.padding[0]
        x = F.pad(x, [pad] * 4)[:, : self.conv.in_channels]
        return self.conv(x).view(len(x), self.conv.out_channels, *x.shape[2:])


class AskingForBias(Body):
    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.conv.bias is None else self.conv(x) + 1


def asking_for_bias(bias: bool) -> nn.Module:
    model = AskingForBias()
    model.conv = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
    return model


def unbatched() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))


def doubled(self: nn.Conv2d, x: Tensor) -> Tensor:
    return 2 * F.conv2d(x, self.weight, self.bias, padding=self.padding)


def patched_layer() -> nn.Module:
    """A layer whose forward was replaced by a method."""
    model = Body()
    model.conv.forward = types.MethodType(doubled, model.conv)
    return model


def patched_root() -> nn.Module:
    model = Body()
    model.forward = types.MethodType(lambda self, x: self.head(self.conv(2 * self.stem(x))), model)
    return model


def patched_by_closure() -> nn.Module:
    """A forward that holds on to the original's layers, which a copy of the model would run."""
    model = Body()
    model.forward = lambda x: model.head(model.conv(model.stem(x)))
    return model


def patched_layer_by_closure() -> nn.Module:
    """The same for a layer, around the forward it had."""
    model = Body()
    before = model.conv.forward
    model.conv.forward = lambda x: 2 * before(x)
    return model


def hooked_by_closure() -> nn.Module:
    """A hook that runs a layer of the original."""
    model = Body()
    model.stem[0].register_forward_hook(lambda module, args, output: model.conv(output))
    return model


class Locked(Body):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(8, 8, 3), head(8))


def lazy_after_a_run() -> nn.Module:
    model = lazy()
    model(rgb())
    return model


class Strange(Body):
    """Raises an error of many lines."""

    def middle(self, x: Tensor) -> Tensor:
        raise ValueError("first line\n  second line")


def cast(dtype: torch.dtype) -> nn.Module:
    return Body().to(dtype)


rgb = image(3, 8, 8)


def on_meta() -> Tensor:
    return rgb().to("meta")


def unequal_images() -> Any:
    return ([image(9, 7)().repeat(3, 1, 1)[:3], image(12, 8)().repeat(3, 1, 1)[:3]],)


def tagged() -> Tensor:
    return tv_tensors.Image(rgb())


HARD_NETS: tuple[Hard, ...] = (
    # control flow
    Hard("branch", body_of(branching), rgb, doubt=PATH),
    Hard("while", body_of(halving), rgb, doubt=PATH),
    Hard("item-sized", body_of(item_sized), rgb, doubt=PATH),
    Hard("shape-arithmetic", body_of(shape_arithmetic), rgb),
    Hard("recurrent", Recurrent, rgb, swaps=4),
    Hard("lists-out-of-order", Shuffled, rgb, swaps=7, kept={"order.1": "did not run"}),
    Hard("train-only", TrainOnly, rgb, kept={"aux": "did not run on the example in eval mode"}),
    Hard("unused", Unused, rgb, kept={"spare": "did not run"}),
    # regions
    Hard("checkpoint-reentrant", body_of(lambda self, x: checkpointed(self, x, True)), rgb),
    Hard("checkpoint", body_of(lambda self, x: checkpointed(self, x, False)), rgb),
    Hard("checkpoint-sequential", CheckpointedInParts, rgb, swaps=5),
    Hard("autocast", body_of(autocast_inside), rgb),
    Hard("no-grad", body_of(without_gradient), rgb),
    Hard("inference-mode", body_of(in_inference_mode), rgb),
    Hard("autograd-function", body_of(own_gradient), rgb),
    Hard("autograd-function-of-nothing", body_of(reversed_gradient), rgb),
    Hard("gradient-inside", body_of(gradient_inside), rgb),
    # values
    Hard("in-place-views", body_of(through_views), rgb),
    Hard("numpy", body_of(through_numpy), rgb, doubt=OUTSIDE),
    Hard("noise", body_of(noisy), rgb),
    Hard("own-generator", OwnGenerator, rgb),
    Hard("stochastic", Stochastic, rgb),
    Hard("counter", Counting, rgb),
    Hard("memory", Remembering, rgb),
    Hard("cache", Caching, rgb),
    Hard("moving-average", Averaging, rgb),
    Hard("parameter-on-the-way", ParameterOnTheWay, rgb, doubt=OUTSIDE),
    Hard("layer-on-the-way", LayerOnTheWay, rgb, kept=FUNCTIONAL, doubt="none of its modules"),
    Hard("fft", Spectral, rgb),
    Hard("complex-output", ComplexOutput, rgb),
    Hard("complex-weights", ComplexWeights, rgb, kept={"spectral": "has complex weights"}),
    Hard("rearranged", body_of(rearranged), rgb),
    Hard("lstm", Sequence, rgb, kept={"recurrent": "is a layer of class LSTM"}),
    # inputs and outputs
    Hard("several", Several, lambda: (rgb(), torch.ones(2, 1, 1, 1), 2.0)),
    Hard("keyword-only", ByKeyword, lambda: {"image": rgb(), "deep": True}),
    Hard("dict-in", FromDict, lambda: ({"image": rgb(), "meta": {"shift": torch.ones(4)}},)),
    Hard("named-tuple", partial(Giving, Tuple), rgb),
    Hard("dataclass", partial(Giving, as_dataclass), rgb),
    Hard("slots", partial(Giving, as_slots), rgb),
    Hard("attribute-dict", partial(Giving, as_attribute_dict), rgb),
    Hard("objects", partial(Giving, as_objects), rgb),
    Hard("images", Images, unequal_images),
    Hard("tensor-subclass", Body, tagged),
    Hard("with-its-input", WithItsInput, rgb),
    Hard("only-its-input", OnlyItsInput, rgb),
    # modules
    Hard("sequential-of-its-own", skipping, rgb, swaps=4),
    Hard("dicts", Dicts, rgb, swaps=5),
    Hard("delegating", lambda: Delegating(Body()), rgb),
    Hard("permissive", Permissive, rgb),
    Hard("shared-by-two", SharedByTwo, rgb),
    Hard("twice", body_of(twice), rgb),
    Hard("tied", Tied, rgb, swaps=2, kept={"conv": "shares its weight", "other": "shares its weight"}),
    Hard("penalised", body_of(penalised), rgb, swaps=2, kept={"conv": "has its weight read elsewhere"}),
    Hard("by-dtype", body_of(by_dtype), rgb, swaps=2, kept={"conv": "has its weight read elsewhere"}),
    Hard("device", body_of(on_the_models_device), rgb, swaps=2, kept={"stem.0": "has its weight read elsewhere"}),
    Hard("lent-weight", body_of(lent_weight), rgb, swaps=2, kept={"conv": "read elsewhere"}),
    Hard("functional-weight", FunctionalWeight, rgb, kept=FUNCTIONAL),
    Hard("by-aten", body_of(by_aten), rgb, kept=BY_ATEN),
    Hard("by-aten-of-a-layer", body_of(by_aten_of_a_layer), rgb, swaps=2, kept={"conv": "read elsewhere"}),
    Hard("unregistered", Unregistered, rgb, kept=FUNCTIONAL, doubt="none of its modules"),
    Hard("forward-called", body_of(forward_called), rgb, swaps=2, kept={"conv": "read elsewhere"}),
    Hard("by-argument-name", body_of(by_argument_name), rgb, swaps=2, kept={"conv": "by its position"}),
    Hard("own-call", OwnCall, rgb),
    # A ghost is no Conv2d, so the rewritten network would leave this activation out.
    Hard("by-kind", body_of(by_kind), rgb, refused="goes another way"),
    Hard("compiled", compiled, rgb, refused="pass the module that torch.compile was given"),
    Hard("compiled-in-place", compiled_in_place, rgb),
    # The compiler itself looks at the gradient of a tensor that has none.
    Hard("compiled-part", compiled_part, rgb, warnings=("The .grad attribute",)),
    Hard("scripted", scripted, rgb, refused="pass the Python module"),
    Hard("jit-traced", jit_traced, rgb, refused="pass the Python module"),
    Hard("script-inside", script_inside, rgb, swaps=2),
    Hard("data-parallel", parallel, rgb),
    Hard("weight-norm", partial(reparametrised, parametrizations.weight_norm), rgb),
    Hard("spectral-norm", partial(reparametrised, parametrizations.spectral_norm), rgb),
    Hard(
        "old-weight-norm", partial(reparametrised, nn.utils.weight_norm), rgb, 2, {"conv": "computes its weight by a"}
    ),
    Hard(
        "old-spectral-norm",
        partial(reparametrised, nn.utils.spectral_norm),
        rgb,
        2,
        {"conv": "computes its weight by a"},
    ),
    Hard(
        "pruned",
        partial(reparametrised, partial(prune.l1_unstructured, name="weight", amount=0.5)),
        rgb,
        2,
        {"conv": "computes its weight by a"},
    ),
    Hard("functional-call", body_of(functional_call), rgb, swaps=2, kept={"conv": "read elsewhere"}),
    Hard("vmap", body_of(mapped), rgb, refused="write it without"),
    # hooks and patches
    Hard("hooked-layer", partial(hooked, "conv"), rgb, swaps=2, kept={"conv": "carries hooks"}),
    Hard("hooked-parents", partial(hooked, "", "stem", "head.0"), rgb),
    Hard("hooked-by-keyword", hooked_by_keyword, lambda: {"image": rgb(), "deep": True}),
    Hard("tapping", Tapping, rgb),
    # No copy of it runs: what the hook finds goes to the original.
    Hard("tapping-the-original", TappingOriginal, rgb, refused="KeyError 'stem'"),
    Hard("patched-layer", patched_layer, rgb, swaps=2, kept={"conv": "weight used by a function call"}),
    Hard("patched-root", patched_root, rgb),
    Hard("patched-by-closure", patched_by_closure, rgb, refused="holds on to"),
    Hard("patched-layer-by-closure", patched_layer_by_closure, rgb, refused="holds on to 'conv'"),
    Hard("hooked-by-closure", hooked_by_closure, rgb, refused="'conv' as it was given"),
    Hard("locked", Locked, rgb, refused="cannot be copied"),
    Hard("lazy", lazy, rgb, refused="run the model once"),
    Hard("lazy-after-a-run", lazy_after_a_run, rgb),
    Hard("strange", Strange, rgb, refused="first line second line"),
    Hard("compiled-forward", CompiledForward, rgb, warnings=("The .grad attribute",)),
    Hard("fx", symbolically_traced, rgb),
    Hard("exported", exported, rgb, refused="pass the Python module"),
    Hard("slices", Sliced, rgb, swaps=5),
    Hard("teaching", Teaching, rgb, swaps=4),
    Hard("decaying", Decaying, rgb, refused="read elsewhere"),
    Hard("asking", Asking, rgb),
    Hard("asking-for-no-bias", partial(asking_for_bias, False), rgb),
    # A ghost can say that it has no bias, but has none of all maps to give out.
    Hard("asking-for-bias", partial(asking_for_bias, True), rgb, refused="no attribute 'bias'"),
    Hard("unbatched", unbatched, lambda: rgb()[0]),
    # numbers
    Hard(
        "channels-last",
        lambda: Body().to(memory_format=torch.channels_last),
        lambda: rgb().to(memory_format=torch.channels_last),
    ),
    Hard("float16", partial(cast, torch.float16), image(3, 8, 8, dtype=torch.float16)),
    Hard("bfloat16", partial(cast, torch.bfloat16), image(3, 8, 8, dtype=torch.bfloat16)),
    Hard("meta", lambda: Body().to("meta"), on_meta),
    Hard("meta-and-not", lambda: Body().to("meta"), rgb, refused="move both to one device"),
)
