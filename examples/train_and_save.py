"""Ghost a network, fit it to images, fine-tune it with the original as its teacher, save it, and load it again.

python examples/train_and_save.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch

import ghostify
from ghostify.networks import resnet8
from ghostify.recipe import DataSettings, ModelSettings
from ghostify.sources import load_data

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "resnet8-ghost"
source = ModelSettings(source="ghostify:resnet8", args={"in_channels": 1})  # what rebuilds the network
digits = load_data(DataSettings(source="digits"), shape=(1, 16, 16))  # real images, inside scikit-learn

torch.manual_seed(0)
original = resnet8(in_channels=1)
ghostify.finetune(original, digits, ghostify.TrainSettings(epochs=8, lr=0.1))

images = digits.calibration(256)  # no labels
ghosted = ghostify.convert(original, images[:1], s=2, images=images)
print(ghosted.fit)
settings = ghostify.TrainSettings(epochs=2, distill=0.7)  # at a rate that suits what was fitted
history = ghostify.finetune(ghosted, digits, settings, teacher=original)  # leaves the weights of the best epoch
print(history)

ghostify.save(ghosted, folder, model=source, report=ghostify.compare(ghosted))
print("saved in", folder)

again = ghostify.load(folder).module
print("the same outputs:", torch.equal(again(images[:4]), ghosted.module.eval()(images[:4])))
