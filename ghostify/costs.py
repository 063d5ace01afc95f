"""What a network costs: parameters, multiply-accumulates (MACs) and activations, by one table of counting rules.

The rules (``docs/counting.md`` tells them at length):

- MACs: multiply-accumulates of convolutions and matrix products; no bias, normalisation, activation or pooling.
- activations: elements of the outputs of all convolutions (Radosavovic et al. 2020, as the papers use the word).
- params: elements of all trainable and frozen parameters, each once; buffers are not parameters.

An operation in neither table is never guessed at: ``count`` names it.  Below the table stand the papers' formulas.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import mul
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import fx, nn

from ghostify.running import CONVS, TRANSPOSED, op_name, weight_shape
from ghostify.tracing import Traced


class Cost(BaseModel):
    """Parameters, MACs and activations, as plain counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: int = 0
    macs: int = 0
    acts: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(params=self.params + other.params, macs=self.macs + other.macs, acts=self.acts + other.acts)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(params=self.params - other.params, macs=self.macs - other.macs, acts=self.acts - other.acts)


class Op(BaseModel):
    """One operation of the recorded run that costs something."""

    model_config = ConfigDict(frozen=True)

    node: str
    module: str
    """Qualified name of the innermost module it ran in."""
    kind: str
    macs: int
    acts: int


def count(traced: Traced) -> tuple[list[Op], Counter[str]]:
    """Every operation with a cost, and the names of those no rule knows with how often they ran."""
    ops: list[Op] = []
    unknown: Counter[str] = Counter()
    for node in traced.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        kind = op_name(traced, node)
        if kind in _RULES:
            macs, acts = _RULES[kind](traced, node)
            ops.append(Op(node=node.name, module=node.meta["module"], kind=kind, macs=macs, acts=acts))
        # never guessed at: an operation in neither table is named, with how often it ran
        elif kind not in _FREE:
            unknown[kind] += 1
    return ops, unknown


def cost_of(traced: Traced) -> Cost:
    """What a recorded network costs; operations that no rule knows cost nothing."""
    ops, _ = count(traced)
    macs, acts = sum(op.macs for op in ops), sum(op.acts for op in ops)
    return Cost(params=own_params(traced.module), macs=macs, acts=acts)


def own_params(module: nn.Module) -> int:
    """Elements of the parameters of ``module`` and everything below it, each once."""
    return sum(parameter.numel() for parameter in module.parameters())


# -- the papers' formulas --------------------------------------------------------------------------------------


def speedup_ratio(c: float, k: float, s: float, d: float, pointwise: float = 0) -> float:
    """r_s, first form of Eq. 4: ``c·k² / (c·k²/s + (s−1)/s·d² + p)``; exact when s divides the width.

    ``c`` is the number of input channels each filter reads (per group), ``k²`` the kernel's area (``k`` its side), d²
    the cheap kernel's (0 where there are no depthwise filters), and p, ``pointwise``, the weights of a pointwise
    convolution by output map: 0 in the paper.
    """
    filter_size = c * k * k
    return filter_size / (filter_size / s + (s - 1) / s * d * d + pointwise)


def compression_ratio(c: float, k: float, s: float, d: float, pointwise: float = 0) -> float:
    """r_c, first form of Eq. 5: equal to r_s, because every map position costs what its filter weighs."""
    return speedup_ratio(c, k, s, d, pointwise)


def approximate_ratio(c: float, s: int) -> float:
    """r_s ≈ r_c ≈ ``s·c / (s + c − 1)``, the approximation of Eq. 4 and 5; it assumes d ≈ k."""
    return s * c / (s + c - 1)


def stage_ratio(blocks: Sequence[float], ratio: float, cheap: float) -> float:
    """r_f and r_p of Eq. 13 and 14: ``Σ f_i / (f_1 + (1−λ)·f_2 + Σ_{i≥3} (1−λ)²·f_i + f^c)``.

    ``blocks`` are the MACs (or parameters) f_1 … f_n, which the equations print as f_n inside the sums.
    """
    thin = 1 - ratio
    first, second, *others = blocks
    return sum(blocks) / (first + thin * second + thin**2 * sum(others) + cheap)


