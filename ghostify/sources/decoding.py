"""Image files, decoded in the range their values have.

Bytes stay bytes.  Deeper images become floats from 0 to 1: a 16-bit image by its 65,535 (or what its file says of its
bits), others by the smallest of the usual ranges that holds their values, because their files do not say which it is.
"""

from __future__ import annotations

import io
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from ghostify.errors import DataError

Pixels = np.ndarray[Any, np.dtype[Any]]


class Member(NamedTuple):
    """A file inside an archive that is not compressed: so many bytes from an offset on."""

    archive: str
    name: str
    offset: int
    size: int

    def open(self) -> IO[bytes]:
        """Its bytes.  Raises ``OSError``."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


File = str | Member

_BITS_PER_SAMPLE = 258  # a tag of TIFF files
_WHOLE = (255, 2**16 - 1, 2**31 - 1)
"""Where the values of 32-bit integers may end."""
_FLOATING = (1.0, 255.0, 2.0**16 - 1)
"""Where floating values may end."""


def read_image(file: File, mode: str = "RGB") -> Image.Image:
    """A decoded image in colour (``RGB``) or grey (``L``) bytes; a deeper one as floats from 0 to 1 (``F``, grey).

    Raises ``DataError`` naming a file that cannot be decoded, or whose values have no range that is known.
    """
    try:
        with Image.open(file if isinstance(file, str) else file.open()) as image:
            if image.mode == "F" or image.mode.startswith("I"):
                return _deep(image, file)
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert(mode)  # straight to RGB, Pillow warns
            return image.convert(mode)
    except DataError:
        raise
    except Exception as problem:  # a damaged file makes decoders fail in many ways
        raise DataError(
            f"Image {str(file)!r} cannot be decoded ({type(problem).__name__}); replace it or remove it."
        ) from None


def unit(pixels: Pixels) -> Pixels:
    """Bytes as floats from 0 to 1; floats as they are."""
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels


def _deep(image: Image.Image, file: File) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    most = _range(image, values)
    if most is None:
        low, high = values.min(), values.max()
        raise DataError(
            f"Image {str(file)!r} holds values from {low:g} to {high:g}, and nothing says which are black and white; "
            "save it with values from 0 to 1, 255 or 65535."
        )
    return Image.fromarray((values / most).astype(np.float32))


def _range(image: Image.Image, values: Pixels) -> float | None:
    """The value that is white; None where that cannot be told."""
    if image.mode.startswith("I;16"):
        return float(2 ** _bits(image) - 1)
    if image.mode == "I" and image.format != "TIFF":
        return float(2**16 - 1)  # Pillow brings the 16 bits of PNG and PGM files to this range
    ends = _FLOATING if image.mode == "F" else _WHOLE
    if not np.isfinite(values).all() or values.min() < 0:
        return None
    return next((float(end) for end in ends if values.max() <= end), None)


def _bits(image: Image.Image) -> int:
    """How many bits a value of a 16-bit image has; TIFF files may say 12, say."""
    said = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return int(said[0])
