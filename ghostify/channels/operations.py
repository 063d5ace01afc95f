"""Operations by what they do to channels, under the names of ``running.op_name``."""

from __future__ import annotations

_ACTIVATIONS = """
CELU ELU GELU Sequential Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish ReLU ReLU6 RReLU
SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold
Dropout Dropout1d Dropout2d Dropout3d AlphaDropout
"""
_POINTWISE_FUNCTIONS = """
abs add addcmul alias bernoulli bfloat16 celu clamp clamp_max clamp_min clip clone contiguous detach div double dropout
dropout2d elu exp float floor fmod gelu half hardshrink hardsigmoid hardswish hardtanh leaky_relu lerp log log1p
logsigmoid maximum minimum mish mul multiply neg pow reciprocal relu relu6 rrelu rsqrt rsub selu sigmoid sign silu
softplus sqrt square sub tanh threshold to true_divide type where cpu cuda
__add__ __iadd__ __radd__ __sub__ __isub__ __rsub__ __mul__ __imul__ __rmul__ __truediv__ __itruediv__ __rtruediv__
__div__ __neg__ __pow__ __ipow__
"""
POINTWISE = frozenset(_ACTIVATIONS.split()) | frozenset(_POINTWISE_FUNCTIONS.split())
_SUMS_NAMES = """
add addcmul lerp rsub sub __add__ __iadd__ __radd__ __sub__ __isub__ __rsub__
"""
SUMS = frozenset(_SUMS_NAMES.split())
_SPATIAL_NAMES = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d
avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool2d interpolate upsample AdaptiveAvgPool1d
AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AvgPool1d AvgPool2d AvgPool3d LPPool2d MaxPool1d
MaxPool2d MaxPool3d Upsample UpsamplingBilinear2d UpsamplingNearest2d
"""
SPATIAL = frozenset(_SPATIAL_NAMES.split())
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "norm"})
SOFTMAX = frozenset({"softmax", "Softmax", "log_softmax"})
PRODUCTS = frozenset({"matmul", "bmm", "__matmul__"})
PADS = frozenset({"pad", "constant_pad_nd"})
CUTS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select", "__getitem__"})
_MOVES_NAMES = """
cat concat concatenate expand expand_as flatten movedim moveaxis permute repeat_interleave reshape reshape_as roll flip
squeeze stack swapaxes swapdims t transpose unflatten unsqueeze view view_as getitem index_select channel_shuffle
pixel_shuffle pixel_unshuffle ChannelShuffle Flatten PixelShuffle PixelUnshuffle Unflatten
"""
MOVES = frozenset(_MOVES_NAMES.split()) | CUTS
NORMS = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "batch_norm"), "batch"),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "instance_norm"), "batch"),
    **dict.fromkeys(("GroupNorm", "group_norm"), "group"),
    **dict.fromkeys(("LayerNorm", "layer_norm", "RMSNorm", "rms_norm"), "layer"),
}
CREATIONS = frozenset({"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"})
"""Operations that make a tensor of sizes alone."""
WEIGHT_AT = {"group_norm": 2, "layer_norm": 2, "rms_norm": 2, "batch_norm": 3, "instance_norm": 3}
