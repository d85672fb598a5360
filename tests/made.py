"""Makes a folder of images, with everything unusual that such folders may hold."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("amber", "blue", "coral", "dun")
# The classes differ in their colours.
COLOURS = ((220, 160, 20), (20, 40, 210), (230, 90, 80), (120, 110, 90))
ORIENTATION = 0x0112


def make_images(root: Path, count: int) -> dict[str, str]:
    """Writes `count` images in four classes, and entries that must be reported.

    Returns:
      What is wrong or unusual -> the name of that entry.
    """
    rng = np.random.default_rng(0)
    for i in range(count):
        label = i % len(CLASSES)
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        image = noisy(rng, label, tuple(rng.integers(20, 60, 2)))
        mode = ("RGB", "L", "P", "1")[i // len(CLASSES) % 4]
        suffix = (".jpg", ".jpg", ".gif", ".png")[i // len(CLASSES) % 4]
        image.convert(mode).save(folder / f"{i:04}{suffix}")
    return _oddities(root, rng)


def noisy(rng, label, size) -> Image.Image:
    """An image (height, width) of a class's colour."""
    x = np.array(COLOURS[label]) + rng.normal(0, 25, (*size, 3))
    return Image.fromarray(np.clip(x, 0, 255).astype(np.uint8))


def _oddities(root: Path, rng) -> dict[str, str]:
    amber = root / "amber"
    image = noisy(rng, 0, (40, 30))
    image.save(amber / "cut.jpg", quality=95)
    whole = (amber / "cut.jpg").read_bytes()
    (amber / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    broken = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\x01\x12\x00\x03"
    image.save(amber / "exif.jpg", exif=broken)
    frames = [noisy(rng, 0, (20, 20)) for _ in range(3)]
    frames[0].save(amber / "moving.gif", save_all=True, append_images=frames[1:])
    image.convert("CMYK").save(amber / "print.jpg")
    deep = (np.asarray(image.convert("L"), np.uint16) << 8) + 7
    Image.fromarray(deep).save(amber / "deep.png")
    clear = image.convert("RGBA")
    clear.putalpha(100)
    clear.save(amber / "clear.png")
    # Upright 40 × 30 (height × width), stored lying: red above, amber below.
    upright = np.full((40, 30, 3), COLOURS[0], np.uint8)
    upright[:20] = (250, 0, 0)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn it clockwise to see it upright
    lying = Image.fromarray(np.rot90(upright).copy())
    lying.save(amber / "upright.png", exif=exif)
    (root / "empty").mkdir()
    (amber / "notes.txt").write_text("no image")
    (amber / "around").symlink_to(root, target_is_directory=True)
    (amber / "nowhere.jpg").symlink_to(root / "gone.jpg")
    (amber / ".hidden").write_bytes(struct.pack("<I", 0))
    return {
        "cannot be read": "amber/cut.jpg",
        "EXIF that cannot be read": "amber/exif.jpg",
        "several frames": "amber/moving.gif",
        "CMYK": "amber/print.jpg",
        "of 16 bits": "amber/deep.png",
        "transparency": "amber/clear.png",
        "turned upright": "amber/upright.png",
        "has no image": "empty",
        "is no image": "amber/notes.txt",
        "leads back": "amber/around",
        "leads nowhere": "amber/nowhere.jpg",
    }
