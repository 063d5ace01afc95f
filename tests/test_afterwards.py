"""After rewriting, everything people do with a model still works, and as it did with the model given."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.feature_extraction import create_feature_extractor
from zoo import ZOO

from ghostify import Ghosted, convert
from ghostify.ghosts import CGhost, GGhostStage

NETS = {net.name: net for net in ZOO}


@dataclass(frozen=True)
class Subject:
    """A network by its source, and how it is converted."""

    source: str
    method: str = "c-ghost"
    pointwise: str = "none"
    drop: float = 0.0
    """Rate of its stochastic depth."""

    def __str__(self) -> str:
        how = ["g-ghost"] * (self.method == "g-ghost") + ["pointwise"] * (self.pointwise == "full")
        return "-".join([self.source.replace(":", "-"), *how])

    @property
    def home(self) -> str:
        return self.source.partition(":")[0]

    @property
    def sides(self) -> tuple[int, int]:
        """Of the images it is converted with, and of others."""
        return (8, 12) if self.home == "zoo" else (64, 80)

    def build(self, seed: int = 0) -> nn.Module:
        """In eval mode, with weights that leave no layer without effect."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return stirred(self._constructed()).eval()

    def _constructed(self) -> nn.Module:
        home, _, name = self.source.partition(":")
        if home == "zoo":
            return NETS[name].constructor()
        if home == "timm":
            timm = pytest.importorskip("timm")
            return timm.create_model(name, num_classes=10, drop_path_rate=self.drop)
        args = {"stochastic_depth_prob": self.drop} if self.drop else {}
        return torchvision.models.get_model(name, weights=None, num_classes=10, **args)

    def images(self, count: int = 2, side: int = 0) -> Tensor:
        side = side or self.sides[0]
        return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def stirred(model: nn.Module) -> nn.Module:
    """``model`` after its norms and scales were given random values: many begin at zero, or hardly above."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("weight", "gamma", "running_var")) and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1)
    return model


@dataclass
class Case:
    model: nn.Module
    ghosted: Ghosted

    @property
    def module(self) -> nn.Module:
        """A copy of the result, to do with as one likes."""
        return copy.deepcopy(self.ghosted.module)


def converted(subject: Subject, model: nn.Module, side: int = 0) -> Ghosted:
    """By all swaps that can be made, with pointwise convolutions that do something."""
    settings: dict[str, Any] = {"method": subject.method, "min_saving": 0}
    if subject.method == "c-ghost":
        settings["pointwise"] = subject.pointwise
    ghosted = convert(model, subject.images(side=side), **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for ghost in ghosted.module.modules():
            if isinstance(ghost, CGhost) and ghost.pointwise is not None:
                for weight in ghost.pointwise.parameters():
                    weight.normal_(0, 0.05, generator=generator)
    return ghosted


@cache
def case(subject: Subject) -> Case:
    model = subject.build()
    return Case(model, converted(subject, model))


RESNET = Subject("torchvision:resnet18")
MOBILE = Subject("torchvision:mobilenet_v3_small", pointwise="full")
SHUFFLE = Subject("torchvision:shufflenet_v2_x0_5", pointwise="full")
STAGES = Subject("torchvision:resnet34", method="g-ghost")
DROPPING = Subject("torchvision:efficientnet_b0", method="g-ghost", drop=0.8)

RESNET10T = Subject("timm:resnet10t", drop=0.8)
REGNETX = Subject("timm:regnetx_002", method="g-ghost", drop=0.8)

TIMM = (
    RESNET10T,
    Subject("timm:efficientnet_lite0", pointwise="full", drop=0.8),
    Subject("timm:convnext_atto", pointwise="full", drop=0.8),
    Subject("timm:convnext_atto", method="g-ghost", drop=0.8),
    REGNETX,
)
SMALL = (
    Subject("zoo:residual"),
    Subject("zoo:mobile", pointwise="full"),
    Subject("zoo:subclassed"),
    Subject("zoo:residual-stage", method="g-ghost"),
    Subject("zoo:gated-stage", method="g-ghost"),
    Subject("zoo:shuffle-stage", method="g-ghost"),
)
LARGE = (RESNET, MOBILE, SHUFFLE, STAGES, *TIMM)
"""What holds of state dicts, names and copies is tested on all of the zoo elsewhere."""
ALL = (*LARGE, *SMALL)
QUICK = (RESNET, RESNET10T, REGNETX, *SMALL)
"""Those that are compiled, exported and converted again, because that takes long."""


def over(subjects: tuple[Subject, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("subject", subjects, ids=str)


def evaluated(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module.eval()(x)


def near(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    """Relative to the largest value."""
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance * other.abs().max())


def swapped_names(the: Case) -> tuple[str, ...]:
    return tuple(name for swap in the.ghosted.plan.swaps for name in swap.touches)


def untouched(name: str, swapped: tuple[str, ...]) -> bool:
    return not any(name == one or name.startswith(one + ".") for one in swapped)


def is_ghost(module: nn.Module) -> bool:
    return isinstance(module, CGhost | GGhostStage)


def loss(output: Tensor) -> Tensor:
    """That depends on every output, and not alike."""
    weights = torch.linspace(0.5, 1.5, output[0].numel()).view_as(output[0])
    return (output * weights).square().mean()


def step(module: nn.Module, x: Tensor, steps: int = 1) -> None:
    """Steps of plain gradient descent in train mode."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    for index in range(steps):
        torch.manual_seed(index)
        optimizer.zero_grad()
        loss(module(x)).backward()
        optimizer.step()


