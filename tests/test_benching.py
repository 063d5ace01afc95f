"""Networks side by side: a difference inside the noise is none, in whatever form networks come; bad input is told."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
import torch
from command import Cli, refused
from torch import Tensor, nn

import ghostify
from ghostify.benching import Bench, Source, bench_sources
from ghostify.benching.bench import labels
from ghostify.benching.exported import exported as in_file
from ghostify.benching.memory import peak_bytes
from ghostify.benching.picture import drawn
from ghostify.benching.verdicts import Speedup, speedups
from ghostify.clock import Place
from ghostify.errors import ModelError, RecipeError
from ghostify.inputs import parse_inputs
from ghostify.measuring import latency
from ghostify.networks import resnet8

QUICK = 0.001
TURNS = 60


def times(cost: float, seed: int, *, setups: int = 3, between: float = 0.02) -> list[list[float]]:
    """Milliseconds of a network's set-ups: each has an error of its own, and each run some noise and a rare spike."""
    random = numpy.random.default_rng(seed)
    errors = numpy.exp(between * random.standard_normal((setups, 1)))
    noise = numpy.exp(0.05 * random.standard_normal((setups, TURNS)))
    spikes = numpy.where(random.random((setups, TURNS)) < 0.05, 5.0, 1.0)
    return (cost * errors * noise * spikes).tolist()


# -- the verdict ------------------------------------------------------------------------------------------------


def test_a_network_beside_itself_is_hardly_ever_called_different() -> None:
    """The interval is of 95 %, and so is the share of pairs that are right."""
    called = [speedups({"a": times(1, seed), "again": times(1, 10_000 + seed)})["again"] for seed in range(400)]
    assert sum(one.verdict != "no difference" for one in called) <= 0.07 * len(called)
    held = sum(one.low <= 1 <= one.high for one in called) / len(called)
    assert 0.92 < held < 0.98


def test_turns_alone_would_call_a_network_different_from_itself() -> None:
    """What the set-ups are for: of one set-up of each, the turns say with confidence what is not so."""
    one, other = (numpy.array([times(1, seed + shift, setups=1)[0] for seed in range(100)]) for shift in (0, 10_000))
    ratios = numpy.sort(one / other)
    beside = round(0.98 * TURNS**0.5)  # the median lies so many ranks from the middle one, with 95 %
    low, high = ratios[:, TURNS // 2 - beside], ratios[:, TURNS // 2 + beside]
    assert ((low > 1) | (high < 1)).sum() > 30


@pytest.mark.parametrize("verdict", ["faster", "slower"])
def test_what_is_a_tenth_faster_or_slower_is_called_so(verdict: str) -> None:
    cost = 0.9 if verdict == "faster" else 1 / 0.9
    found = [
        speedups({"a": times(1, seed, between=0.005), "b": times(cost, -seed + 900, between=0.005)})["b"]
        for seed in range(50)
    ]
    assert all(one.verdict == verdict and one.low <= one.ratio <= one.high for one in found)


def test_what_all_set_ups_suffer_in_a_turn_cancels() -> None:
    slow = numpy.where(numpy.arange(TURNS) % 7 == 0, 9.0, 1.0)
    before, after = (numpy.ones((3, TURNS)) * cost * slow for cost in (1.0, 0.8))
    found = speedups({"a": before.tolist(), "b": after.tolist()})["b"]
    assert (found.ratio, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))


def test_the_ratio_does_not_depend_on_who_is_the_baseline() -> None:
    one, other = times(1, 1), times(0.7, 2)
    forth, back = speedups({"a": one, "b": other})["b"], speedups({"b": other, "a": one})["a"]
    assert forth.ratio == pytest.approx(1 / back.ratio) and forth.low == pytest.approx(1 / back.high)


@pytest.mark.parametrize(
    ("speedup", "verdict"),
    [
        (Speedup(1.5, 1.4, 1.6), "faster"),
        (Speedup(0.5, 0.4, 0.6), "slower"),
        (Speedup(1.5, 0.9, 2.1), "no difference"),
        (Speedup(0.8, 0.6, 1.1), "no difference"),
        (Speedup(1.005, 1.004, 1.006), "no difference"),  # sure, and too little to matter
        (Speedup(0.995, 0.994, 0.996), "no difference"),
    ],
)
def test_only_what_lies_beyond_the_noise_is_a_difference(speedup: Speedup, verdict: str) -> None:
    assert speedup.verdict == verdict


# -- networks, by a clock that they turn themselves -----------------------------------------------------------------


class Clock:
    """The time that networks of these tests take, and nothing else."""

    def __init__(self) -> None:
        self.now = 0.0
        self.random = numpy.random.default_rng(0)

    def perf_counter(self) -> float:
        self.now += 1e-7
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds * float(numpy.exp(0.05 * self.random.standard_normal()))


CLOCK = Clock()


