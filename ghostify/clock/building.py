"""A piece as a small network whose time, less that of the same network without it, is the piece's own.

    x (N, 3, H, W) → 1x1 convolution → ReLU → [piece] → its map's first place

Timed alone, a layer costs more than in its network: runtimes lay channels out anew at the borders of what they run
(ONNX Runtime in blocks of 16, PyTorch with the channels last), and what a layer reads was written long ago.  Between a
convolution and a pooling it reads and writes in the layout that it would have in the network, and what it reads was
written just before.  The frame's own time is measured beside it and taken off.  So the pieces of a ResNet50 add up to
the whole within 4 % on ONNX Runtime, 8 % on OpenVINO and 10 % in eager PyTorch, where those timed alone were 35 % off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from ghostify.clock.piece import Piece, Pool
from ghostify.ghosts import intrinsic_maps
from ghostify.ghosts.narrowing import PLAIN
from ghostify.rules.c_ghost import CGhostSwap, build

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "leakyrelu": partial(nn.LeakyReLU, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "hardswish": partial(nn.Hardswish, inplace=True),
    "hardsigmoid": partial(nn.Hardsigmoid, inplace=True),
    "mish": partial(nn.Mish, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "prelu": nn.PReLU,  # of one slope: how many there are makes no difference
}
"""By the name of the operation, in small letters and without dashes."""
_IMAGE = 3
"""Channels of what a frame is given."""
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLINGS: dict[tuple[str, int], Any] = {
    ("max", 1): nn.MaxPool1d,
    ("max", 2): nn.MaxPool2d,
    ("max", 3): nn.MaxPool3d,
    ("avg", 1): nn.AvgPool1d,
    ("avg", 2): nn.AvgPool2d,
    ("avg", 3): nn.AvgPool3d,
}
_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Frame(BaseModel):
    """What stands around a piece; many pieces may have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads: tuple[int, ...]
    """What it gives the piece, (N, c, H, W) or, for a linear layer, (N, …, c)."""
    other: tuple[int, ...] = ()
    """Shape of what is added to the piece's output; empty where nothing is."""
    on_maps: bool = True

    @classmethod
    def of(cls, piece: Piece) -> Frame:
        on_maps = piece.kind != "linear"
        other = given_by(piece) if piece.add else ()
        return cls(reads=piece.reads, other=other, on_maps=on_maps)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network in the frame is called with."""
        shapes = [self.reads, *([self.other] if self.other else [])]
        return tuple(torch.randn(self._given(shape)) for shape in shapes)

    def _given(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], _IMAGE, *shape[2:]) if self.on_maps else shape


class Framed(nn.Module):
    """A frame with a piece in it, or (None) without one."""

    def __init__(self, frame: Frame, piece: Piece | None = None) -> None:
        super().__init__()
        self.entry = _entry(frame, frame.reads)
        self.beside = _entry(frame, frame.other) if frame.other else None
        self.piece = None if piece is None else Layer(piece)
        self.dimensions = len(frame.reads) - 2 if frame.on_maps else 0

    def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
        read = self.entry(x)
        added = None if self.beside is None else self.beside(other)
        if self.piece is not None:
            return self._first_of(self.piece(read, added))
        return self._first_of(read) if added is None else (self._first_of(read), self._first_of(added))

    def _first_of(self, y: Tensor) -> Tensor:
        """The first place of a map: to read all of it would take longer than some layers."""
        if not self.dimensions:
            return y[..., :1]
        return _POOLS[self.dimensions](y, 1, stride=list(y.shape[2:]))


class Layer(nn.Module):
    """A piece as it runs in a network."""

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self.layer = _layer(piece)
        self.norm = _NORMS[len(piece.kernel)](piece.outputs) if piece.norm else None
        self.act = ACTIVATIONS[piece.act]() if piece.act else nn.Identity()
        self.pool = _pooling(piece.pool) if piece.pool else nn.Identity()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y: Tensor = self.layer(x)
        if self.norm is not None:
            y = self.norm(y)
        if other is not None:
            y += other
        pooled: Tensor = self.pool(self.act(y))
        return pooled


def network_of(frame: Frame, piece: Piece | None = None) -> nn.Module:
    """The network that is timed, laid out as an inference form is."""
    module = Framed(frame, piece).eval()
    # as ``optimize`` lays out weights: eager PyTorch keeps to that from layer to layer
    return module.to(memory_format=torch.channels_last) if len(frame.reads) == 4 else module


def _entry(frame: Frame, shape: tuple[int, ...]) -> nn.Module:
    """What writes a value of that shape just before it is read."""
    if not frame.on_maps:
        return nn.ReLU()
    conv: Any = PLAIN[len(shape) - 2]
    return nn.Sequential(conv(_IMAGE, shape[1], 1), nn.ReLU(inplace=True))


def _layer(piece: Piece) -> nn.Module:
    if piece.ghost is None:
        return plain_layer(piece)
    form = piece.ghost.model_dump(include={"s", "m", "cheap", "parts"})
    return build(plain_layer(piece), CGhostSwap(target="", geometry="", **form))


def _pooling(pool: Pool) -> nn.Module:
    made: nn.Module = _POOLINGS[pool.kind, len(pool.kernel)](
        pool.kernel, pool.stride, pool.padding, ceil_mode=pool.ceil
    )
    return made


def plain_layer(piece: Piece, device: str | None = None) -> nn.Module:
    """The convolution or linear layer of a piece, without what it became."""
    if piece.kind == "linear":
        return nn.Linear(piece.reads[-1], piece.outputs, bias=piece.bias, device=device)
    kinds: dict[int, Any] = _TRANSPOSED if piece.kind == "transposed" else dict(PLAIN)
    more = {"output_padding": piece.output_padding} if piece.kind == "transposed" else {}
    return kinds[len(piece.kernel)](
        piece.reads[1],
        piece.outputs,
        piece.kernel,
        stride=piece.stride,
        padding=piece.padding,
        dilation=piece.dilation,
        groups=piece.groups,
        bias=piece.bias,
        device=device,
        **more,
    )


def given_by(piece: Piece) -> tuple[int, ...]:
    """Shape of what the layer of a piece gives."""
    plain = plain_layer(piece, device="meta")
    return tuple(plain(torch.empty(piece.reads, device="meta")).shape)


def macs_of(piece: Piece) -> int:
    """Multiply-adds of a piece, those of its norm and activation aside."""
    if piece.kind == "linear":
        return math.prod(piece.reads) * piece.outputs
    size = math.prod(piece.kernel)
    if piece.kind == "transposed":
        return math.prod(piece.reads) * (piece.outputs // piece.groups) * size
    places, fan_in = math.prod(given_by(piece)) // piece.outputs, piece.reads[1] // piece.groups * size
    if piece.ghost is None:
        return places * piece.outputs * fan_in
    form, n = piece.ghost, piece.outputs
    m = form.m or intrinsic_maps(n, form.s, piece.groups)
    return places * (m * fan_in + form.cheap.work(n, m, form.s, len(piece.kernel)).weights)
