"""Reads an image file of any size, mode and orientation, or says what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# The content of a file decides its format, not its name. Formats that Pillow hands to
# other programs are left out.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
SUFFIXES = frozenset(
    ".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .avif .mpo".split()
)
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
_DAMAGE += (Image.DecompressionBombError, TypeError, KeyError, OverflowError)


class Fault(Exception):
    """A file that cannot be used; its text is the kind of fault."""


class Header(NamedTuple):
    """What a file tells about its image before it is decoded."""

    size: tuple[int, int]  # height, width, upright
    gray: bool
    told: tuple[str, ...]  # how the pixels will be changed


def header(file: Path) -> Header:
    """Reads what a file tells about its image, without decoding it.

    Raises:
      Fault: "stray", "animated" or "broken".
    """
    with _opened(file) as image:
        orientation, told = _orientation(image), []
        if orientation is None:
            told.append("exif")
        elif orientation != 1:
            told.append("turned")
        if image.mode.startswith("I"):
            told.append("16 bits")
        elif image.mode == "CMYK":
            told.append("CMYK")
        elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (
            "transparency" in image.info
        ):
            told.append("transparent")
        size = image.size if orientation in _TURNED else image.size[::-1]
        return Header(size, _is_gray(image), tuple(told))


def pixels(file: Path, side: tuple[int, int], channels: int) -> np.ndarray:
    """Reads an image, turns it upright, scales it to cover `side` and crops its centre.

    Args:
      file: an image file that `header` has read.
      side: (height, width).
      channels: 1 or 3.

    Returns:
      uint8 [height, width, channels]. Transparency is dropped; of 16 bits the upper
      eight bits are kept.

    Raises:
      Fault: "broken".
    """
    with _opened(file) as image:
        try:
            image.load()
            image = _eight_bits(_upright(image))
        except _DAMAGE as error:
            raise Fault("broken") from error
        image = image.convert("L" if channels == 1 else "RGB")
        return fitted(image, side)


def fitted(image: Image.Image, side: tuple[int, int]) -> np.ndarray:
    """Scales an image to cover (height, width) and crops around its centre.

    Scaling is bilinear, over the whole area that a new pixel covers.

    Returns:
      uint8 [height, width, C].
    """
    height, width = side
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(height, width, -1)


def _opened(file: Path) -> Image.Image:
    try:
        Image.init()
        image = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
        several = getattr(image, "n_frames", 1) > 1
    except UnidentifiedImageError as error:
        known = file.suffix.lower() in SUFFIXES
        raise Fault("broken" if known else "stray") from error
    except _DAMAGE as error:
        raise Fault("broken") from error
    # The MPO file of a camera holds a photograph and its previews.
    if several and image.format != "MPO":
        raise Fault("animated")
    return image


def _orientation(image: Image.Image) -> int | None:
    """The orientation by EXIF: 1 if it gives none, None if it cannot be read."""
    try:
        exif = image.getexif()
        raw = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        if raw and not exif:  # Pillow ignores EXIF that it cannot read
            order = {b"II": "<", b"MM": ">"}[raw[:2]]
            (at,) = struct.unpack(f"{order}I", raw[4:8])
            if struct.unpack(f"{order}H", raw[at : at + 2]) != (0,):
                return None
        orientation = exif.get(_ORIENTATION, 1)
        return orientation if orientation in range(1, 9) else None
    except _DAMAGE:
        return None


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # `header` has reported it
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        if image.mode == "F":
            raise ValueError("pixels with fractions, whose scale is not known")
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixels within {values.min()} and {values.max()}")
    return Image.fromarray((values >> 8).astype(np.uint8), "L")
