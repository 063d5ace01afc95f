"""A scene of the test with the faces that the detector finds, as it was and with smaller networks.

python faces_picture.py FORM FILE
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from faces_data import cascade, scenes
from faces_together import with_networks
from PIL import Image, ImageDraw

WIDTH, COLORS, SCENE = 360, 96, 1
"""Pixels and colours of the picture, and which scene it shows: the first photograph, with faces in it."""


def main(form: str, file: Path) -> None:
    scene = next(islice(scenes("test"), SCENE, None))
    smaller = with_networks({network: f"runs/{network}-{form}" for network in ("onet", "rnet")})
    pen, scale = ImageDraw.Draw(scene), scene.width / WIDTH
    # the original's boxes lie around, so that both are seen where they are the same
    for detector, color, around in ((cascade(), "white", 3), (smaller, "red", 0)):
        boxes, _ = detector.detect(scene.copy())
        for left, top, right, bottom in boxes if boxes is not None else ():
            place = (left - around, top - around, right + around, bottom + around)
            pen.rectangle(place, outline=color, width=round(2 * scale))
    picture = scene.resize((WIDTH, round(scene.height / scale)), Image.Resampling.LANCZOS)
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