# -- modes -----------------------------------------------------------------------------------------------------


@over(tuple(subject for subject in ALL if "convnext" not in subject.source))
def test_train_mode_moves_the_statistics_of_every_batch_norm_and_eval_mode_none(subject: Subject) -> None:
    module, x = case(subject).module, subject.images()
    before = copy.deepcopy(module.state_dict())
    evaluated(module, x)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    module.train()(x)
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, _BatchNorm)}
    assert norms
    for name, norm in norms.items():
        assert norm.num_batches_tracked == before[f"{name}.num_batches_tracked"] + 1, name
        assert not torch.equal(norm.running_mean, before[f"{name}.running_mean"]), name
        assert not torch.equal(norm.running_var, before[f"{name}.running_var"]), name
    moved = {f"{name}.{key}" for name in norms for key in ("num_batches_tracked", "running_mean", "running_var")}
    assert {key for key, value in module.state_dict().items() if not torch.equal(before[key], value)} == moved


def dropped(module: nn.Module, x: Tensor) -> list[tuple[str, float]]:
    """Each module of stochastic depth with the share of samples that it made zero, in the order they ran."""
    module, shares = copy.deepcopy(module), []

    def watch(name: str) -> Callable[..., None]:
        def seen(part: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            shares.append((name, 1 - float(output.flatten(1).any(1).float().mean())))

        return seen

    for name, part in module.named_modules():
        if type(part).__name__ in ("DropPath", "StochasticDepth"):
            part.register_forward_hook(watch(name))
    with torch.no_grad():
        torch.manual_seed(0)
        module(x)
    return shares


@over((DROPPING, *(subject for subject in TIMM if subject.drop)))
def test_stochastic_depth_drops_samples_in_training_and_none_in_evaluation(subject: Subject) -> None:
    """Of C-Ghost modules the very samples of the original, of G-Ghost stages in their thin blocks, too."""
    the, x = case(subject), subject.images(16)
    found = dropped(the.module.train(), x)
    assert sum(share > 0 for _, share in found) > len(found) / 2
    if subject.method == "c-ghost":
        assert found == dropped(copy.deepcopy(the.model).train(), x)
    else:
        assert any(share > 0 for name, share in found if ".thin." in name)
    assert {share for _, share in dropped(the.module.eval(), x)} == {0.0}


# -- state dicts -----------------------------------------------------------------------------------------------


@over(LARGE)
def test_untouched_keys_of_the_state_dict_are_the_same_with_the_same_values(subject: Subject) -> None:
    the = case(subject)
    swapped, old, new = swapped_names(the), the.model.state_dict(), the.ghosted.module.state_dict()
    kept = [key for key in old if untouched(key, swapped)]
    assert kept == [key for key in new if untouched(key, swapped)]
    assert kept and len(kept) < len(old)
    assert all(new[key].dtype == old[key].dtype and torch.equal(new[key], old[key]) for key in kept)


@over(LARGE)
def test_names_classes_and_modes_of_untouched_modules_are_the_same(subject: Subject) -> None:
    the = case(subject)
    swapped = swapped_names(the)
    old, new = (
        [(name, type(part), part.training) for name, part in module.named_modules(remove_duplicate=False)]
        for module in (the.model, the.ghosted.module)
    )
    assert [seen for seen in old if untouched(seen[0], swapped)] == [
        seen for seen in new if untouched(seen[0], swapped)
    ]
    assert all(is_ghost(the.ghosted.module.get_submodule(one)) for one in ghost_names(the))


@over((SHUFFLE, *QUICK))
def test_the_state_dict_of_one_conversion_loads_into_another_and_gives_the_same_outputs(subject: Subject) -> None:
    """The other is of the same model with other weights, and made with an image of another size."""
    here, there = subject.sides
    module, other = case(subject).module, converted(subject, subject.build(seed=1), there).module
    assert not near(evaluated(other, subject.images()), evaluated(module, subject.images()), 0.01)
    other.load_state_dict(module.state_dict(), strict=True)
    for side in (here, there):
        assert torch.equal(evaluated(other, subject.images(side=side)), evaluated(module, subject.images(side=side)))


# -- what timm's and torchvision's models are asked for --------------------------------------------------------


@over(TIMM)
def test_timms_features_and_head_are_the_whole(subject: Subject) -> None:
    the, x = case(subject), subject.images()
    module, model = the.module, the.model
    with torch.no_grad():
        features, before = module.forward_features(x), model.forward_features(x)
        assert features.shape == before.shape and not torch.equal(features, before)
        assert torch.equal(module.forward_head(features), module(x))
        pooled = module.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        assert torch.equal(module.get_classifier()(pooled), module(x))


@over(TIMM)
def test_timms_intermediate_maps_have_the_shapes_they_had_and_end_in_the_features(subject: Subject) -> None:
    the, x = case(subject), subject.images()
    with torch.no_grad():
        last, maps = the.module.forward_intermediates(x)
        _, before = the.model.forward_intermediates(x)
        assert torch.equal(last, the.module.forward_features(x))
    assert [found.shape for found in maps] == [found.shape for found in before]
    assert all(found.isfinite().all() and not torch.equal(found, maps[0]) for found in maps[1:])


@over(TIMM)
def test_timms_classifier_is_found_and_can_be_reset(subject: Subject) -> None:
    the, x = case(subject), subject.images()
    module = the.module
    assert module.num_features == the.model.num_features and module.num_classes == 10
    classifier = module.get_classifier()
    assert any(part is classifier for part in module.modules())
    assert torch.equal(classifier.weight, the.model.get_classifier().weight)
    features = module.forward_features(x)
    module.reset_classifier(7)
    assert module(x).shape == (2, 7) and module.get_classifier().out_features == 7
    assert torch.equal(module.forward_features(x), features)
    module.reset_classifier(0)
    assert module(x).shape == (2, module.num_features)


@over(TIMM)
def test_timms_parameter_groups_name_every_parameter(subject: Subject) -> None:
    """As for decay that differs from layer to layer, and none for norms and biases."""
    optim = pytest.importorskip("timm.optim")
    module = case(subject).module
    groups = optim.param_groups_layer_decay(module, weight_decay=0.1, layer_decay=0.5)
    found = [parameter for group in groups for parameter in group["params"]]
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in module.parameters()}
    assert len(found) == len(list(module.parameters()))