def stage_model(
    blocks: Sequence[float],
    ratio: float,
    new: float,
    *,
    projection: float | None = None,
    end: bool = True,
    ghosts: bool = True,
    inner: float | None = None,
    stream: bool = False,
) -> float:
    """Eq. 13 and 14 for the stages that the papers' tables really count.

    ``new`` is what the cheap and the mix operation cost.  The last block keeps its full width (``end``).  The first
    thin block costs (1−λ)² where it reads a slice of Y1; where it reads all of it, with a ``projection`` of that cost,
    the first half of it is (1−λ); and without ``ghosts`` the last thin block is thin in its first half's input alone.
    ``inner`` is the share of the width that thin blocks have inside, 1−λ where none is told; in a ``stream`` the first
    half of each of them reads all channels.
    """
    thin = 1 - ratio
    inner = thin if inner is None else inner
    first, *later = blocks
    full = later.pop() if end else 0.0
    # of a layer's weights there stay the share of what it reads times that of what it makes; a block is two halves, one
    # that makes what is inside it and one that reads that
    slicing, reading_all = inner * thin, inner * (1 + thin) / 2
    shares = [reading_all if stream else slicing] * len(later)
    shares[0] = shares[0] if projection is None else reading_all
    shares[-1] = shares[-1] if ghosts else (thin + 1) / 2
    return sum(blocks) / (first + sum(map(mul, shares, later)) + full + (projection or 0.0) + new)


# -- counting rules --------------------------------------------------------------------------------------------


def _conv(traced: Traced, node: fx.Node) -> tuple[int, int]:
    # each output is the sum of one filter's products: c/groups · k · k'
    out, weight = math.prod(_out(node)), weight_shape(traced, node)
    return out * math.prod(weight[1:]), out


def _conv_transpose(traced: Traced, node: fx.Node) -> tuple[int, int]:
    weight = weight_shape(traced, node)
    # turned around: each input is multiplied by all weights that spread it over the output
    return math.prod(_shape(node, 0, "input")) * math.prod(weight[1:]), math.prod(_out(node))


def _linear(traced: Traced, node: fx.Node) -> tuple[int, int]:
    return math.prod(_out(node)) * _shape(node, 0, "input")[-1], 0


def _matmul(traced: Traced, node: fx.Node) -> tuple[int, int]:
    return math.prod(_out(node)) * _shape(node, 0, "input")[-1], 0


def _addmm(traced: Traced, node: fx.Node) -> tuple[int, int]:
    return math.prod(_out(node)) * _shape(node, 1)[-1], 0


def _einsum(traced: Traced, node: fx.Node) -> tuple[int, int]:
    equation, *operands = node.args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if len(operands) < 2 or not isinstance(equation, str):
        return 0, 0
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        sizes |= _named_sizes(term, operand.meta["shapes"][0])  # type: ignore[union-attr]
    return math.prod(sizes.values()) * (len(operands) - 1), 0


