"""The G-Ghost stage and its mix operation: Eq. 8-12 by hand over every option, any kept channels, batches of one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.errors import PlanError
from ghostify.ghosts import GGhostStage, Mix, PooledBatchNorm2d

WIDTH, RAW = 9, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def block(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def stage(
    kept: Any = RAW, *, entry: str = "slice", cheap: str = "1x1", end: bool = False, made: int = RAW, **args: Any
) -> GGhostStage:
    """Two thin blocks, the first one wider than the last, with batch norms that are not the identity."""
    widths = [5, WIDTH if cheap == "none" else made]
    beside = WIDTH - RAW if entry == "stream" else 0
    thin = [block(WIDTH if entry == "projection" else RAW + beside, widths[0]), block(widths[0] + beside, widths[1])]
    last = block(WIDTH, WIDTH) if end else None
    made_stage = GGhostStage(thin, WIDTH, kept, thin_widths=widths, entry=entry, cheap=cheap, end=last, **args)
    unsettle(made_stage)
    return made_stage


def unsettle(model: nn.Module) -> None:
    """Batch norms of a trained network are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                nn.init.normal_(values, std=0.2)


def conv_bn(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    x = F.conv2d(x, conv.weight, padding="same")
    mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def block_by_hand(x: Tensor, layers: nn.Module) -> Tensor:
    return conv_bn(x, layers[0], layers[1]).clamp_min(0)


def mix_by_hand(mix: Mix, maps: Sequence[Tensor]) -> Tensor:
    """Eq. 12."""
    z = torch.cat([y.mean((2, 3)) for y in maps], 1)
    if isinstance(mix.fc, nn.Linear):
        return (z @ mix.fc.weight.T + mix.fc.bias)[:, :, None, None]
    conv1, norm1, _, conv2, norm2 = mix.fc
    return conv_bn(conv_bn(z[:, :, None, None], conv1, norm1).clamp_min(0), conv2, norm2)


def by_hand(
    made: GGhostStage, y1: Tensor, kept: Sequence[int], kept_out: Sequence[int], cheap: str, mix_y1: bool = True
) -> Tensor:
    """Eq. 8-11 in eval mode, channel by channel."""
    others = [i for i in range(WIDTH) if i not in kept]
    x = y1 if made.entry == "projection" else y1[:, list(kept)]
    z = []
    for layers in made.thin:
        x = block_by_hand(torch.cat([x, y1[:, others]], 1) if made.entry == "stream" else x, layers)
        z.append(x)
    out = torch.full_like(y1, float("nan"))
    if cheap == "none":
        out = x
    else:
        ghosts = {"slice": y1[:, others], "full": y1, "outputs": torch.cat([y1, *z], 1)}[made.cheap_input]
        if cheap != "identity":
            ghosts = conv_bn(ghosts, made.cheap[0], made.cheap[1])
        if made.mix is not None:
            ghosts = ghosts + mix_by_hand(made.mix, [y1, *z] if mix_y1 else z)
        if made.act is not None:
            ghosts = ghosts.clamp_min(0)
        out[:, list(kept_out)] = x
        out[:, [i for i in range(WIDTH) if i not in kept_out]] = ghosts
    return out if made.end is None else block_by_hand(out, made.end)


WIRINGS = [
    {"entry": entry, "cheap": cheap, "cheap_input": cheap_input, "mix": mix, "mix_y1": mix_y1, "end": end}
    for entry, cheap, cheap_input, mix, mix_y1, end in product(
        ("slice", "projection"),
        ("1x1", "3x3", "5x5", "identity", "none"),
        ("slice", "full"),
        (0, 1, 2),
        (True, False),
        (False, True),
    )
    if not (cheap == "identity" and cheap_input == "full") and not (cheap == "none" and mix)
]
WIRINGS += [
    {"entry": entry, "cheap": cheap, "cheap_input": cheap_input, "mix": mix, "mix_y1": True, "end": False}
    for entry, cheap, cheap_input, mix in product(
        ("slice", "stream"), ("1x1", "3x3", "identity"), ("slice", "full", "outputs"), (0, 1)
    )
    if entry == "stream" or cheap_input == "outputs"
    if not (cheap == "identity" and cheap_input != "slice")
]
KEPT = [RAW, [8, 2, 3, 6]]


def as_text(value: Any) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


# -- Eq. 8-12 by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS, ids=as_text)
@pytest.mark.parametrize("kept", KEPT, ids=["first", "chosen"])
def test_every_wiring_computes_the_equations(wiring: dict[str, Any], kept: Any) -> None:
    made, y1 = stage(kept, **wiring).double().eval(), torch.randn(2, WIDTH, 6, 7, dtype=torch.float64)
    indices = range(RAW) if kept == RAW else kept
    before = y1.clone()
    expected = by_hand(made, y1, indices, indices, wiring["cheap"], wiring["mix_y1"])
    torch.testing.assert_close(made(y1), expected)
    assert made(y1).shape == y1.shape and torch.equal(y1, before)


@pytest.mark.parametrize("act", [None, "relu", nn.ReLU(inplace=True)], ids=str)
@pytest.mark.parametrize("cheap", ["1x1", "identity"])
@pytest.mark.parametrize("mix", [0, 1])
def test_one_activation_follows_the_sum(act: Any, cheap: str, mix: int) -> None:
    made, y1 = stage(cheap=cheap, mix=mix, act=act).eval(), torch.randn(2, WIDTH, 6, 7)
    before = y1.clone()
    expected = by_hand(made, y1, range(RAW), range(RAW), cheap)
    torch.testing.assert_close(made(y1), expected)
    assert torch.equal(y1, before)
    assert (expected[:, RAW:].min() < 0) == (act is None)


def test_an_identity_with_an_activation_in_place_can_be_trained() -> None:
    y1 = torch.randn(2, WIDTH, 6, 7, requires_grad=True)
    stage(cheap="identity", mix=0, act=nn.ReLU(inplace=True))(y1 * 1).sum().backward()
    assert y1.grad is not None and y1.grad.isfinite().all()


@pytest.mark.parametrize("made", [2, 6])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("cheap_input", ["slice", "full"])
def test_other_channels_may_come_out_than_go_in(made: int, chosen: bool, cheap_input: str) -> None:
    kept_out: Any = [7, 0, 5, 1, 8, 3][:made] if chosen else made
    ghosted = stage(KEPT[1], made=made, kept_out=kept_out, cheap_input=cheap_input).eval()
    y1 = torch.randn(2, WIDTH, 5, 5)
    torch.testing.assert_close(
        ghosted(y1), by_hand(ghosted, y1, KEPT[1], kept_out if chosen else range(made), cheap="1x1")
    )


# -- kept channels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", [w for w in WIRINGS if w["cheap"] != "none" and not w["end"]], ids=as_text)
def test_chosen_channels_are_the_first_ones_of_a_permuted_map(wiring: dict[str, Any]) -> None:
    """P⁻¹ ∘ stage(first) ∘ P = stage(chosen), P bringing the kept channels to the front."""
    chosen = stage(KEPT[1], **wiring).eval()
    first = stage(RAW, **wiring).eval()
    order = [*KEPT[1], *(i for i in range(WIDTH) if i not in KEPT[1])]
    state = {k: v for k, v in chosen.state_dict().items() if v.dtype != torch.int64 or "num_batches" in k}
    if wiring["mix"] and wiring["mix_y1"]:  # it reads all of Y1, in Y1's order
        name = "mix.fc.weight" if wiring["mix"] == 1 else "mix.fc.0.weight"
        state[name] = torch.cat([state[name][:, :WIDTH][:, order], state[name][:, WIDTH:]], 1)
    projected, all_of_y1 = wiring["entry"] == "projection", wiring["cheap_input"] != "slice"
    for name, reads_all in (("cheap.0.weight", all_of_y1), ("thin.0.0.weight", projected)):
        if name in state and reads_all:
            state[name] = torch.cat([state[name][:, :WIDTH][:, order], state[name][:, WIDTH:]], 1)
    first.load_state_dict(state)
    y1 = torch.randn(2, WIDTH, 6, 6)
    torch.testing.assert_close(chosen(y1)[:, order], first(y1[:, order]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], (0, 1, 2, 3), torch.arange(4), range(4)], ids=str)