@over(TIMM)
def test_gradient_checkpointing_runs_ghosts_again_and_gives_the_same_gradients(subject: Subject) -> None:
    calls = {False: 0, True: 0}
    gradients: dict[bool, list[Tensor]] = {}
    for again in calls:
        module = case(subject).module.train()
        module.set_grad_checkpointing(again)

        def count(*_: Any, again: bool = again) -> None:
            calls[again] += 1

        for part in module.modules():
            if is_ghost(part):
                part.register_forward_pre_hook(count)  # a second run ends early
        torch.manual_seed(0)
        loss(module(subject.images(4))).backward()
        gradients[again] = [parameter.grad for parameter in module.parameters()]
    assert calls[True] > calls[False]
    assert all(near(one, other) for one, other in zip(gradients[True], gradients[False], strict=True))


NODES = {
    RESNET: ("conv1", "layer2", "layer4.1.bn2"),
    MOBILE: ("features.3", "features.12", "avgpool"),
    SHUFFLE: ("stage3", "conv5"),
    STAGES: ("layer1", "layer2", "layer3.0", "avgpool"),
    DROPPING: ("features.2", "features.8"),
}


@pytest.mark.parametrize(("subject", "nodes"), NODES.items(), ids=str)
def test_torchvisions_feature_extractor_finds_the_maps_of_the_ghosts(subject: Subject, nodes: tuple[str, ...]) -> None:
    """Under the names and in the shapes they had, with the values that the modules give."""
    the, x = case(subject), subject.images()
    before = create_feature_extractor(copy.deepcopy(the.model), list(nodes))
    found = evaluated(create_feature_extractor(the.module, list(nodes)), x)
    given = {node: outputs_by_name(the.module.eval(), x)[node] for node in nodes}
    assert {node: maps.shape for node, maps in found.items()} == {
        node: maps.shape for node, maps in evaluated(before, x).items()
    }
    assert all(torch.equal(found[node], given[node]) for node in nodes)


