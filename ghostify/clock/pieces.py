"""A layer of a network, as it is or as a swap would leave it → the pieces that run in its place, in the inference form.

as it is, or thinned             c → n              one piece
pointwise ghost                  c → m → n          two pieces, the 1x1 convolution with what follows the layer
ghost with depthwise filters     c → m, m → m, …    one piece that is a C-Ghost module, its norm behind it
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from ghostify.clock.building import given_by, plain_layer
from ghostify.clock.piece import GhostForm, Piece
from ghostify.clock.surroundings import Surroundings
from ghostify.inference.merging import merged
from ghostify.rules import CGhostSwap
from ghostify.rules.c_ghost import build
from ghostify.scanning import Site


def pieces_of(site: Site, around: Sequence[Surroundings], swap: CGhostSwap | None = None) -> tuple[Piece, ...]:
    """The pieces that run in a layer's place, those of each of its calls, as often as they run.

    ``site`` is the layer as earlier swaps leave it (the scan that a rule's ``after`` gives), ``around`` what
    ``surroundings_in`` found by its name in the network as it was.
    """
    return tuple(piece for call in around for piece in _in_call(site, call, swap))


def _in_call(site: Site, call: Surroundings, swap: CGhostSwap | None) -> tuple[Piece, ...]:
    dense = _as_it_is(site, call)
    if swap is None:
        return (dense,)
    unfused = dense.model_copy(update={"bias": site.bias})
    widths = _plain_widths(_layer_alone(unfused), swap.model_copy(update={"target": ""}))
    if not widths:
        form = GhostForm(s=swap.s, m=swap.m, cheap=swap.cheap, parts=swap.parts)
        # a norm behind a concatenation has no one layer that it could fold into
        return (unfused.model_copy(update={"ghost": form, "norm": call.norm}),)
    if len(widths) == 1:
        return (dense,)  # a convolution c → n again
    first = _layer_alone(unfused).model_copy(update={"outputs": widths[0]})
    return first, _mixing(dense, given_by(first))


def _layer_alone(piece: Piece) -> Piece:
    """The piece without what follows the layer."""
    return piece.model_copy(update={"act": "", "add": False, "pool": None})


def _mixing(dense: Piece, reads: tuple[int, ...]) -> Piece:
    """The 1x1 convolution behind the primary one, with what follows the layer."""
    ones = (1,) * len(dense.kernel)
    places = {
        "kernel": ones,
        "stride": ones,
        "dilation": ones,
        "padding": (0,) * len(ones),
        "groups": 1,
    }
    return dense.model_copy(update={"reads": reads, **places})


def _as_it_is(site: Site, call: Surroundings) -> Piece:
    """The layer as a piece; a norm behind it folds into it, which gives it a bias."""
    linear = site.kind == "linear"
    kind: Any = site.kind if site.kind in ("linear", "transposed") else "conv"
    shape = (*call.reads[:-1], site.in_channels) if linear else (call.reads[0], site.in_channels, *call.reads[2:])
    geometry: dict[str, Any] = {} if linear else {"kernel": site.kernel, "stride": site.stride, "groups": site.groups}
    return Piece(
        kind=kind,
        reads=shape,
        outputs=site.out_channels,
        bias=site.bias or call.norm,
        act=call.act,
        add=call.add,
        pool=call.pool,
        **geometry,
        **call.fields,
    )


@lru_cache(4096)
def _plain_widths(layer: Piece, swap: CGhostSwap) -> tuple[int, ...]:
    """Outputs of the layers that a ghost becomes when it runs, in their order; none where it stays a ghost.

    ``merged`` goes by structure alone, so the module it is asked about needs no numbers.  Blocks of a stage are alike,
    and a budget asks about each of them in every form.
    """
    ghost: Any = build(plain_layer(layer, device="meta"), swap).eval()
    layers = merged(ghost, on_vectors=len(layer.reads) == 2)
    if layers is None:
        return ()
    parts = list(layers.children()) if isinstance(layers, nn.Sequential) else [layers]
    return tuple(_width(part) for part in parts)


def _width(layer: Any) -> int:
    """Output channels of a convolution or linear layer."""
    return len(layer.weight)