def test_channels_told_by_index_are_selected_even_if_they_are_the_first(kept: Any) -> None:
    """So that what is saved does not depend on which were chosen."""
    made, first = stage(kept, kept_out=kept).eval(), stage(RAW).eval()
    assert made.kept_index.tolist() == [0, 1, 2, 3] and made.order.tolist() == list(range(WIDTH))
    first.load_state_dict(made.state_dict(), strict=False)
    y1 = torch.randn(2, WIDTH, 6, 6)
    assert torch.equal(made(y1), first(y1))


@pytest.mark.parametrize("kept", [RAW, torch.tensor(RAW)], ids=str)
def test_channels_told_by_number_are_sliced(kept: Any) -> None:
    made = stage(kept, kept_out=kept)
    assert (made.kept_index, made.ghost_index, made.order) == (None, None, None) and made.kept == RAW
    assert not [name for name in made.state_dict() if name in ("kept_index", "ghost_index", "order")]


def test_chosen_channels_are_saved_with_the_weights() -> None:
    made, other = stage([8, 2, 3, 6]), stage([1, 2, 5, 7])
    other.load_state_dict(made.state_dict())
    y1 = torch.randn(2, WIDTH, 6, 6)
    assert torch.equal(made.eval()(y1), other.eval()(y1))
    assert made.state_dict()["kept_index"].tolist() == [8, 2, 3, 6]
    assert made.state_dict()["ghost_index"].tolist() == [0, 1, 4, 5, 7]
    assert {made.state_dict()[name].dtype for name in ("kept_index", "ghost_index", "order")} == {torch.int64}