def outputs_by_name(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each module gives, the last time it runs."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda part, args, output: found.update({name: output.clone()})  # it may be overwritten

    handles = [part.register_forward_hook(keep(name)) for name, part in module.named_modules()]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return found


# -- copies ----------------------------------------------------------------------------------------------------


def saved_whole(module: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize(
    ("copied", "subject"),
    [*product((copy.deepcopy, saved_whole), LARGE), *product((pickled,), SMALL)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_copy_gives_the_same_outputs_and_is_its_own(copied: Callable[..., nn.Module], subject: Subject) -> None:
    module, x = case(subject).module, subject.images()
    other = copied(module)
    assert [(name, type(part).__name__) for name, part in other.named_modules()] == [
        (name, type(part).__name__) for name, part in module.named_modules()
    ]
    expected = evaluated(module, x)
    assert torch.equal(evaluated(other, x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.equal(evaluated(other, x), expected)
    assert torch.equal(evaluated(module, x), expected)


# -- compiled, exported, traced --------------------------------------------------------------------------------


@over(QUICK)
def test_it_is_compiled_in_one_graph(subject: Subject) -> None:
    module, x = case(subject).module.eval(), subject.images()
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        assert near(compiled(x), module(x))


@over(QUICK)
def test_it_is_exported_with_a_batch_of_any_size(subject: Subject) -> None:
    module, x = case(subject).module.eval(), subject.images()
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for count in (1, 2, 3):
        assert near(evaluated_as_it_is(exported, subject.images(count)), evaluated(module, subject.images(count)))


def evaluated_as_it_is(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An exported program has no modes."""
    with torch.no_grad():
        return module(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")  # deprecated, and in use
@over(tuple(subject for subject in QUICK if subject.source != "zoo:subclassed"))  # works with sizes in Python
def test_it_is_traced_by_torch_jit(subject: Subject) -> None:
    module, x = case(subject).module.eval(), subject.images()
    traced = torch.jit.trace(module, x, check_trace=False)
    for other in (x, subject.images(3)):
        assert near(traced(other), module(other))


# -- other inputs, other places --------------------------------------------------------------------------------


@over(ALL)
def test_other_sizes_give_the_shapes_they_gave_and_images_do_not_know_their_batch(subject: Subject) -> None:
    the = case(subject)
    for side in (subject.sides[1], subject.sides[0] - 1):
        three = subject.images(3, side)
        outputs = evaluated(the.module, three)
        assert outputs.shape == evaluated(the.model, three).shape and outputs.isfinite().all()
        alone = torch.cat([evaluated(the.module, image) for image in three.split(1)])
        assert near(alone, outputs)


@over(tuple(subject for subject in ALL if subject.source != "zoo:shuffle-stage"))  # gives up channels_last itself
def test_channels_last_gives_the_same_and_ghosts_hand_it_on(subject: Subject) -> None:
    """Where the layer in a ghost's place gave maps with the channels last, so does the ghost."""
    the, last = case(subject), torch.channels_last
    x = subject.images()
    module, model = the.module.eval().to(memory_format=last), copy.deepcopy(the.model).to(memory_format=last)
    assert near(evaluated(module, x.to(memory_format=last)), evaluated(the.module, x))
    new, old = (outputs_by_name(one, x.to(memory_format=last)) for one in (module, model))
    maps = [name for name in ghost_names(the) if old[name].dim() == 4]
    handed_on = [name for name in maps if old[name].is_contiguous(memory_format=last)]
    assert handed_on
    assert [name for name in handed_on if not new[name].is_contiguous(memory_format=last)] == []


def ghost_names(the: Case) -> list[str]:
    """Where ghosts stand, by swap."""
    stages = {stage.name: stage.slot for stage in the.ghosted.before.stages}
    return [stages.get(swap.target, swap.target) for swap in the.ghosted.plan.swaps]


@over(ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float64, 1e-4)], ids=str)
def test_another_precision_gives_nearly_the_same(dtype: torch.dtype, tolerance: float, subject: Subject) -> None:
    module, x = case(subject).module, subject.images()
    expected = evaluated(module, x)
    outputs = evaluated(module.to(dtype), x.to(dtype))
    assert outputs.dtype == dtype and near(outputs.to(expected.dtype), expected, tolerance)
    assert {tensor.dtype for tensor in module.parameters()} == {dtype}


@over(ALL)
def test_mixed_precision_gives_nearly_the_same_and_trains(subject: Subject) -> None:
    module, x = case(subject).module, subject.images()
    expected = evaluated(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert near(evaluated(module, x).float(), expected, 0.15)
        outputs = module.train()(x)
    loss(outputs.float()).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


@over(ALL)
def test_on_the_meta_device_it_gives_the_shape(subject: Subject) -> None:
    module, x = case(subject).module.to("meta"), subject.images()
    outputs = evaluated(module, x.to("meta"))
    assert outputs.is_meta and outputs.shape == evaluated(case(subject).model, x).shape


# -- training --------------------------------------------------------------------------------------------------


@over(ALL)
def test_all_of_it_is_frozen_and_thawed(subject: Subject) -> None:
    module, x = case(subject).module.eval(), subject.images()
    assert not module.requires_grad_(False)(x).requires_grad
    loss(module.requires_grad_(True)(x)).backward()
    assert [name for name, parameter in module.named_parameters() if not parameter.grad.any()] == []


@over(ALL)
def test_a_step_of_an_optimizer_changes_every_weight(subject: Subject) -> None:
    module = case(subject).module
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    step(module.apply(without_stochastic_depth), subject.images(4))
    still = [name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])]
    assert [name for name in still if before[name].dim() > 1] == [], "a bias before a batch norm has no effect"


def without_stochastic_depth(part: nn.Module) -> None:
    if type(part).__name__ == "DropPath":
        part.drop_prob = 0.0
    if type(part).__name__ == "StochasticDepth":
        part.p = 0.0


@over((RESNET, SHUFFLE, STAGES))
def test_an_average_of_its_weights_is_kept(subject: Subject) -> None:
    """With its batch norms' statistics worked out anew."""
    module, x = case(subject).module, subject.images(4)
    average = torch.optim.swa_utils.AveragedModel(module)
    for _ in range(2):
        step(module, x)
        average.update_parameters(module)
    assert all(not torch.equal(a, p) for a, p in zip(average.parameters(), module.parameters(), strict=True))
    torch.optim.swa_utils.update_bn([x], average)
    assert evaluated(average, x).isfinite().all()


# -- several processes -----------------------------------------------------------------------------------------


PARALLEL = tuple(subject for subject in ALL if subject.home != "timm" or importlib.util.find_spec("timm"))


def train_in(rank: int, folder: str) -> None:
    """A process that knows nothing but the saved modules trains each by two steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=1)
    for path in sorted(Path(folder).glob("*.pt")):
        module, x = torch.load(path, weights_only=False)
        step(DistributedDataParallel(module.train()), x, steps=2)
        torch.save(module.state_dict(), path.with_suffix(".trained"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what another process made of the modules."""
    folder = tmp_path_factory.mktemp("parallel")
    for subject in PARALLEL:
        torch.save((case(subject).module, subject.images(4)), folder / f"{subject}.pt")
    mp.spawn(train_in, (str(folder),), nprocs=1)
    return folder


@over(PARALLEL)
def test_distributed_training_of_one_process_is_training(subject: Subject, trained: Path) -> None:
    """Two steps: a second one is refused where the first left a parameter without a gradient."""
    module = case(subject).module
    before = copy.deepcopy(module.state_dict())
    step(module, subject.images(4), steps=2)
    found = torch.load(trained / f"{subject}.trained")
    assert found.keys() == before.keys()
    assert any(not torch.equal(found[key], before[key]) for key in found)
    assert all(near(found[key].double(), value.double()) for key, value in module.state_dict().items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, DataParallel wants the module there")
@over(ALL)
def test_data_parallel_without_a_gpu_passes_through(subject: Subject) -> None:
    module, x = case(subject).module.eval(), subject.images()
    parallel = nn.DataParallel(module)
    assert torch.equal(evaluated(parallel, x), evaluated(module, x))
    assert list(parallel.state_dict()) == [f"module.{key}" for key in module.state_dict()]


# -- hooks -----------------------------------------------------------------------------------------------------


def firing(module: nn.Module, x: Tensor, seen: list[tuple[str, nn.Module]]) -> list[tuple[str, str]]:
    """Which hooks fire in a run and its backward pass, by kind and by the name their module has in ``module``."""
    names = {part: name for name, part in module.named_modules()}
    seen.clear()
    loss(module.eval()(x)).backward()
    return [(kind, names[part]) for kind, part in seen]


@over(QUICK)
def test_hooks_of_untouched_modules_fire_on_the_copy_as_they_do_on_a_deep_copy(subject: Subject) -> None:
    """In the same order, with the copy's modules; taking them off the original leaves the copy's."""
    the, x, seen = case(subject), subject.images(), []
    model, swapped, handles = copy.deepcopy(the.model), swapped_names(the), []
    for name, part in model.named_modules():
        if untouched(name, swapped) and not any(inside.startswith(f"{name}.") for inside in swapped if name):
            handles.append(part.register_forward_pre_hook(lambda part, args: seen.append(("before", part))))
            handles.append(part.register_forward_hook(lambda part, args, output: seen.append(("after", part))))
        if isinstance(part, nn.Linear) and untouched(name, swapped):
            handles.append(part.register_full_backward_hook(lambda part, given, taken: seen.append(("back", part))))
    ghosted = converted(subject, model)
    assert swapped_names(Case(model, ghosted)) == swapped
    expected = firing(copy.deepcopy(model), x, seen)
    assert {kind for kind, _ in expected} == {"before", "after", "back"}
    assert firing(ghosted.module, x, seen) == expected
    for handle in handles:
        handle.remove()
    assert firing(ghosted.module, x, seen) == expected and firing(model, x, seen) == []


@over(SMALL)
def test_hooks_of_what_holds_ghosts_change_what_the_copy_gives(subject: Subject) -> None:
    the, x = case(subject), subject.images()
    model = copy.deepcopy(the.model)
    model.register_forward_hook(lambda part, args, output: 2 * output)
    assert torch.equal(evaluated(converted(subject, model).module, x), 2 * evaluated(the.module, x))