def _named_sizes(term: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Size by index letter; the dimensions of an ellipsis are named by their distance from its right end."""
    head, dots, tail = term.partition("...")
    middle = len(shape) - len(head) - len(tail)
    letters = [*head, *(f".{middle - i}" for i in range(middle if dots else 0)), *tail]
    return dict(zip(letters, shape, strict=True))


def _attention(traced: Traced, node: fx.Node) -> tuple[int, int]:
    query, key, value = (_shape(node, i) for i in range(3))
    scores = math.prod(query[:-1]) * key[-2]
    return scores * (query[-1] + value[-1]), 0


def _multi_head_attention(traced: Traced, node: fx.Node) -> tuple[int, int]:
    (length, batch, width), source = _shape(node, 0), _shape(node, 1)[0]
    projections = 2 * length * batch * width * width + 2 * source * batch * width * width
    return projections + 2 * length * source * batch * width, 0


def _recurrent(traced: Traced, node: fx.Node) -> tuple[int, int]:
    """The products of all steps, layers and directions with the input, the state and, in an LSTM, its projection."""
    layer = traced.leaf(node)
    assert isinstance(layer, nn.RNNBase)
    weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 2)
    return math.prod(_shape(node, 0)[:-1]) * weights, 0


def _shape(node: fx.Node, index: int, name: str = "") -> tuple[int, ...]:
    argument = node.args[index] if len(node.args) > index else node.kwargs.get(name) or _nth(node, index)
    assert isinstance(argument, fx.Node)
    return tuple(argument.meta["shapes"][0])


def _nth(node: fx.Node, index: int) -> Any:
    return [*node.args, *node.kwargs.values()][index]


def _out(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["shapes"][0])


_RULES: dict[str, Callable[[Traced, fx.Node], tuple[int, int]]] = {
    **dict.fromkeys(CONVS, _conv),
    **dict.fromkeys(TRANSPOSED, _conv_transpose),
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot", "vdot", "__matmul__"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "__rmatmul__": lambda traced, node: (math.prod(_out(node)) * _shape(node, 1)[-1], 0),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
    **dict.fromkeys(("RNN", "LSTM", "GRU"), _recurrent),
}


def _free_modules() -> Iterator[str]:
    """torch's own layers without MACs: norms, activations, pools, dropouts, paddings, shape changers, embeddings."""
    from torch.nn.modules import activation, batchnorm, dropout, flatten, instancenorm, normalization, padding, pooling

    for part in (activation, batchnorm, dropout, flatten, instancenorm, normalization, padding, pooling):
        yield from (name for name, kind in vars(part).items() if isinstance(kind, type) and issubclass(kind, nn.Module))
    yield from ("Identity", "Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "PixelShuffle", "PixelUnshuffle")
    yield from ("ChannelShuffle", "Embedding", "ZeroPad2d", "Fold", "Unfold", "Sequential")  # the last if it is empty


_FREE_NAMES = """
abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d add addcmul
alias all amax amin any arange argmax argmin argsort as_strided as_tensor atan2 avg_pool1d avg_pool2d avg_pool3d
batch_norm bernoulli bfloat16 bool broadcast_tensors broadcast_to cat celu channel_shuffle chunk clamp clamp_max
clamp_min clip clone concat concatenate constant_pad_nd contiguous copy cos cpu cuda cummax cumprod cumsum detach diff
div double dropout dropout1d dropout2d dropout3d elu embedding empty empty_like eq erf exp expand expand_as eye
feature_dropout fill flatten flip float floor floor_divide fmod fold frobenius_norm full full_like gather ge gelu
getattr getitem glu group_norm gt half hardshrink hardsigmoid hardswish hardtanh index_add index_select instance_norm
int interpolate is_floating_point isfinite isinf isnan item layer_norm le leaky_relu lerp linspace local_response_norm
log log10 log1p log2 log_softmax logical_and logical_not logical_or logsigmoid logsumexp long lp_pool2d lt masked_fill
masked_select max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d maximum mean meshgrid min
minimum mish moveaxis movedim mul multiply nan_to_num narrow native_batch_norm ne neg negative new_empty new_full
new_ones new_zeros norm normal normalize numel numpy one_hot ones ones_like pad permute pixel_shuffle pixel_unshuffle
pow prelu prod quantile rand rand_like randn randperm reciprocal relu relu6 remainder repeat repeat_interleave
requires_grad reshape reshape_as resize rms_norm roll rot90 round rrelu rsqrt rsub scatter scatter_add select selu
sigmoid sign silu sin size softmax softmin softplus softshrink softsign sort split split_with_sizes sqrt square
squeeze stack std std_mean sub subtract sum swapaxes swapdims t tan tanh tensor tensor_split threshold tile to topk
transpose tril triu true_divide type type_as unbind unflatten unfold uniform unsqueeze upsample var var_mean view
view_as where zero zeros zeros_like __add__ __and__ __contains__ __div__ __eq__ __floordiv__ __ge__ __getitem__ __gt__
__iadd__ __iand__ __idiv__ __imul__ __invert__ __ior__ __ipow__ __isub__ __itruediv__ __le__ __len__ __lt__ __mod__
__mul__ __ne__ __neg__ __or__ __pow__ __radd__ __rdiv__ __rfloordiv__ __rmul__ __rpow__ __rsub__ __rtruediv__
__setitem__ __sub__ __truediv__ __xor__
"""
_FREE = (frozenset(_free_modules()) - {"MultiheadAttention", "Bilinear"}) | frozenset(_FREE_NAMES.split())
"""Operations without MACs.  A name missing here is reported as unknown, which is the safe mistake."""
assert not _FREE & _RULES.keys()
