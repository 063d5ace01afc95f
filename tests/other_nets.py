"""Small networks that take, or give, anything else than a batch of images and class scores; and data, losses and
metrics for each, as a person would write them for the command line: ``other_nets:signal``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COUNT = {"train": 40, "test": 12}


def conv_bn(kind: str, c: int, n: int) -> nn.Sequential:
    conv, norm = getattr(nn, f"Conv{kind}d"), getattr(nn, f"BatchNorm{kind}d")
    return nn.Sequential(conv(c, n, 3, padding=1, bias=False), norm(n), nn.ReLU())


def body(kind: str, c: int, n: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(kind, c, n), conv_bn(kind, n, n), conv_bn(kind, n, n))


def settled(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> nn.Module:
    """Its norms hold the statistics of some inputs, as a trained network's do."""
    with torch.no_grad():
        for _ in range(20):
            model.train()(*args, **kwargs)
    return model


def split(make: Any) -> dict[str, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    return {name: [make(generator, index) for index in range(count)] for name, count in COUNT.items()}


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


# -- a signal (N, 256), as torchcrepe takes it -----------------------------------------------------------------


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body("1", 1, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, None]).mean(2))


def signal() -> nn.Module:
    torch.manual_seed(0)
    return settled(Signal(), torch.randn(16, 64))


def signals() -> Any:
    return split(lambda generator, index: (noise(generator, 64) + index % 3, index % 3))


# -- a video (N, C, T, H, W) -----------------------------------------------------------------------------------


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body("3", 2, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3, 4)))


def video() -> nn.Module:
    torch.manual_seed(0)
    return settled(Video(), torch.randn(8, 2, 4, 6, 6))


def videos() -> Any:
    return split(lambda generator, index: (noise(generator, 2, 4, 6, 6) + index % 3, index % 3))


# -- two images and a flow between them ------------------------------------------------------------------------


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body("2", 6, 16), nn.Conv2d(16, 2, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(self.body(torch.cat([first, second], 1)))


def flow() -> nn.Module:
    torch.manual_seed(0)
    return settled(Flow(), torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8))


def pairs() -> Any:
    def pair(generator: torch.Generator, index: int) -> Any:
        first = noise(generator, 3, 8, 8)
        return (first, first.roll(1, 2)), torch.ones(2, 8, 8) * (index % 2)

    return split(pair)


def minus_end_point_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return -(outputs - labels).square().sum(1).sqrt().mean()


# -- tokens ----------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(20, 8), body("1", 8, 16), nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.table(tokens).transpose(1, 2)).mean(2))


def text() -> nn.Module:
    torch.manual_seed(0)
    return settled(Tokens(), torch.randint(0, 20, (16, 30)))


def texts() -> Any:
    return split(lambda generator, index: (torch.randint(0, 20, (30,), generator=generator), index % 2))


# -- by name: an image, and one step for each ------------------------------------------------------------------


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.body, self.head = nn.Embedding(50, 16), body("2", 3, 16), nn.Conv2d(16, 3, 1)

    def forward(self, *, x: Tensor, t: Tensor) -> Tensor:
        return self.head(self.body(x) + self.steps(t)[:, :, None, None])


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    return settled(Denoiser(), x=torch.randn(8, 3, 8, 8), t=torch.randint(0, 50, (8,)))


def steps() -> Any:
    def step(generator: torch.Generator, index: int) -> Any:
        image = noise(generator, 3, 8, 8)
        return {"x": image, "t": torch.tensor(index % 50)}, image.flip(0)

    return split(step)


# -- a segmenter, which gives a dict ---------------------------------------------------------------------------


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier = body("2", 3, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.classifier(self.body(x)), "aux": x.mean(1)}


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return settled(Segmenter(), torch.randn(8, 3, 8, 8))


def segments() -> Any:
    def segment(generator: torch.Generator, index: int) -> Any:
        image = noise(generator, 3, 8, 8)
        return image, image[:1].gt(0).long()[0] + 2 * (image[1].gt(0).long())

    return split(segment)


def pixel_loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs["out"], labels)


class MeanIoU:
    """As torchmetrics has it: over the whole set."""

    def __init__(self) -> None:
        self.hits, self.either = torch.zeros(4), torch.zeros(4)

    def update(self, outputs: dict[str, Tensor], labels: Tensor) -> None:
        found = F.one_hot(outputs["out"].argmax(1), 4).bool()
        wanted = F.one_hot(labels, 4).bool()
        self.hits += (found & wanted).sum((0, 1, 2))
        self.either += (found | wanted).sum((0, 1, 2))

    def compute(self) -> Tensor:
        return (self.hits / self.either.clamp_min(1)).mean()


# -- a regressor -----------------------------------------------------------------------------------------------


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body("2", 3, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))[:, 0]


def regressor() -> nn.Module:
    torch.manual_seed(0)
    return settled(Regressor(), torch.randn(8, 3, 8, 8))


def ages() -> Any:
    def age(generator: torch.Generator, index: int) -> Any:
        image = noise(generator, 3, 8, 8)
        return image, float(image.mean())

    return split(age)


def minus_error(outputs: Tensor, labels: Tensor) -> float:
    return -float((outputs - labels).abs().mean())


# -- a detector: lists of images in, lists of boxes out, its own losses in train mode ---------------------------


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = body("2", 3, 16), nn.Conv2d(16, 5, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        maps = self.head(self.backbone(torch.stack([image - 0.5 for image in images]))).flatten(2)
        if self.training and targets is not None:
            wanted = torch.stack([target["boxes"].mean(0) for target in targets])
            return {"boxes": F.l1_loss(maps[:, 1:].mean(2), wanted), "objects": maps[:, 0].square().mean()}
        return [_found(one) for one in maps]


def _found(one: Tensor) -> dict[str, Tensor]:
    """As many boxes as lie above the mean."""
    return {"boxes": one[1:, one[0] > one[0].mean()].T, "scores": one[0][one[0] > one[0].mean()]}


def detector() -> nn.Module:
    torch.manual_seed(0)
    model = Detector()
    settled(model.backbone, torch.rand(8, 3, 8, 8))
    return model


def boxes() -> Any:
    def boxed(generator: torch.Generator, index: int) -> Any:
        target = {"boxes": torch.rand(1 + index % 3, 4, generator=generator)}
        return torch.rand(3, 8, 8, generator=generator), target

    def collate(items: list[Any]) -> Any:
        return [image for image, _ in items], [target for _, target in items]

    return {**split(boxed), "collate": collate}


def own_losses(model: nn.Module, inputs: Any, labels: Any) -> Any:
    return model(inputs, labels)


def box_score(outputs: list[dict[str, Tensor]], labels: list[dict[str, Tensor]]) -> float:
    pairs = zip(outputs, labels, strict=True)
    return -sum(float((one["boxes"].mean(0) - two["boxes"].mean(0)).abs().mean()) for one, two in pairs) / len(labels)
