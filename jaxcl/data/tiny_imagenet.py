"""Tiny-ImageNet as a TFDS builder that prepares without TensorFlow.

Le and Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015,
http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf. 200 classes of ImageNet,
500 training, 50 validation and 50 test images of each, JPEG, 64 x 64.

The archive is `<manual_dir>/tiny-imagenet-200.zip` if that exists (fewer images or
classes in the same layout are allowed), else it is downloaded from its official
address. No TensorFlow is needed because the images are passed on as their JPEG bytes,
and because TFDS shuffles and writes array_record files in memory if they are below 1
GB.
"""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from jaxcl import files
from jaxcl.data import cache
from jaxcl.data.cache import DataError
from jaxcl.files import tail_key

ARCHIVE = "tiny-imagenet-200.zip"
# The largest files of the real archive have 17 kB and 2.7 MB.
_MOST_IMAGE, _MOST_TEXT = 1 << 20, 1 << 24
URL = f"https://cs231n.stanford.edu/{ARCHIVE}"


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Splits "train" and "validation"; the official test labels are not public.

    Features: image uint8 [64, 64, 3], label int in the order of the sorted WordNet ids,
    named by the first synonym of the class, id the file's name. Examples are sorted by
    label and number in "train", by number in "validation".
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: put {ARCHIVE} here ({URL})."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="200 classes of ImageNet at 64 x 64.",
            homepage="http://cs231n.stanford.edu",
            citation="Ya Le and Xuan Yang. Tiny ImageNet Visual Recognition "
            "Challenge. Stanford CS 231N, 2015.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3)),
                    "label": tfds.features.ClassLabel(),  # named in _split_generators
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # random access needs none
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        archive = _manual_archive(dl_manager) or downloaded(dl_manager)
        with zipfile.ZipFile(archive) as file:
            wnids = sorted(_lines(file, "wnids.txt"))
            words = dict(line.split("\t", 1) for line in _lines(file, "words.txt"))
        info: Any = self.info
        info.features["label"].names = class_names(wnids, words)
        info.metadata["archive"] = tail_key(archive)
        return {
            split: self._generate_examples(archive, split, wnids)
            for split in ("train", "validation")
        }

    def _generate_examples(
        self, archive: Path, split: str, wnids: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        with zipfile.ZipFile(archive) as file:
            examples = _train(file) if split == "train" else _validation(file)
            rows = [(label_of[wnid], number, path) for wnid, number, path in examples]
            rows.sort(key=lambda row: row if split == "train" else row[1:])
            for key, (label, _, path) in enumerate(rows):
                image, name = _image(file, path), PurePosixPath(path).name
                yield key, {"image": image, "label": label, "id": name}


def class_names(wnids: list[str], words: dict[str, str]) -> list[str]:
    """Each class's first synonym, with its WordNet id if two classes share it."""
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    shared = {name for name, n in Counter(first).items() if n > 1}
    return [
        f"{name} ({wnid})" if name in shared else name
        for name, wnid in zip(first, wnids, strict=True)
    ]


def _manual_archive(dl_manager: tfds.download.DownloadManager) -> Path | None:
    try:
        archive = Path(dl_manager.manual_dir) / ARCHIVE
    except (AssertionError, ValueError):  # raised by TFDS if absent or empty
        return None
    return archive if archive.is_file() else None


def downloaded(dl_manager: tfds.download.DownloadManager) -> Path:
    """Downloads the archive from its official address and compares it to the first one.

    No checksum is published. The checksum of the first download is kept in the cache,
    as `archives/tiny-imagenet-200.zip.sha256`.

    Raises:
      DataError: the archive differs from the first download.
    """
    archive = Path(dl_manager.download(URL))
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known = cache.cache_root() / "archives" / f"{ARCHIVE}.sha256"
    if not known.exists():
        cache.make_folder(known.parent)
        files.write_whole(known, found)
    elif (first := known.read_text()) != found:
        raise DataError(
            f"{URL} has SHA-256 {found}, the archive that came from there first has "
            f"{first}; delete {known} if the new one is to be trusted"
        )
    return archive


def member(file: zipfile.ZipFile, path: str, most: int) -> bytes:
    """Reads a file of an archive, if it has at most `most` bytes.

    Raises:
      DataError: the file is larger, or says so; a byte more than `most` was
        decompressed at most.
    """
    size = file.getinfo(path).file_size
    with file.open(path) as stream:
        content = stream.read(most + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise DataError(
            f"{file.filename}: {path} must have at most {most} bytes, got {size}"
        )
    return content


def _image(file: zipfile.ZipFile, path: str) -> bytes:
    """Reads a JPEG of 64 x 64; its header is checked, its pixels are not decoded."""
    content = member(file, path, _MOST_IMAGE)
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        if image.size != (64, 64):
            raise DataError(f"{path} must be of 64 x 64 pixels, got {image.size}")
    return content


def _train(file: zipfile.ZipFile) -> Iterator[tuple[str, int, str]]:
    """Yields (wnid, number, path) of .../train/<wnid>/images/<wnid>_<number>.JPEG."""
    for path in file.namelist():
        parts = PurePosixPath(path).parts
        if len(parts) == 5 and parts[1] == "train" and path.endswith(".JPEG"):
            yield parts[2], _number(path), path


def _validation(file: zipfile.ZipFile) -> Iterator[tuple[str, int, str]]:
    """Yields (wnid, number, path) as listed in .../val/val_annotations.txt."""
    for line in _lines(file, "val/val_annotations.txt"):
        name, wnid = line.split("\t")[:2]
        yield wnid, _number(name), f"tiny-imagenet-200/val/images/{name}"


def _number(path: str) -> int:
    return int(PurePosixPath(path).stem.rsplit("_", 1)[1])


def _lines(file: zipfile.ZipFile, path: str) -> list[str]:
    text = member(file, f"tiny-imagenet-200/{path}", _MOST_TEXT).decode()
    return [line for line in text.splitlines() if line.strip()]
