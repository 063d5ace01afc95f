"""The page of a redundancy report: what it says, that it needs nothing else, and how a real browser shows it."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ghostify.analysis.findings import (
    Advice,
    CurvePoint,
    FilterError,
    LayerRedundancy,
    MapPair,
    SplitError,
    StageRedundancy,
)
from ghostify.analysis.pictures import LayerPictures, Pictures, Replaced
from ghostify.analysis.result import Analysis
from ghostify.budget_result import Amount, Budgeted, Chosen, Way
from ghostify.costs import Cost
from ghostify.planning import Plan
from ghostify.reporting.analysis_files import layers_csv
from ghostify.reporting.page import render_page
from ghostify.rules import CGhostSwap

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><img src=x onerror=alert(1)>\"'`{{7*7}}&amp;"
NAMES = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer10.0.conv1")
LARGE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


# -- a synthetic sample ----------------------------------------------------------------------------------------


def smooth(generator: np.random.Generator, count: int, side: int) -> NDArray[np.uint8]:
    """Random maps of soft blobs, each over the whole scale of greys."""
    coarse = generator.normal(size=(count, max(2, side // 5), max(2, side // 5)))
    maps = np.kron(coarse, np.ones((1, side // coarse.shape[1] + 1, side // coarse.shape[2] + 1)))[:, :side, :side]
    for axis in (1, 2):
        for _ in range(3):
            maps = (np.roll(maps, 1, axis) + 2 * maps + np.roll(maps, -1, axis)) / 4
    maps = maps + generator.normal(scale=0.03, size=maps.shape)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (255 * (maps - low) / (high - low)).astype(np.uint8)


def some_pairs(generator: np.random.Generator, maps: int, count: int, d: int = 3) -> tuple[MapPair, ...]:
    order = generator.permutation(maps)
    return tuple(
        MapPair(
            source=int(order[2 * i]),
            made=int(order[2 * i + 1]),
            correlation=float(generator.uniform(0.7, 0.99)),
            error=float(generator.uniform(0.01, 0.3)),
            mse={one: float(generator.uniform(0.001, 0.1)) for one in (1, 3, 5)},
            taps=tuple(map(tuple, generator.normal(size=(d, d)).tolist())),
        )
        for i in range(min(count, maps // 2))
    )


def a_layer(generator: np.random.Generator, name: str, maps: int, side: int, share: float, s: int | None) -> Any:
    base = float(generator.uniform(0.1, 0.8))
    cost = Cost(params=int(1e6 * share), macs=int(4e9 * share), acts=maps * side * side)
    cheap = Cost(params=cost.params // 2, macs=cost.macs // 2, acts=cost.acts) if s else cost
    return LayerRedundancy(
        name=name,
        geometry=f"{maps}→{maps} 3x3",
        maps=maps,
        size=(side, side),
        cost=cost,
        share=share,
        positions=50_000,
        images=128,
        similarity=1 - base / 2,
        filters=tuple(FilterError(d=d, error=base * (1.3 - 0.1 * d), mse=base / 10) for d in (1, 3, 5, 7)),
        splits=tuple(
            SplitError(
                s=one, error=base * (0.6 + 0.12 * one), spread=base / 15, intrinsic=(0,), ghosts=(tuple(range(1, one)),)
            )
            for one in (2, 3, 4, 5)
        ),
        carried=tuple((1 - np.linspace(1, 0, maps + 1)[1:] ** 3).tolist()),
        best=tuple(np.clip(generator.beta(2, 3, size=maps) * 2 * base, 0, 1.1).tolist()),
        pairs=some_pairs(generator, maps, 6),
        silent=1 if side == 8 else 0,
        advice=Advice(
            s=s if s == 2 else None,
            d=3 if s == 2 else None,
            m=4 if s == 3 else None,
            reason=f"half of its maps are filters of the others, with an error of {base:.2f}"
            if s
            else "its maps are too different from each other: the best split has an error above 0.5",
            error=base if s else None,
            before=cost,
            after=cheap,
        ),
    )


def a_stage(generator: np.random.Generator, name: str, width: int, ratio: float | None) -> StageRedundancy:
    ratios = [round(0.1 * i, 1) for i in range(1, 10)]
    cost = Cost(params=300_000, macs=900_000_000, acts=10_000)
    cheap = np.sort(generator.beta(2, 2, size=width))
    return StageRedundancy(
        name=name,
        geometry=f"{width}→{width} 16x16",
        blocks=tuple(f"{name}.{i}" for i in range(4)),
        width=width,
        cost=cost,
        share=0.22,
        positions=40_000,
        curve=tuple(CurvePoint(ratio=one, cheap=0.3 + 0.5 * one, mix=0.15 + 0.55 * one**2) for one in ratios),
        channels=tuple((cheap * 0.7).tolist()),
        cheap_channels=tuple(cheap.tolist()),
        pairs=some_pairs(generator, width, 3, d=1),
        advice=Advice(ratio=ratio, reason="the curve stays below 0.5 up to there", error=0.4, before=cost, after=cost),
    )


def a_sample(names: tuple[str, ...] = NAMES, side: int = 16, maps: int = 16, **changed: Any) -> Analysis:
    generator = np.random.default_rng(0)
    layers = tuple(
        a_layer(generator, name, maps, max(7, side >> i // 2), (i % 7 + 1) / 120, (None, 2, 3)[i % 3])
        for i, name in enumerate(names)
    )
    before, after = Cost(params=11_000_000, macs=4_090_000_000), Cost(params=7_000_000, macs=2_210_000_000)
    swaps = tuple(CGhostSwap(target=one.name, geometry=one.geometry, s=2, d=3) for one in layers if one.advice.changes)
    values: dict[str, Any] = {
        "network": "resnet20",
        "source": "torchvision:resnet20",
        "inputs": ((1, 3, 32, 32),),
        "trained": True,
        "images": 512,
        "data": "CIFAR-10, test images",
        "cost": before,
        "layers": layers,
        "stages": (a_stage(generator, "layer1", 16, 0.5), a_stage(generator, "layer2", 32, None)),
        "skipped": {"fc": "is no convolution", "shortcut": "is too small", "other": "is too small"},
        "plan": Plan(network="resnet20", inputs=((1, 3, 32, 32),), swaps=swaps, before=before, after=after),
        "seconds": 41.3,
        "notes": ("Batch norms were folded into the convolutions before them.",),
    }
    return Analysis(**(values | changed))


def some_pictures(analysis: Analysis, converted: bool = True) -> Pictures:
    generator = np.random.default_rng(1)
    layers, stages = {}, {}
    for layer in analysis.layers:
        shown, side = min(64, layer.maps), layer.size[0]
        pixels = smooth(generator, shown, side)
        replaced = tuple(
            Replaced(pair.source, pair.made, pixels[pair.source], pixels[pair.made], *smooth(generator, 2, side))
            for pair in layer.pairs
            if max(pair.source, pair.made) < shown
        )
        other = smooth(generator, shown, side) if converted else None
        layers[layer.name] = LayerPictures(tuple(range(shown)), pixels, replaced, converted=other)
    for stage in analysis.stages:
        first, last = smooth(generator, 16, 8), smooth(generator, 16, 8)
        stages[stage.name] = LayerPictures(tuple(range(16)), last, first=first)
    image = np.stack(list(smooth(generator, 3, 32)), axis=-1)
    return Pictures(image=image, layers=layers, stages=stages)


def with_choices(analysis: Analysis) -> Analysis:
    """The sample as the network that a run under a budget began with: all but the first layer could be chosen for."""

    def chosen(index: int, layer: LayerRedundancy) -> Chosen:
        before = 0.4 + 0.1 * index
        ways = [Way(form="as it is", harm=0.0, cost=before, taken=False)]
        ways += [
            Way(form=f"s=2 m={m} pw", m=m, harm=0.08 / m, cost=before * (0.2 + m / 20), taken=m == 8)
            for m in (12, 8, 4)
        ]
        return Chosen(target=layer.name, quantity="latency", before=before, ways=tuple(ways))

    first, *others = analysis.layers
    made = [
        layer.model_copy(update={"chosen": chosen(index, layer), "form": "thin=0.75, s=2 m=8 pw"})
        for index, layer in enumerate(others)
    ]
    amount = Amount(quantity="latency", before=5.0, bound=2.5, predicted=2.45, measured=2.52)
    budget = Budgeted(asked=("latency=0.5x",), place="onnxruntime on 1 thread", amounts=(amount,), harm=0.12, unit="KL")
    return analysis.model_copy(update={"layers": (first, *made), "carried_out": True, "budget": budget})


@pytest.fixture(scope="module")
def page() -> str:
    analysis = a_sample()
    return render_page(analysis, some_pictures(analysis))


# -- what the document says ------------------------------------------------------------------------------------


def test_needs_nothing_else(page: str) -> None:
    assert page.startswith("<!doctype html>")
    for value in re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page) + re.findall(r"url\(([^)]*)\)", page):
        assert value.startswith(("#", "data:"))
    assert "@import" not in page
    assert not re.search(r"https?://", page)
    assert len(page.encode()) < 400_000


def test_says_what_was_analysed(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("<body>")[1]))
    for part in ("resnet20", "torchvision:resnet20", "512 of CIFAR-10, test images", "4.09G", "11.00M", "41.3 s"):
        assert part in text
    assert "With 4 convolutions made cheaply, 4.09G MACs become 2.21G (1.85x fewer)" in text
    assert "Batch norms were folded" in text
    assert "2 layers: is too small" in text
    assert all(name in text for name in NAMES)
    assert len(re.findall(r"factor -?\d\.\d{3}", text)) == 6, "filters of a single tap are numbers"
    assert page.count('class="taps"') == 6 * len(NAMES)
    assert page.count('aria-label="Error of all maps, made of m maps"') == len(NAMES)
    assert "m 90%" in text and "rank curve" in text and "m=4 pw" in text
    assert "weights are random" not in text
    assert "not complete" not in text


def test_untrained_and_incomplete_are_loud() -> None:
    page = render_page(a_sample(trained=False, complete=False), None)
    assert "The weights are random." in page
    assert "This report is not complete." in page
    assert "weights are random" not in render_page(a_sample(trained=None), None)


def test_without_pictures_or_stages() -> None:
    page = render_page(a_sample(stages=()), None)
    assert "made without pictures" in page
    assert "data:image/png" not in page
    assert 'href="#stages"' not in page
    assert page.count('<article class="layer') == len(NAMES)


def test_pictures_of_some_layers_only() -> None:
    analysis = a_sample()
    pictures = some_pictures(analysis)
    some = Pictures(pictures.image, {NAMES[1]: pictures.layers[NAMES[1]]}, {})
    page = render_page(analysis, some)
    assert page.count("There are no pictures of this layer.") == len(NAMES) - 1
    assert page.count("There are no pictures of this stage.") == 2


def test_with_nothing_at_all() -> None:
    page = render_page(a_sample(names=(), stages=(), skipped={}, notes=()), None)
    assert "No layer was looked at." in page
    assert "leave every layer as it is" in page
    assert "<article" not in page


def test_numbers_that_are_none() -> None:
    analysis = a_sample()
    odd = analysis.layers[0].model_copy(update={"similarity": float("nan"), "best": (), "filters": (), "splits": ()})
    page = render_page(analysis.model_copy(update={"layers": (odd, *analysis.layers[1:])}), None)
    assert not re.search(r"\bnan\b|\binf\b", page.split("<body>")[1])


def test_of_a_run_it_says_what_the_plan_chose_and_among_what() -> None:
    analysis = with_choices(a_sample())
    page = render_page(analysis, None)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("<body>")[1]))
    assert "Budget: latency=0.5x (onnxruntime on 1 thread)" in text and "latency 5 ms 2.5 ms 2.45 ms 2.52 ms" in text
    assert page.count('aria-label="Harm of each way to have it"') == len(NAMES) - 1
    assert text.count("0.4 ms → 0.24 ms") == 3, "beside its bar, in the table and in its section"
    assert "thin=0.75, s=2 m=8 pw" in text and "kept by the plan of this run" in text
    table = analysis.table()
    assert table.rows[0][table.columns.index("chosen")] == "keep"
    assert table.rows[1][table.columns.index("harm")] == "0.01" and table.rows[0][table.columns.index("ms")] == ""
    header, *rows = layers_csv(analysis).splitlines()
    assert "latency_before,latency_planned,harm" in header and len(rows) == len(NAMES)
    before = a_sample().table()
    assert not {"chosen", "harm", "ms"} & {*before.columns}


def test_names_of_strangers_are_text() -> None:
    analysis = a_sample(
        names=(HOSTILE, "conv2"),
        network=HOSTILE,
        source=HOSTILE,
        data=HOSTILE,
        notes=(HOSTILE,),
        skipped={"a": HOSTILE},
    )
    page = render_page(analysis, some_pictures(analysis))
    assert "<img src=x" not in page
    assert page.count("</script>") == 1
    assert "{{7*7}}" in page


def test_each_picture_is_stored_once() -> None:
    analysis = a_sample(stages=())
    pictures = some_pictures(analysis)
    page = render_page(analysis, pictures)
    assert page.count("data:image/png") == len(NAMES) + 1
    assert page.count('<span class="map') == sum(
        len(shown.maps) * 3 + 4 * len(shown.replaced) for shown in pictures.layers.values()
    )


def test_a_large_page_stays_small() -> None:
    analysis = a_sample(names=tuple(f"layer{i}" for i in range(8)), side=56, maps=64)
    layers = tuple(layer.model_copy(update={"size": (56, 56)}) for layer in analysis.layers)
    analysis = analysis.model_copy(update={"layers": layers})
    page = render_page(analysis, some_pictures(analysis, converted=False))
    assert len(page.encode()) / len(layers) * 53 < 10_000_000


# -- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright, which drives the browser, is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def shown(browser: Any, page: str, tmp_path: Path) -> Iterator[Any]:
    """Opens the sample (or another document) from disk, and sees to it that nothing goes wrong there."""
    context = browser.new_context(viewport=LARGE)
    troubles: list[str] = []

    def opened(document: str = page, **options: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_text(document, encoding="utf-8")
        tab = context.new_page()
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        tab.on(
            "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else troubles.append(asked.url)
        )
        tab.emulate_media(**options)
        tab.set_viewport_size(LARGE)
        tab.goto(path.as_uri())
        return tab

    yield opened
    context.close()
    assert troubles == []


def column(tab: Any, number: int, table: str = "layer-table") -> list[str]:
    return tab.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.filter(r => r.offsetParent).map(r => r.cells[{number}].innerText.trim())"
    )


def test_headings_sort_both_ways(shown: Any) -> None:
    tab = shown()
    assert column(tab, 0) == list(NAMES)
    head = tab.locator("#layer-table th[data-column]", has_text="MACs")
    button, number = head.locator("button"), int(head.get_attribute("data-column"))
    button.click()
    rising = [float(text.rstrip("%")) for text in column(tab, number)]
    assert rising == sorted(rising)
    assert head.get_attribute("aria-sort") == "ascending"
    button.focus()
    tab.keyboard.press("Enter")
    assert [float(text.rstrip("%")) for text in column(tab, number)] == rising[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    name = tab.locator("#layer-table th[data-column='0']")
    name.locator("button").click()
    assert column(tab, 0)[-1] == "layer10.0.conv1", "numbers in names are numbers"
    assert tab.locator("#layer-table [aria-sort]").count() == 1


def test_every_heading_sorts_its_own_column(shown: Any) -> None:
    tab = shown()
    for table in ("layer-table", "stage-table"):
        heads = tab.locator(f"#{table} th[data-kind='number']")
        for index in range(heads.count()):
            heads.nth(index).locator("button").click()
            number = heads.nth(index).get_attribute("data-column")
            keys = tab.eval_on_selector_all(
                f"#{table} tbody tr", f"rows => rows.map(r => Number(r.cells[{number}].dataset.value))"
            )
            assert keys == sorted(keys)


def test_missing_numbers_come_last(shown: Any) -> None:
    analysis = a_sample()
    odd = analysis.layers[2].model_copy(update={"filters": analysis.layers[2].filters[1:]})
    layers = (*analysis.layers[:2], odd, *analysis.layers[3:])
    tab = shown(render_page(analysis.model_copy(update={"layers": layers}), None))
    button = tab.locator("#layer-table th button", has_text="d=1")
    for _ in range(2):
        button.click()
        assert column(tab, 0)[-1] == odd.name


def test_search_narrows_table_bars_and_sections(shown: Any) -> None:
    tab = shown()
    tab.fill("#search", "LAYER2 conv1")
    assert column(tab, 0) == ["layer2.0.conv1"]
    assert tab.locator("#bars > a:visible").count() == 1
    assert tab.locator("article.layer:visible h3").all_inner_texts() == ["layer2.0.conv1"]
    assert tab.inner_text("#found") == "1 of 6"
    tab.fill("#search", "nothing like it")
    assert column(tab, 0) == []
    assert tab.locator("text=No layer has a name like that.").first.is_visible()
    tab.fill("#search", "")
    assert column(tab, 0) == list(NAMES)
    assert tab.locator("article.layer:visible").count() == len(NAMES)


def test_bars_lead_to_their_layers(shown: Any) -> None:
    tab = shown(reduced_motion="reduce")
    tab.locator("#bars > a", has_text=NAMES[3]).click()
    tab.wait_for_function("Math.abs(document.querySelector('#layer-3').getBoundingClientRect().top) < 200")


PICTURES = """async () => {
  const urls = new Set([...document.images].map(image => image.src));
  const maps = [...document.querySelectorAll('.map')];
  for (const map of maps) {
    const url = /^url\\("(data:image.png.*)"\\)$/.exec(getComputedStyle(map).backgroundImage);
    urls.add(url ? url[1] : '');
  }
  const widths = [];
  for (const url of urls) {
    const image = new Image();
    image.src = url;
    await image.decode();
    widths.push(image.naturalWidth);
  }
  return [maps.length, widths];
}"""


def test_pictures_are_there_and_decoded(shown: Any) -> None:
    maps, widths = shown().evaluate(PICTURES)
    assert maps > 6 * 16
    assert len(widths) == 1 + 6 + 2
    assert min(widths) > 0


def test_a_map_is_shown_at_its_place_in_the_sheet(shown: Any) -> None:
    """The sixth map alone is white: its cell is, and its neighbours are not."""
    analysis = a_sample(names=("conv",), stages=())
    side = analysis.layers[0].size[0]
    pixels = np.stack([np.full((side, side), 255 if i == 5 else i, np.uint8) for i in range(16)])
    analysis = analysis.model_copy(update={"layers": (analysis.layers[0].model_copy(update={"pairs": ()}),)})
    pictures = Pictures(np.zeros((8, 8, 3), np.uint8), {"conv": LayerPictures(tuple(range(16)), pixels)})
    tab = shown(render_page(analysis, pictures))
    for number, bright in ((4, False), (5, True), (6, False)):
        image = Image.open(io.BytesIO(tab.locator(f".map[data-map='{number}']").screenshot())).convert("L")
        grey = np.asarray(image)[3:-16, 3:-3]
        assert (grey.min() == 255) if bright else (grey.max() < 32)


@pytest.mark.parametrize("carried_out", [False, True], ids=["analysed", "carried-out"])
@pytest.mark.parametrize("size", [LARGE, PHONE], ids=["large", "phone"])
def test_fits_the_screen(shown: Any, size: dict[str, int], carried_out: bool) -> None:
    analysis = a_sample(names=(*NAMES, "features." + "denseblock." * 12 + "conv2"))
    analysis = with_choices(analysis) if carried_out else analysis
    tab = shown(render_page(analysis, some_pictures(analysis)))
    tab.set_viewport_size(size)
    tab.add_style_tag(content=".layer, .stage { content-visibility: visible !important; }")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    beyond = """width => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg') &&
        e.getBoundingClientRect().right > width + 1).map(e => e.className)"""
    assert tab.evaluate(beyond, size["width"]) == []


def test_dark_and_light(shown: Any) -> None:
    tab = shown(color_scheme="light")
    brightness = """() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)
        .reduce((a, b) => a + b) / 3"""
    assert tab.evaluate(brightness) > 200
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(brightness) < 50


def test_prints_everything_but_the_controls(shown: Any) -> None:
    tab = shown(color_scheme="dark")
    tab.fill("#search", "layer2")
    assert tab.locator("article:visible").count() == 2 + 2
    tab.emulate_media(media="print")
    assert tab.locator("article:visible").count() == len(NAMES) + 2
    assert tab.locator("main > section:visible").count() == 5
    assert column(tab, 0) == list(NAMES)
    assert tab.locator(".controls:visible").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_names_of_strangers_do_nothing(shown: Any) -> None:
    analysis = a_sample(names=(HOSTILE, "conv2"), network=HOSTILE, source=HOSTILE, notes=(HOSTILE,))
    tab = shown(render_page(analysis, some_pictures(analysis)))
    assert tab.inner_text("h1") == HOSTILE
    assert tab.locator("img").count() == 1
    tab.fill("#search", "onerror=alert(1)")
    assert column(tab, 0) == [HOSTILE]
    assert HOSTILE in tab.title()


def test_headings_and_charts_have_names(shown: Any) -> None:
    tab = shown()
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.locator("svg:not([aria-label])").count() == 0
    assert tab.locator("thead th[data-column] > button").count() == tab.locator("thead th[data-column]").count()
    ids = tab.eval_on_selector_all("[id]", "parts => parts.map(part => part.id)")
    assert len(ids) == len(set(ids))
