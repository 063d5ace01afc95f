"""Turn a network you have into its ghost: one call, then the same in chapters.

python examples/convert_any_model.py
"""

import torch
from torchvision.models import resnet18

import ghostify

model = resnet18(weights=None).eval()  # yours, with its trained weights
image = torch.randn(1, 3, 64, 64)  # one input of the right shape

ghosted = ghostify.convert(model, image, s=2)
print(ghosted)
print(ghosted.module(image).shape, "- the same contract, in a module of its own")

# In chapters, with a say in every layer:
traced = ghostify.trace(model, image)
scan = ghostify.scan(traced)
plan = ghostify.plan(scan, s=2, set={"layer4.*": {"s": 4}}, exclude=["*.downsample.*"])
for skip in plan.skips:
    print(f"{skip.target} {skip.reason}")

ghosted = ghostify.rewrite(traced, plan)
print(ghostify.compare(ghosted).summary())
