"""Draws the pictures of the docs: `python docs/figures.py` (needs `pip install 'ghostify[figures]'`).

Counts do not depend on weights, so the network is built without any and costed on the meta device.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torchvision.models import resnet50

import ghostify

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"
ORIGINAL, PRIMARY, KEPT = "#c9ced6", "#2f6fb5", "#8a93a0"


def draw_layers(path: Path) -> None:
    """MACs of each convolution of ResNet50 before (pale) and after (solid), in the order they run."""
    with torch.device("meta"):
        model = resnet50(weights=None)
    ghosted = ghostify.convert(model, torch.empty(1, 3, 224, 224, device="meta"), s=2)
    sites = [site for site in ghosted.before.sites if site.cost.macs]
    swapped = {swap.target: swap.after.macs for swap in ghosted.plan.swaps}
    before = [site.cost.macs / 1e6 for site in sites]
    after = [swapped.get(site.name, site.cost.macs) / 1e6 for site in sites]
    colours = [PRIMARY if site.name in swapped else KEPT for site in sites]

    figure, axes = plt.subplots(figsize=(11, 3.4), dpi=130)
    places = range(len(sites))
    axes.bar(places, before, width=0.86, color=ORIGINAL, label="original convolution")
    axes.bar(places, after, width=0.86, color=colours)
    axes.bar([0], [0], color=PRIMARY, label="C-Ghost module (s = 2, d = 3)")
    axes.bar([0], [0], color=KEPT, label="left alone")
    _mark_stages(axes, [site.name for site in sites])
    axes.set_ylabel("MACs (millions)")
    axes.set_ylim(0, 1.2 * max(before))
    axes.set_xlim(-0.8, len(sites) - 0.2)
    axes.spines[["top", "right"]].set_visible(False)
    total = f"{ghosted.before.cost.macs / 1e9:.2f}G to {ghosted.after.cost.macs / 1e9:.2f}G MACs"
    sizes = f"{ghosted.before.cost.params / 1e6:.1f}M to {ghosted.after.cost.params / 1e6:.1f}M parameters"
    axes.set_title(f"ResNet50: {total}, {sizes}", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=3)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def _mark_stages(axes: plt.Axes, names: list[str]) -> None:
    heads = [name.partition(".")[0] for name in names]
    starts = [i for i, head in enumerate(heads) if i == 0 or head != heads[i - 1]]
    named = [i for i in starts if heads.count(heads[i]) > 1]
    axes.set_xticks(named, [heads[i] for i in named], fontsize=9, ha="left")
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="#e4e7ec", linewidth=1, zorder=0)


if __name__ == "__main__":
    draw_layers(IMAGES / "resnet50.png")
