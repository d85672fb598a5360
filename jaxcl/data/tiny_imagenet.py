"""Tiny-ImageNet as a TFDS builder that prepares without TensorFlow.

Le and Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015,
http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf. 200 classes of ImageNet,
500 training, 50 validation and 50 test images of each, JPEG, 64 x 64.

The archive is `<manual_dir>/tiny-imagenet-200.zip` where that exists (fewer images or
classes in the same layout will do), else it is downloaded from its official address.
No TensorFlow is needed because the images are handed over as the JPEG bytes they are,
and because TFDS shuffles and writes array_record files in memory, short of 1 GB.
"""

import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from jaxcl.data.cache import tail_key

ARCHIVE = "tiny-imagenet-200.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Splits "train" and "validation"; the official test labels are not public.

    Features: image uint8 [64, 64, 3], label int in the order of the sorted WordNet ids,
    named by the first of a class's synonyms, id the file's name. Examples come sorted
    by label and number in "train", by number in "validation".
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
        archive = _manual_archive(dl_manager) or Path(dl_manager.download(URL))
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
                image, name = file.read(path), PurePosixPath(path).name
                yield key, {"image": image, "label": label, "id": name}


def class_names(wnids: list[str], words: dict[str, str]) -> list[str]:
    """Returns each class's first synonym, with its WordNet id where two share one."""
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    shared = {name for name, n in Counter(first).items() if n > 1}
    return [
        f"{name} ({wnid})" if name in shared else name
        for name, wnid in zip(first, wnids, strict=True)
    ]


def _manual_archive(dl_manager: tfds.download.DownloadManager) -> Path | None:
    try:
        archive = Path(dl_manager.manual_dir) / ARCHIVE
    except (AssertionError, ValueError):  # how TFDS says: absent or empty
        return None
    return archive if archive.is_file() else None


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
    text = file.read(f"tiny-imagenet-200/{path}").decode()
    return [line for line in text.splitlines() if line.strip()]