class Lasting(nn.Module):
    """Takes so many seconds, and 2 % more or less wherever it is set up anew."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.seconds = seconds
        self.error = 1.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Lasting:
        copied = Lasting(self.seconds)
        copied.error = float(numpy.exp(0.02 * CLOCK.random.standard_normal()))
        return copied

    def forward(self, images: Tensor) -> Tensor:
        CLOCK.pass_by(self.seconds * self.error)
        return torch.as_tensor(self.conv(images))


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = sys.modules["ghostify.measuring.latency"]
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=CLOCK.perf_counter))


def test_networks_are_told_apart_only_where_they_differ(fake_clock: None) -> None:
    networks = {"a": Lasting(0.01), "again": Lasting(0.01), "half": Lasting(0.005), "double": Lasting(0.02)}
    found = ghostify.bench(networks, torch.zeros(1, 3, 4, 4), seconds=1)
    verdicts = {one.network: one.verdict for one in found.results}
    assert verdicts == {"a": "baseline", "again": "no difference", "half": "faster", "double": "slower"}
    assert found.of("half")[0].speedup == pytest.approx(2, rel=0.05)
    assert found.of("a")[0].latency.median_ms == pytest.approx(10, rel=0.1)


def test_every_combination_is_timed_with_the_batch_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model[0].register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), torch.get_num_threads())))
    found = ghostify.bench({"a": model}, torch.zeros(5, 3, 4, 4), batches=(1, 3), threads=[1, 2], seconds=QUICK)
    assert {(1, 1), (1, 2), (3, 1), (3, 2)} <= set(seen)
    assert [(one.place.batch, one.place.threads) for one in found.results] == [(1, 1), (1, 2), (3, 1), (3, 2)]


def test_a_bench_survives_json_and_is_drawn() -> None:
    network = resnet8()
    ghosted = ghostify.convert(network, torch.zeros(1, 3, 32, 32), s=2)
    models = {"<plain> & simple": network, "ghosted": ghosted, "fast": ghostify.optimize(ghosted)}
    found = ghostify.bench(models, torch.zeros(1, 3, 32, 32), runtimes=("eager", "onnxruntime"), seconds=QUICK)
    assert Bench.model_validate_json(found.model_dump_json()) == found
    assert [one.form for one in found.networks] == ["training", "training", "inference"]
    assert found.networks[0].macs > found.networks[1].macs > 0
    assert len(found.table().rows) == 6 and "<plain> & simple" in str(found)
    drawing = ElementTree.fromstring(drawn(found))
    texts = list(drawing.itertext())
    assert texts.count("<plain> & simple") == 2 and texts.count("fast") == 2
    circles = [one for one in drawing.iter() if one.tag.endswith("circle")]
    assert len(circles) == 6 and all(0 < float(one.attrib["cx"]) < 860 for one in circles)


def test_models_in_python_are_checked_at_the_door() -> None:
    example = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ModelError, match=r"^Networks by name are wanted"):
        ghostify.bench(resnet8(), example)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"^'bad' does not run on a batch of 1 in eager: .*channels"):
        ghostify.bench({"good": nn.Conv2d(3, 3, 1), "bad": nn.Conv2d(4, 3, 1)}, example, seconds=QUICK)
    for settings in ({"batches": 0}, {"threads": (1, -1)}, {"seconds": 0}, {"runtimes": "onnx"}):
        with pytest.raises(RecipeError):
            ghostify.bench({"a": nn.Conv2d(3, 3, 1)}, example, **settings)


def test_names_that_stand_twice_are_told_apart() -> None:
    assert labels(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a network: ``fixed.onnx`` for batches of 2, ``open.onnx`` for any, ``net.xml``, ``net.pt2``."""
    import openvino

    folder = tmp_path_factory.mktemp("exported")
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.zeros(2, 3, 8, 8)
    sizes = {"fixed": None, "open": {"x": {0: "n", 2: "height", 3: "width"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, axes in sizes.items():
            file = folder / f"{name}.onnx"
            torch.onnx.export(network, (images,), file, input_names=["x"], dynamic_axes=axes, dynamo=False)
    openvino.save_model(openvino.Core().read_model(str(folder / "fixed.onnx")), str(folder / "net.xml"))
    torch.export.save(torch.export.export(network, (images,)), folder / "net.pt2")
    return folder


@pytest.fixture
def files(exported: Path, tmp_path: Path) -> None:
    """Those files in the folder that the command runs in, and three more that hold nothing."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    for suffix in ("onnx", "pt2", "xml"):
        (tmp_path / f"broken.{suffix}").write_text("nothing")


@pytest.mark.usefixtures("files")
def test_networks_runs_and_files_are_timed_side_by_side(cli: Cli) -> None:
    ghosted = ghostify.convert(resnet8(), torch.zeros(1, 3, 32, 32), s=2)
    ghostify.save(ghosted, "run", model="ghostify:resnet8")
    settings = "--runtime onnxruntime --batch 1,2 --input 3,32,32 --seconds 0.001 --no-memory --json -o times"
    answer = cli("bench", "ghostify:resnet8", "run", "open.onnx", *settings.split())
    assert answer.code == 0, answer.err
    found = Bench.model_validate(json.loads(answer.out))
    assert [(one.name, one.form) for one in found.networks] == [
        ("ghostify:resnet8", "inference"),
        ("run", "inference"),
        ("open.onnx", "file"),
    ]
    assert [one.place.batch for one in found.results] == [1, 1, 1, 2, 2, 2]
    assert Bench.model_validate_json(Path("times/bench.json").read_text()) == found
    assert Path("times/bench.svg").read_text().startswith("<svg")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("names", "runtime"),
    [(["net.pt2"], "eager"), (["fixed.onnx", "net.xml"], "openvino"), (["fixed.onnx"], "onnxruntime")],
)
def test_a_file_runs_on_the_first_runtime_that_can(cli: Cli, names: list[str], runtime: str) -> None:
    answer = cli("bench", *names, "--batch", "2", "--seconds", "0.001", "--no-memory")
    assert answer.code == 0, answer.err
    assert f"{runtime}, 1 thread" in answer.out


def test_the_form_that_trains_is_timed_where_it_is_asked_for(cli: Cli) -> None:
    answer = cli("bench", "ghostify:resnet8", "--form", "training", "--seconds", "0.001", "--no-memory", "--json")
    (network,) = json.loads(answer.out)["networks"]
    assert network["form"] == "training" and network["macs"] > 0


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing.onnx"], "File 'nothing.onnx' does not exist."),
        (["fixed.onnx"], "'fixed.onnx' takes batches of 2 only, not of 1; give --batch 2."),
        (["open.onnx"], "Input 'x' of 'open.onnx' is of any size; say which, as in --input x=3,224,224."),
        (["net.pt2"], "'net.pt2' does not run on a batch of 1 in eager: Guard failed"),
        (["net.xml", "--runtime", "eager"], "'net.xml' runs on openvino, not on eager."),
        (["fixed.onnx", "net.pt2", "--runtime", "onnx"], "There is no runtime 'onnx'"),
        (["ghostify:resnet8", "--batch", "1,many"], "--batch takes whole numbers of 1 or more"),
        (["ghostify:resnet8", "--threads", "0"], "Networks are timed with threads of 1 or more, not 0."),
        (["ghostify:resnet8", "--seconds", "0"], "Measuring needs seconds > 0"),
        (["ghostify:resnet8", "--form", "inferense"], "Did you mean 'inference'?"),
        (["ghostify:resnet8", "--input", "3,x"], "--input '3,x' cannot be read"),
        (["ghostify:resnet9"], "Did you mean"),
        (["broken.onnx"], "'broken.onnx': The runtime onnxruntime cannot run this network"),
        (["broken.pt2"], "'broken.pt2' cannot be read as a program of torch.export"),
        (["broken.xml"], "'broken.xml': The runtime openvino cannot run this network"),
    ],
)
def test_what_is_wrong_is_one_line(cli: Cli, words: list[str], told: str) -> None:
    refused(cli("bench", *words, "--no-memory", "-o", "times/new"), told)
    assert not Path("times").exists()


def test_files_that_no_runtime_has_in_common_are_told(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostify.runtimes.in_openvino.OpenVino.suffixes", (".xml",))
    with pytest.raises(
        RecipeError, match=r"^No runtime runs all of these: .*open.onnx' runs on onnxruntime; .*net.xml"
    ):
        bench_sources([str(exported / "open.onnx"), str(exported / "net.xml")], Source(name=""), memory=False)


def test_memory_is_what_weights_and_maps_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a matrix of 64 MB, 64 MB and a little."""
    (tmp_path / "large.py").write_text("from torch import nn\n\ndef matrix():\n    return nn.Linear(64, 250_000)\n")
    monkeypatch.chdir(tmp_path)
    peak = peak_bytes(Source(name="large:matrix", form="training", input=(64,)), Place())
    assert peak is not None and 60e6 < peak < 90e6


def test_the_speed_of_the_clock_is_real() -> None:
    """A bench and a plain measurement of the same network agree on how long it takes, roughly."""
    network = resnet8()
    found = ghostify.bench({"a": network}, torch.zeros(1, 3, 32, 32), seconds=0.2).results[0].latency
    known = latency({"a": network}, torch.zeros(1, 3, 32, 32), seconds=0.2)["a"]
    assert 0.2 < found.median_ms / known.median_ms < 5


def test_files_that_do_not_say_what_they_take_are_timed_by_their_manifests(tmp_path: Path) -> None:
    example = torch.randn(1, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    done = ghostify.export(network, tmp_path / "net.torchscript", to="torchscript", example=example, dynamic="batch")
    place = Place(runtime="eager", device="cpu", threads=1, batch=3)
    (maps,) = in_file(str(done.file)).session(place)()
    assert maps.shape == (3, 4, 6, 6)
    done.manifest.unlink()
    with pytest.raises(RecipeError, match="Nothing says what"):
        in_file(str(done.file)).session(place)
    assert in_file(str(done.file), parse_inputs("3,8,8")).session(place)()[0].shape == (3, 4, 6, 6)