def test_indices_may_be_a_tensor() -> None:
    assert stage(torch.tensor([8, 2, 3, 6])).kept_index.tolist() == [8, 2, 3, 6]


# -- the mix operation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_mix_is_equation_twelve(layers: int) -> None:
    mix = Mix(9, 4, layers).double().eval()
    unsettle(mix)
    maps = [torch.randn(3, c, *size, dtype=torch.float64) for c, size in ((2, (5, 7)), (6, (4, 4)), (1, (1, 1)))]
    out = mix(maps)
    assert out.shape == (3, 4, 1, 1)
    torch.testing.assert_close(out, mix_by_hand(mix, maps))


@pytest.mark.parametrize("layers", [1, 2])
def test_mix_has_the_papers_parameters(layers: int) -> None:
    """c'·λc weights and λc biases; with two layers, no biases and two batch norms."""
    count = sum(p.numel() for p in Mix(9, 4, layers).parameters())
    assert count == (9 * 4 + 4 if layers == 1 else 9 * 4 + 4 * 4 + 2 * 2 * 4)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_batch_of_one_trains_and_leaves_the_running_statistics(layers: int) -> None:
    made = stage(mix=layers).train()
    norms = [module for module in made.modules() if isinstance(module, PooledBatchNorm2d)]
    assert len(norms) == (0 if layers == 1 else 2)
    before = copy.deepcopy([dict(norm.named_buffers()) for norm in norms])
    made(torch.randn(1, WIDTH, 6, 6)).square().sum().backward()
    for norm, buffers in zip(norms, before, strict=True):
        assert all(torch.equal(value, buffers[name]) for name, value in norm.named_buffers())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (1, 4, 2, 1), (3, 4, 5, 5)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_pooled_norm_is_batch_norm_wherever_that_works(shape: tuple[int, ...], training: bool) -> None:
    pooled, plain = PooledBatchNorm2d(4).train(training), nn.BatchNorm2d(4).train(training)
    x = torch.randn(shape)
    assert torch.equal(pooled(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(pooled.buffers(), plain.buffers(), strict=True))


def test_a_pooled_norm_takes_one_value_as_in_eval_mode() -> None:
    norm, x = PooledBatchNorm2d(4), torch.randn(1, 4, 1, 1)
    unsettle(norm)
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        nn.BatchNorm2d(4)(x)
    assert torch.equal(norm.train()(x), norm.eval()(x))


def test_a_pooled_norm_becomes_a_synchronised_one() -> None:
    made = nn.SyncBatchNorm.convert_sync_batchnorm(stage(mix=2))
    norms = [module for module in made.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 5 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((9, 4, 3), "1 fully connected layer or 2"),
        ((9, 4, 0), "1 fully connected layer or 2"),
        ((0, 4), "0 channels to 4"),
        ((9, 0), "1 or more"),
    ],
    ids=str,
)
def test_a_mix_that_cannot_be_built_is_refused_in_one_line(args: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        Mix(*args)
    assert "\n" not in str(caught.value)


# -- a module like any other -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS, ids=as_text)
def test_gradients_reach_every_parameter(wiring: dict[str, Any]) -> None:
    made = stage(KEPT[1], **wiring, act=nn.PReLU())
    made(torch.randn(3, WIDTH, 6, 6)).square().sum().backward()
    unmoved = [name for name, p in made.named_parameters() if p.grad is None or not 0 < p.grad.abs().sum() < 1e6]
    assert not unmoved


@pytest.mark.parametrize("mix", [1, 2])
@pytest.mark.parametrize("kept", KEPT, ids=["first", "chosen"])
def test_other_readers_of_the_module_agree_with_it(kept: Any, mix: int) -> None:
    made, y1 = stage(kept, mix=mix, end=True).eval(), torch.randn(2, WIDTH, 6, 6)
    expected = made(y1)
    assert torch.equal(torch.fx.symbolic_trace(made)(y1), expected)
    assert torch.equal(torch.compile(made, backend="eager", fullgraph=True)(y1), expected)
    assert torch.equal(copy.deepcopy(made)(y1), expected)
    assert torch.equal(pickle.loads(pickle.dumps(made))(y1), expected)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(made, (y1,), dynamic_shapes=(batch,)).module()
    assert torch.allclose(exported(y1), expected, atol=1e-6)
    assert torch.allclose(exported(y1[:1]), made(y1[:1]), atol=1e-6)  # a batch of one is no other graph


def test_a_copy_shares_nothing() -> None:
    made = stage(KEPT[1], mix=2)
    twin = copy.deepcopy(made)
    owned = {t.data_ptr() for t in (*made.parameters(), *made.buffers())}
    assert owned.isdisjoint({t.data_ptr() for t in (*twin.parameters(), *twin.buffers())})


def test_two_stages_share_no_activation() -> None:
    assert stage().act is not stage().act


def test_new_layers_go_where_the_thin_blocks_are() -> None:
    thin = [block(RAW, RAW).double()]
    for made in (GGhostStage(thin, WIDTH, RAW, mix=2), GGhostStage(thin, WIDTH, KEPT[1])):
        assert {p.dtype for p in made.parameters()} == {torch.float64}
    on_meta = GGhostStage([block(RAW, RAW).to("meta")], WIDTH, KEPT[1], mix=2)
    assert {t.device.type for t in (*on_meta.parameters(), *on_meta.buffers())} == {"meta"}
    asked = GGhostStage([nn.Identity()], WIDTH, RAW, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in asked.parameters()} == {("meta", torch.float16)}


@pytest.mark.parametrize("kept", KEPT, ids=["first", "chosen"])
@pytest.mark.parametrize("end", [False, True])
def test_channels_last_comes_out_as_it_went_in(end: bool, kept: Any) -> None:
    made = stage(kept, end=end).to(memory_format=torch.channels_last)
    y1 = torch.randn(2, WIDTH, 8, 8).to(memory_format=torch.channels_last)
    assert made(y1).is_contiguous(memory_format=torch.channels_last)


def test_names_are_a_promise() -> None:
    """Saved weights refer to them."""
    assert [name for name, _ in stage(mix=2, end=True).named_children()] == ["thin", "cheap", "mix", "act", "end"]
    assert [name for name, _ in stage(cheap="none", mix=0).named_children()] == ["thin"]
    names = list(stage(KEPT[1]).state_dict())
    assert names[:3] == ["kept_index", "ghost_index", "order"]
    assert {"thin.0.0.weight", "thin.1.1.bias", "cheap.0.weight", "cheap.1.running_mean", "mix.fc.weight"} <= set(names)
    assert {"mix.fc.0.weight", "mix.fc.1.bias", "mix.fc.4.running_var"} <= set(stage(mix=2).state_dict())


def test_it_says_what_it_is() -> None:
    assert "9, kept=4, entry=projection, cheap_input=full, mix_y1=False" in repr(
        stage(entry="projection", cheap_input="full", mix_y1=False)
    )
    assert "Mix(\n    18, 5, layers=2" in repr(stage(mix=2))


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"kept": 0}, "kept: 0 channels of 9; it must be between 1 and 8"),
        ({"kept": 9}, "kept: 9 channels of 9; it must be between 1 and 8"),
        ({"kept": -2}, "kept: 0 channels of 9"),
        ({"kept": 10, "cheap": "none", "mix": 0}, "between 1 and 9"),
        ({"kept": []}, "kept: 0 channels of 9"),
        ({"kept": [1, 9]}, "kept: there is no channel 9; the stage's 9 channels count from 0"),
        ({"kept": [1, -1]}, "kept: there is no channel -1"),
        ({"kept": [1, 3, 1]}, "kept: channel 1 is given more than once"),
        ({"kept": 4.0}, "kept = 4.0: it must be a number of channels or a list of indices"),
        ({"kept": [0.5, 1]}, "a number of channels or a list of indices"),
        ({"kept": "4"}, "a number of channels or a list of indices"),
        ({"kept": torch.tensor([0.0, 1.0])}, "whole numbers"),
        ({"kept": torch.ones(9, dtype=torch.bool)}, "whole numbers"),
        ({"kept": torch.arange(4, device="meta")}, "with values"),
        ({"kept": torch.arange(4)[None]}, "in a row"),
        ({"kept_out": 9}, "kept_out: 9 channels of 9"),
        ({"kept_out": [0, 0]}, "kept_out: channel 0 is given more than once"),
        ({"thin": []}, "at least one thin block"),
        ({"thin_widths": [4]}, "1 widths for 2 thin blocks"),
        ({"thin_widths": [4, 5]}, "the last thin block must make 4 channels, not 5"),
        ({"thin_widths": [0, 4]}, "0 channels out of a thin block"),
        ({"entry": "slices"}, "Did you mean 'slice'?"),
        ({"cheap": "7x7"}, "cheap must be one of '1x1', '3x3', '5x5', 'identity', 'none', not '7x7'"),
        ({"cheap_input": "all"}, "cheap_input must be one of 'slice', 'full', 'outputs', not 'all'"),
        ({"mix": 3}, "mix = 3: the mix operation has 1 fully connected layer, 2, or 0"),
        ({"act": "gelu"}, "act must be a module, 'relu' or None, not 'gelu'"),
        ({"cheap": "none"}, "mix = 1 with cheap operation 'none'"),
        ({"cheap": "none", "mix": 0, "kept_out": 4}, "kept_out with cheap operation 'none'"),
        ({"cheap": "identity", "cheap_input": "full"}, "cheap_input must be 'slice'"),
        ({"cheap": "identity", "cheap_input": "outputs"}, "cheap_input must be 'slice'"),
        ({"cheap": "none", "mix": 0, "entry": "stream"}, "entry 'stream' with cheap operation 'none'"),
        ({"cheap": "identity", "kept_out": 3}, "cannot make 6 ghost channels of 5"),
    ],
    ids=as_text,
)
def test_what_cannot_be_built_is_refused_in_one_line(args: dict[str, Any], words: str) -> None:
    blocks = {"thin": [block(4, 4), block(4, 4)], "width": WIDTH, "kept": RAW}
    with pytest.raises(PlanError) as caught:
        GGhostStage(**{**blocks, **args})
    assert words in str(caught.value) and "\n" not in str(caught.value)
