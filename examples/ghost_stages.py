"""Make the stages of a network thinner, look at what theory and count say, and name a stage by hand.

python examples/ghost_stages.py
"""

import torch
from torchvision.models import resnet34

import ghostify
from ghostify.rules import GGhostSwap

model = resnet34(weights=None).eval()  # yours, with its trained weights
image = torch.randn(1, 3, 64, 64)

ghosted = ghostify.convert(model, image, method="g-ghost", ratio=0.5)  # every stage of three or more blocks
print(ghosted)
print(ghostify.compare(ghosted).by_stage())

# With a say in every stage, and the convolutions that are left as C-Ghost modules:
traced = ghostify.trace(model, image)
say = {"layer4": {"ratio": 0.25, "mix": 0}}
plan = ghostify.plan(ghostify.scan(traced), method="both", exclude=["layer1"], set=say)
print(ghostify.rewrite(traced, plan))

# A stage of blocks that you choose: a part of layer3, say.  In a plan file that is "rule: g-ghost, blocks: [...]".
mine = GGhostSwap(blocks=("layer3.2", "layer3.3", "layer3.4", "layer3.5"), ratio=0.5)
print(ghostify.rewrite(traced, plan.model_copy(update={"swaps": (mine,), "skips": ()})))
