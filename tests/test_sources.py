"""The data sets: known numbers of the real ones, and one clear error for each failure.

The tests of the real MNIST, CIFAR-100 and Tiny-ImageNet run if TFDS_DATA_DIR names a
folder that has them. All other tests need neither network nor files.
"""

import functools
import http.server
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxcl.data import cache, prepared, sources, tiny_imagenet
from jaxcl.data.sources import DataError, load

REAL = os.environ.get("TFDS_DATA_DIR")
WNIDS = ("n02000003", "n02000001", "n02000002")  # not in sorted order, as in the real


def needs(name):
    path = f"{name}/*/dataset_info.json"
    if name == "tiny_imagenet":
        path = "downloads/manual/tiny-imagenet-200.zip"
    found = REAL and any(Path(REAL).glob(path))
    return pytest.mark.skipif(not found, reason=f"TFDS_DATA_DIR has no {name}")


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("real_cache"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def offline(monkeypatch):
    import requests

    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)


def write_archive(data_dir, per_class=4):
    """A Tiny-ImageNet archive of 3 classes; red shows the class, one image is gray."""
    from PIL import Image

    path = Path(data_dir) / "downloads/manual/tiny-imagenet-200.zip"
    path.parent.mkdir(parents=True, exist_ok=True)

    def jpeg(wnid, mode="RGB"):
        color = (80 * WNIDS.index(wnid), 10, 20) if mode == "RGB" else 99
        buffer = io.BytesIO()
        Image.new(mode, (64, 64), color).save(buffer, "JPEG", quality=100)
        return buffer.getvalue()

    with zipfile.ZipFile(path, "w") as file:
        top = "tiny-imagenet-200"
        file.writestr(f"{top}/wnids.txt", "\n".join(WNIDS) + "\n")
        words = "n02000001\tcrane\nn02000002\tcrane\nn02000003\ttabby, tabby cat\n"
        file.writestr(f"{top}/words.txt", words)
        val = []
        for wnid in WNIDS:
            file.writestr(f"{top}/train/{wnid}/{wnid}_boxes.txt", "not an image")
            for i in range(per_class):
                gray = (wnid, i) == (WNIDS[0], 0)
                image = jpeg(wnid, "L" if gray else "RGB")
                file.writestr(f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG", image)
            val.append(f"val_{len(val)}.JPEG\t{wnid}\t0\t32\t44\t62")
            file.writestr(f"{top}/val/images/val_{len(val) - 1}.JPEG", jpeg(wnid))
        file.writestr(f"{top}/val/val_annotations.txt", "\n".join(val))
        file.writestr(f"{top}/test/images/test_0.JPEG", jpeg(WNIDS[0]))
    return path


def tiny(folder, **kwargs):
    write_archive(folder, **kwargs)
    return load("tiny_imagenet", data_dir=str(folder))


# --- the data sets --------------------------------------------------------------------


def test_digits():
    first, second = load("digits"), load("digits", cache_dir=os.environ["JAXCL_CACHE"])
    for source in (first, second):
        assert source.train_x.shape == (1438, 8, 8, 1)
        assert source.test_x.shape == (359, 8, 8, 1)
        assert source.train_x.dtype == np.uint8 and source.train_y.dtype == np.int32
        assert source.train_x.max() == source.max_value == 16
        assert source.class_names == tuple("0123456789")
    both = np.bincount(first.train_y) + np.bincount(first.test_y)
    assert both.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(first.test_y) - both / 5).max() <= 0.5
    x = np.asarray(first.train_x, np.float64) / 16
    np.testing.assert_allclose(first.mean, x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(first.std, x.std((0, 1, 2)), rtol=1e-12)


def test_digits_split_is_the_same_anywhere():
    one, other = load("digits"), load("digits", cache_dir=os.environ["HOME"] + "/other")
    for a, b in zip(one[1:5], other[1:5], strict=True):
        np.testing.assert_array_equal(a, b)
    rows = {x.tobytes() for x in one.train_x}
    assert not any(x.tobytes() in rows for x in one.test_x)


@needs("mnist")
def test_mnist(real_cache):
    source = load("mnist", data_dir=REAL, cache_dir=real_cache)
    assert source.train_x.shape == (60000, 28, 28, 1)
    assert source.test_x.shape == (10000, 28, 28, 1)
    # TFDS does not store MNIST in the order of the original files.
    assert source.train_y[:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(source.train_y).tolist() == counts
    np.testing.assert_allclose(source.mean, [0.1307], atol=5e-5)
    np.testing.assert_allclose(source.std, [0.3081], atol=5e-5)


@needs("cifar100")
def test_cifar100(real_cache):
    source = load("cifar100", data_dir=REAL, cache_dir=real_cache)
    assert source.train_x.shape == (50000, 32, 32, 3)
    assert np.bincount(source.train_y).tolist() == [500] * 100
    assert np.bincount(source.test_y).tolist() == [100] * 100
    np.testing.assert_allclose(source.mean, [0.5071, 0.4865, 0.4409], atol=5e-5)
    np.testing.assert_allclose(source.std, [0.2673, 0.2564, 0.2762], atol=5e-5)
    assert source.class_names[:2] == ("apple", "aquarium_fish")
    start = time.perf_counter()
    load("cifar100", data_dir=REAL, cache_dir=real_cache)
    assert time.perf_counter() - start < 2  # 0.07 s; the check stays cheap


@needs("tiny_imagenet")
def test_tiny_imagenet(real_cache, tmp_path):
    """Prepares the archive in TFDS_DATA_DIR, whole or a subset."""
    archive = tmp_path / "data/downloads/manual/tiny-imagenet-200.zip"
    archive.parent.mkdir(parents=True)
    archive.symlink_to(Path(REAL) / "downloads/manual/tiny-imagenet-200.zip")
    data_dir = str(tmp_path / "data")
    source = load("tiny_imagenet", data_dir=data_dir, cache_dir=real_cache)
    train, test = np.bincount(source.train_y), np.bincount(source.test_y)
    assert len(train) == len(test) == len(source.class_names) == 200
    assert (train[0], test[0]) in [(500, 50), (100, 25)]
    assert (train == train[0]).all() and (test == test[0]).all()
    assert source.train_x.shape[1:] == (64, 64, 3)
    assert source.class_names[0] == "goldfish"  # n01443537, the first wnid
    np.testing.assert_allclose(source.mean, [0.4802, 0.4481, 0.3975], atol=2e-3)


# --- the Tiny-ImageNet builder --------------------------------------------------------


def test_tiny_imagenet_builder(tmp_path):
    source = tiny(tmp_path / "data")
    assert (tmp_path / "data/tiny_imagenet/1.0.0/dataset_info.json").is_file()
    assert source.train_x.shape == (12, 64, 64, 3)
    assert source.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.test_y.tolist() == [2, 0, 1]  # in the order of the annotations
    # Sorted wnids; first synonyms, with the wnid if two classes share one.
    names = ("crane (n02000001)", "crane (n02000002)", "tabby")
    assert source.class_names == names
    red = [80 * WNIDS.index(wnid) for wnid in sorted(WNIDS)]
    pixels = np.asarray(source.train_x[1::4, 0, 0], int)
    np.testing.assert_allclose(pixels, [[r, 10, 20] for r in red], atol=2)
    gray = np.asarray(source.train_x[8], int)
    np.testing.assert_allclose(gray, 99, atol=1)


def test_tiny_imagenet_download(tmp_path, monkeypatch):
    """Without an archive in the manual folder TFDS fetches it (and needs no TensorFlow,
    which the tests do not require)."""
    served = write_archive(tmp_path / "served").parent
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setitem(prepared.HOSTS, "tiny_imagenet", host)
        monkeypatch.setattr(tiny_imagenet, "URL", f"{host}/{tiny_imagenet.ARCHIVE}")
        source = load("tiny_imagenet", data_dir=str(tmp_path / "data"))
        server.shutdown()
    assert source.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_one_archive_is_never_taken_for_another(tmp_path):
    small, large = tiny(tmp_path / "a"), tiny(tmp_path / "b", per_class=6)
    assert (len(small.train_x), len(large.train_x)) == (12, 18)
    shutil.copytree(tmp_path / "a/downloads", tmp_path / "c/downloads")
    load("tiny_imagenet", data_dir=str(tmp_path / "c"))  # prepared again, cached once
    assert len(os.listdir(tmp_path / "cache/tiny_imagenet")) == 2
    again = load("tiny_imagenet", data_dir=str(tmp_path / "a"))
    np.testing.assert_array_equal(again.train_x, small.train_x)
    with pytest.raises(DataError, match="several sources.*Set TFDS_DATA_DIR"):
        load("tiny_imagenet")
    with pytest.raises(DataError, match="not prepared from .*Delete the one"):
        tiny(tmp_path / "a", per_class=6)


def test_read_only_data_dir_is_left_alone(tmp_path):
    write_archive(tmp_path / "data")
    (tmp_path / "data").chmod(0o555)
    for _ in range(2):
        source = load("tiny_imagenet", data_dir=str(tmp_path / "data"))
        assert len(source.train_x) == 12
    assert os.listdir(tmp_path / "data") == ["downloads"]
    assert len(list((tmp_path / "cache/prepared").iterdir())) == 1


def test_damaged_archive(tmp_path):
    archive = write_archive(tmp_path / "data")
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match="tiny_imagenet: .*BadZipFile"):
        load("tiny_imagenet", data_dir=str(tmp_path / "data"))


# --- the cache ------------------------------------------------------------------------


def test_second_start_needs_no_tfds(tmp_path):
    tiny(tmp_path / "data")
    load("digits")
    code = (
        "import sys; sys.modules.update(dict.fromkeys("
        "['tensorflow_datasets', 'tensorflow', 'sklearn', 'PIL', 'array_record']))\n"
        "from jaxcl.data.sources import load\n"
        "print(len(load('digits').train_x), len(load('tiny_imagenet').train_x),"
        " len(load('tiny_imagenet', data_dir=sys.argv[1]).train_x))"
    )
    root = Path(sources.__file__).parents[2]
    for left in (True, False):  # beside its source, and on a machine without it
        if not left:
            code = code.replace(", data_dir=sys.argv[1]", "")
            shutil.rmtree(tmp_path / "data")
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "data")],
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert result.stdout == "1438 12 12\n", result.stderr


