"""Reads the images and labels of a prepared TFDS folder."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxcl.data.cache import DataError, Split
from jaxcl.data.reading import Reading, drawn_for_test, require_images_fit, size_hint

_log = logging.getLogger(__name__)
_BATCH = 1000
_LOOKED_AT = 100  # images, to suggest a size


def decode(name: str, prepared: Path, reading: Reading) -> dict[str, Any]:
    """Opens a prepared folder for `cache.write`; its images are decoded on demand."""
    try:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(prepared)
        keys, shape = _image_and_label(name, builder.info, tfds.features)
        label = builder.info.features[keys[1]]
        sources = {"train": builder.as_data_source(split="train")}
        for split in tests_of(splits_of(prepared)):
            sources["test"] = builder.as_data_source(split=split)
            if sources["test"][0][keys[1]] >= 0:  # else its labels are not public
                break
    except DataError:
        raise
    except Exception as error:  # TFDS raises many kinds
        _unreadable(name, prepared, error)
    if reading.side is None and None in shape[:2]:
        first = range(min(_LOOKED_AT, len(sources["train"])))
        try:
            images = [one[keys[0]] for one in sources["train"].__getitems__(first)]
        except Exception as error:  # a damaged file, a missing decoder
            _unreadable(name, prepared, error)
        raise DataError(
            f"{name}: its images differ in size; say which they are made: "
            f"{size_hint(image.shape[:2] for image in images)}"
        )
    size = (*(reading.side or shape[:2]), shape[2] or 3)
    # So many are decoded together.
    require_images_fit(name, (min(_BATCH, len(sources["train"])), *size))
    splits = {
        split: Split(
            (len(source), *size),
            _batches(source, f"{name} {split}", prepared, keys, reading.side),
        )
        for split, source in sources.items()
    }
    if "test" not in splits:
        splits = _drawn(splits["train"], reading)
    names = label.names or map(str, range(label.num_classes))
    return splits | {"class_names": names, "max_value": 255}


def _image_and_label(name: str, info: Any, kinds: Any) -> tuple[tuple[str, str], Any]:
    """The keys of an example's image and label, and the image's shape."""
    found = dict(info.features)
    keys = info.supervised_keys
    if keys is None:
        # A data set may have several kinds of label: "label" is the usual one.
        keys = [
            usual if isinstance(found.get(usual), kind) else _first(found, kind)
            for usual, kind in (("image", kinds.Image), ("label", kinds.ClassLabel))
        ]
    image: Any
    image, label = (found[k] if isinstance(k, str) else None for k in keys[:2])
    right = isinstance(image, kinds.Image) and isinstance(label, kinds.ClassLabel)
    if image is None or not right or image.np_dtype != np.uint8:
        raise DataError(
            f"{name}: an example has to have an image of 8 bits and a class, its "
            f"features are {found}"
        )
    return (str(keys[0]), str(keys[1])), image.shape


def _first(features: Any, kind: type) -> str | None:
    return next((k for k, f in features.items() if isinstance(f, kind)), None)


def splits_of(prepared: Path) -> list[str]:
    """The splits of a prepared folder, read without TFDS."""
    info = json.loads((prepared / "dataset_info.json").read_text())
    return [split["name"] for split in info["splits"]]


def tests_of(splits: list[str]) -> list[str]:
    """Splits that can serve for testing; the first one with labels is used."""
    return [split for split in ("test", "validation") if split in splits]


def _drawn(whole: Split, reading: Reading) -> dict[str, Split]:
    """Draws train and test parts, for a data set that defines no test part."""
    x, y = (np.concatenate(part) for part in zip(*whole.batches, strict=True))
    test = drawn_for_test(y, reading)
    return {
        name: Split(x[rows].shape, [(x[rows], y[rows])])
        for name, rows in (("train", ~test), ("test", test))
    }


def _batches(
    source: Any,
    what: str,
    prepared: Path,
    keys: tuple[str, str],
    side: tuple[int, int] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    image, label = keys
    last = time.monotonic()
    for start in range(0, len(source), _BATCH):
        stop = min(start + _BATCH, len(source))
        if time.monotonic() - last > 5:
            last = time.monotonic()
            _log.info("Decoding %s: %d of %d images", what, start, len(source))
        try:
            examples = source.__getitems__(range(start, stop))
            x = np.stack([_sized(example[image], side) for example in examples])
            y = np.array([example[label] for example in examples])
        except Exception as error:  # a damaged file, a missing decoder
            _unreadable(what, prepared, error)
        yield x, y


def _sized(image: np.ndarray, side: tuple[int, int] | None) -> np.ndarray:
    if side is None or image.shape[:2] == side:
        return image
    from PIL import Image

    from jaxcl.data.images import fitted

    gray = image.shape[-1] == 1
    return fitted(Image.fromarray(image[..., 0] if gray else image), side)


def _unreadable(name: str, prepared: Path, error: Exception) -> NoReturn:
    raise DataError(
        f"{name}: the prepared copy in {prepared} cannot be read "
        f"({type(error).__name__}: {error}). It must be complete and in array_record "
        "format; `tfds convert_format` converts, or prepare it again."
    ) from error