def test_arrays_are_mapped_and_read_only():
    source = load("digits")
    assert isinstance(source.train_x, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        source.train_x[0] = 0


def _load_digits(cache_dir, barrier, queue):
    barrier.wait()
    queue.put(len(load("digits", cache_dir=cache_dir).train_x))


def test_racing_processes_both_succeed(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    args = (str(tmp_path / "race"), barrier, queue)
    both = [context.Process(target=_load_digits, args=args) for _ in range(2)]
    for process in both:
        process.start()
    assert [queue.get(timeout=60) for _ in both] == [1438, 1438]
    for process in both:
        process.join()
    assert os.listdir(tmp_path / "race/digits") == ["1"]  # and nothing temporary


def test_a_lost_race_keeps_the_first_copy(tmp_path):
    def pieces(value):
        x, y = np.full((2, 1, 1, 1), value, np.uint8), np.array([0, 1])
        split = cache.Split(x.shape, [(x, y)])
        return {"train": split, "test": split, "class_names": "ab", "max_value": 255}

    for value in (7, 8):
        cache.write(tmp_path / "s" / "1", "s", **pieces(value))
    assert cache.read(tmp_path / "s" / "1", "s").train_x.max() == 7
    assert os.listdir(tmp_path / "s") == ["1"]


def damage_truncate(folder):
    with (folder / "train_x.npy").open("rb+") as file:
        file.truncate(1000)


def damage_flip(folder):
    data = bytearray((folder / "train_x.npy").read_bytes())
    data[-1] ^= 1
    (folder / "train_x.npy").write_bytes(data)


def damage_header(folder):
    path = folder / "test_x.npy"
    path.write_bytes(path.read_bytes().replace(b"'|u1'", b"'|i1'"))


def damage_missing(folder):
    (folder / "test_y.npy").unlink()


def damage_meta(folder):
    (folder / "meta.json").write_text("{")


def damage_format(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 0}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_truncate, "train_x.npy has 1000 bytes, not 92160"),
        (damage_flip, "train_x.npy differs from its checksum"),
        (damage_header, "test_x.npy is int8"),
        (damage_missing, "test_y.npy"),
        (damage_meta, "Expecting property name"),
        (damage_format, "format 0"),
    ],
)
def test_damaged_cache(damage, says):
    load("digits")
    folder = Path(os.environ["JAXCL_CACHE"]) / "digits/1"
    damage(folder)
    before = sorted(os.listdir(folder))
    with pytest.raises(DataError, match="Delete that folder and start again") as error:
        load("digits")
    assert says in str(error.value) and str(folder) in str(error.value)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("value", [-1, 10])
def test_labels_out_of_range(value, tmp_path):
    load("digits")
    path = Path(os.environ["JAXCL_CACHE"]) / "digits/1/train_y.npy"
    np.lib.format.open_memmap(path, mode="r+")[5] = value
    with pytest.raises(DataError, match=rf"digits: label {value} is outside \[0, 10\)"):
        load("digits")
    x, y = np.zeros((1, 8, 8, 1), np.uint8), np.array([value])
    split = cache.Split(x.shape, [(x, y)])
    with pytest.raises(DataError, match=rf"s: label {value} is outside \[0, 10\)"):
        cache.write(
            tmp_path / "s/1",
            "s",
            train=split,
            test=split,
            class_names="0123456789",
            max_value=16,
        )
    assert os.listdir(tmp_path / "s") == []


def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="file.* cannot be written.*Set JAXCL_CACHE"):
        load("digits")


# --- what is not there ----------------------------------------------------------------


def test_unknown_name():
    with pytest.raises(ValueError, match="'minst'.*'cifar10', .*'digits'"):
        load("minst")


@pytest.mark.parametrize("name", sorted(sources.SOURCES - {"digits"}))
def test_absent_and_offline(name, tmp_path, offline):
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        load(name, data_dir=str(tmp_path / "data"))
    for part in (str(tmp_path / "data" / name), "TFDS_DATA_DIR", "jaxcl[prepare]"):
        assert part in str(error.value)
    assert time.perf_counter() - start < 20  # mostly the import of TFDS


def test_absent_without_tfds(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"mnist: .*tensorflow_datasets.*prepare\]"):
        load("mnist", data_dir=str(tmp_path))


def test_named_data_dir_is_not_replaced_by_a_cached_copy(tmp_path, offline):
    tiny(tmp_path / "data")
    with pytest.raises(DataError, match="To use the cached .* unset TFDS_DATA_DIR"):
        load("tiny_imagenet", data_dir=str(tmp_path / "elsewhere"))


def test_damaged_prepared_folder(tmp_path):
    tiny(tmp_path / "data")
    shutil.rmtree(tmp_path / "cache")
    for path in (tmp_path / "data/tiny_imagenet/1.0.0").glob("*train*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="tiny_imagenet.* cannot be read"):
        load("tiny_imagenet", data_dir=str(tmp_path / "data"))


def test_remote_data_dir():
    with pytest.raises(DataError, match="gs://bucket.* must be a local folder"):
        load("mnist", data_dir="gs://bucket")
