"""A user's own data: folders, arrays, files, functions, and TFDS data sets by name."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcl
from jaxcl.data import DataError, Reading, load
from jaxcl.data.arrays import NAMES
from jaxcl.data.pixels import Moments
from jaxcl.data.reading import drawn_for_test
from tests.made import CLASSES, make_images

SMALL = Reading(image_size=(16, 12))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, and the entries that must be reported."""
    root = tmp_path_factory.mktemp("made") / "stones"
    return root, make_images(root, 40)


def one_colour(folder, name, size=(8, 8), value=(9, 9, 9), mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], value).convert(mode).save(folder / name)


# --- folders --------------------------------------------------------------------------


def test_every_oddity_of_a_folder_is_named_once(made, caplog):
    root, odd = made
    source = load(f"folder:{root}", reading=SMALL)
    for what, entry in odd.items():
        told = [note for note in source.notes if entry in note]
        assert len(told) == 1 and what in told[0], (what, source.notes)
        assert "1 " in told[0]
    assert len(source.notes) == len(odd)
    assert [record.getMessage() for record in caplog.records] == list(source.notes)
    # 40 ordinary images, and the five unusual ones that can be used.
    assert len(source.train_x) + len(source.test_x) == 45
    assert source.class_names == CLASSES
    assert source.train_x.shape[1:] == (16, 12, 3) and source.train_x.dtype == np.uint8
    caplog.clear()
    again = load(f"folder:{root}", reading=SMALL)
    assert again.notes == source.notes and not caplog.records
    assert isinstance(again.train_x, np.memmap)


def test_what_cannot_be_used_is_refused_where_that_is_asked(made):
    root, odd = made
    with pytest.raises(DataError, match="refused") as error:
        load(f"folder:{root}", reading=SMALL._replace(faulty="refuse"))
    assert "amber/cut.jpg" in str(error.value) and "\n" not in str(error.value)
    assert "CMYK" not in str(error.value)  # CMYK is no fault


def test_an_image_is_turned_upright_before_it_is_cropped(tmp_path):
    make_images(tmp_path / "one", 8)
    for entry in (tmp_path / "one/amber").iterdir():
        if entry.name != "upright.png" and not entry.is_dir():
            entry.unlink()
    one_colour(tmp_path / "one/amber", "z.png", (40, 30), (220, 160, 20))
    source = load(f"folder:{tmp_path / 'one'}", reading=Reading(image_size=(40, 30)))
    amber = [
        x
        for x, y in zip(
            [*source.train_x, *source.test_x],
            [*source.train_y, *source.test_y],
            strict=True,
        )
        if y == 0 and x[0, 0].tolist() == [250, 0, 0]
    ]
    assert len(amber) == 1
    assert (amber[0][:20] == (250, 0, 0)).all()
    assert (amber[0][20:] == (220, 160, 20)).all()


def test_scaled_to_cover_and_cropped_about_the_centre(tmp_path):
    x = np.zeros((20, 60, 3), np.uint8)
    x[:, 20:40] = 200  # the middle third is all that is left
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(x).save(tmp_path / name / f"{i}.png")
    source = load(f"folder:{tmp_path}", reading=Reading(image_size=(10,)))
    assert source.train_x.shape == (2, 10, 10, 3)
    assert (source.train_x[:, :, 1:-1] == 200).all()
    # Bilinear: an outer pixel gets an eighth from beyond the edge.
    assert (source.train_x[:, :, [0, -1]] == 175).all()


def test_gray_folders_have_one_channel_and_16_bits_keep_the_upper_eight(tmp_path):
    for label, name in enumerate("ab"):
        one_colour(tmp_path / name, "0.png", value=(7 + label,) * 3, mode="L")
        deep = np.full((8, 8), (50 + label) * 256 + 200, np.uint16)
        Image.fromarray(deep).save(tmp_path / name / "1.png")
    source = load(f"folder:{tmp_path}")
    both = np.concatenate([source.train_x, source.test_x])
    assert both.shape == (4, 8, 8, 1)
    assert sorted(both[:, 0, 0, 0].tolist()) == [7, 8, 50, 51]


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders(tmp_path, test):
    for i in range(3):
        one_colour(tmp_path / "train/cat", f"{i}.png", value=(i, 0, 0))
        one_colour(tmp_path / "train/dog", f"{i}.png", value=(10 + i, 0, 0))
    one_colour(tmp_path / test / "cat", "0.png", value=(99, 0, 0))
    one_colour(tmp_path / test / "gnu", "0.png")
    (tmp_path / "more").mkdir()
    source = load(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert source.train_x[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert source.test_x[:, 0, 0, 0].tolist() == [99] and source.test_y.tolist() == [0]
    told = " ".join(source.notes)
    assert "gnu" in told and "more" in told and "(dog), without a test image" in told


@pytest.mark.parametrize(
    "names,beside",
    [
        (("Train", "Test"), ""),
        (("TRAIN", "Validation"), ""),
        (("training", "testing"), ""),
        (("Training", "test"), "more"),  # which holds no class, and is named
        (("train", "Val"), ""),
        (("train", "testing"), "val"),
    ],
)
def test_the_parts_by_other_names(tmp_path, names, beside):
    for part, count in zip(names, (2, 1), strict=True):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                one_colour(tmp_path / part / name, f"{i}.png", value=(label, i, 0))
    (tmp_path / beside).mkdir(exist_ok=True)
    source = load(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert (len(source.train_x), len(source.test_x)) == (4, 2)
    left = f"folder:{tmp_path.name}: 1 entry is no image ({beside}), left out"
    assert source.notes == ((left,) if beside else ())


@pytest.mark.parametrize(
    "names",
    [
        ("plane", "train"),
        ("Train", "plane"),
        ("Testing", "Training", "cooking"),
        ("bus", "plane", "train"),
        ("Test", "val"),
    ],
)
def test_classes_called_train_are_classes(tmp_path, names):
    for name in names:
        for i in range(2):
            one_colour(tmp_path / name, f"{i}.png")
    assert load(f"folder:{tmp_path}").class_names == names


def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path):
    for name in "ab":
        for i in range(2):
            one_colour(tmp_path / name, f"{i}.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "b/zero.png").symlink_to("/dev/zero")
    source = load(f"folder:{tmp_path}")
    assert len(source.train_x) + len(source.test_x) == 4
    (told,) = source.notes
    assert "2 entries are no images (a/pipe.png, b/zero.png), left out" in told


def test_images_that_memory_cannot_hold_are_refused_before_they_are_made(tmp_path):
    for name in "ab":
        one_colour(tmp_path / name, "0.png")
    with pytest.raises(ValueError, match="2 images of 200000 × 200000 need .* 240 GB"):
        load(f"folder:{tmp_path}", reading=Reading(image_size=(200_000, 200_000)))


def test_links_that_lead_round_about_end(tmp_path):
    for a, b in ("ab", "ba"):
        one_colour(tmp_path / a, "0.png")
        one_colour(tmp_path / a, "1.png")
        (tmp_path / a / "other").symlink_to(tmp_path / b, target_is_directory=True)
    (tmp_path / "a/itself").symlink_to(tmp_path / "a/itself")
    source = load(f"folder:{tmp_path}")
    assert len(source.train_x) + len(source.test_x) == 8  # each class has the other's
    assert any(note.count("a/itself") == 1 for note in source.notes)


def test_a_folder_goes_by_its_content(tmp_path):
    for name in ("a", "b"):
        for i in range(5):
            one_colour(tmp_path / "x" / name, f"{i}.png")
    stored = tmp_path / "cache/folder"
    whole = load(f"folder:{tmp_path / 'x'}")
    load(f"folder:{tmp_path / 'x'}")
    assert len(os.listdir(stored)) == 1
    one_colour(tmp_path / "x/a", "0.png", value=(1, 2, 3))
    changed = load(f"folder:{tmp_path / 'x'}")
    assert len(os.listdir(stored)) == 2
    assert not np.array_equal(
        np.concatenate([whole.train_x, whole.test_x]),
        np.concatenate([changed.train_x, changed.test_x]),
    )
    load(f"folder:{tmp_path / 'x'}", reading=Reading(test_seed=1))
    load(f"folder:{tmp_path / 'x'}", reading=Reading(image_size=(4,)))
    assert len(os.listdir(stored)) == 4


@pytest.mark.parametrize(
    "build,what",
    [
        (lambda root: None, "is no folder"),
        (lambda root: root.mkdir(), "has no folder in it, one per class, but 0 files"),
        (lambda root: (root / "a").mkdir(parents=True), "no image in a folder of a cl"),
        (
            lambda root: one_colour(root, "0.png"),
            "has no folder in it, one per class, but 1 file$",
        ),
        (
            lambda root: [
                one_colour(root / "a", f"{n}.png", (n, 2 * n)) for n in (4, 8)
            ],
            r"2 sizes, from 4 × 8 to 8 × 16.*image_size=\"\(8, 16\)\"$",
        ),
        (
            lambda root: [one_colour(root / n, "0.png") for n in "ab"],
            "none for testing",
        ),
        (
            lambda root: [
                one_colour(root / n, "0.png")
                for n in ("train/a", "train/b", "test/gnu", "test/emu")
            ],
            "no class of the training folder: emu, gnu beside a, b$",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, build, what):
    build(tmp_path / "x")
    with pytest.raises(DataError, match=what) as error:
        load(f"folder:{tmp_path / 'x'}")
    assert "\n" not in str(error.value)


def test_the_share_for_testing_is_each_classs_own():
    y = np.repeat([0, 1, 2, 3], [100, 10, 3, 1])
    test = drawn_for_test(y, Reading(test_fraction=0.25))
    assert [int(test[y == k].sum()) for k in range(4)] == [25, 2, 1, 0]
    same = drawn_for_test(y, Reading(test_fraction=0.25))
    other = drawn_for_test(y, Reading(test_fraction=0.25, test_seed=1))
    assert (test == same).all() and (test != other).any()


@pytest.mark.parametrize(
    "fields,what",
    [
        ({"image_size": (0, 3)}, "image_size must be .* got \\(0, 3\\)"),
        ({"image_size": (3, 3, 3)}, "image_size must be"),
        ({"test_fraction": 1.0}, r"test_fraction must lie in \(0, 1\), got 1.0"),
        ({"faulty": "keep"}, "one of skip, refuse, got 'keep'"),
        ({"image_size": 8}, "image_size must be .* got 8"),
        ({"image_size": ("a",)}, "image_size must be"),
        ({"test_fraction": "a"}, "test_fraction must be a number, got 'a'"),
        ({"test_seed": 1.5}, "test_seed must be an integer, got 1.5"),
        ({"test_seed": -1}, "test_seed must be at least 0, got -1"),
        # Without effect on what has its own test part, and no files.
        ({"test_fraction": 0.3}, "without a test part, not for 'digits',.* got 0.3"),
        ({"test_seed": 1}, "test_seed is for data without a test part.* got 1"),
        ({"faulty": "refuse"}, "faulty is for folder:PATH, not for 'digits'; got 'ref"),
    ],
)
def test_a_reading_that_cannot_be_done(fields, what):
    with pytest.raises(ValueError, match=what):
        load("digits", reading=Reading(**fields))


def test_what_is_no_name_and_no_reading_is_refused():
    with pytest.raises(ValueError, match="dataset must be text, got None"):
        load(None)
    with pytest.raises(ValueError, match="must be a jaxcl.data.Reading, got None"):
        load("digits", reading=None)
    with pytest.raises(ValueError, match="must be a jaxcl.data.Reading, got None"):
        jaxcl.data.from_arrays(IMAGES, Y, reading=None)


def test_a_share_for_testing_is_refused_where_there_is_a_test_part(tmp_path):
    whole, share = (IMAGES, Y, IMAGES, Y), Reading(test_fraction=0.3)
    np.savez(tmp_path / "a.npz", **dict(zip(NAMES, whole, strict=True)))
    np.savez(tmp_path / "b.npz", **dict(zip(NAMES, whole[:2], strict=False)))
    for part in ("train", "test"):
        for name in "ab":
            one_colour(tmp_path / "x" / part / name, "0.png")
    key = jaxcl.data.from_arrays(*whole).name
    for name in (key, f"npz:{tmp_path / 'a.npz'}", f"folder:{tmp_path / 'x'}"):
        with pytest.raises(ValueError, match="test_fraction is for data without a te"):
            load(name, reading=share)
    assert len(load(f"npz:{tmp_path / 'b.npz'}", reading=share).test_x) == 8
    for fields in ({"image_size": (4,)}, {"faulty": "refuse"}):
        with pytest.raises(ValueError, match="is for folder:PATH.* not for arrays; go"):
            jaxcl.data.from_arrays(IMAGES, Y, reading=Reading(**fields))


# --- arrays ---------------------------------------------------------------------------

RNG = np.random.default_rng(0)
Y = np.arange(20) % 4


@pytest.mark.parametrize(
    "x,shape,dtype,top",
    [
        (RNG.integers(0, 256, (20, 5, 7, 3), np.uint8), (5, 7, 3), "uint8", 255),
        (RNG.integers(0, 256, (20, 5, 7)), (5, 7, 1), "uint8", 255),  # int64
        (RNG.normal(3, 2, (20, 5, 7, 1)), (5, 7, 1), "float32", 1),
        (RNG.integers(0, 5000, (20, 6, 4, 3), np.uint16), (6, 4, 3), "float32", 1),
        (RNG.normal(size=(20, 9)).astype(np.float32), (9,), "float32", 1),
        (RNG.random((20, 4, 4)) > 0.5, (4, 4, 1), "uint8", 255),
    ],
)
def test_arrays_of_any_kind(x, shape, dtype, top):
    source = jaxcl.data.from_arrays(x[:12], Y[:12], x[12:], Y[12:])
    assert source.train_x.shape == (12, *shape) and source.train_x.dtype == dtype
    assert source.max_value == top and isinstance(source.train_x, np.memmap)
    exact = np.asarray(x[:12], np.float32).reshape(12, *shape)
    np.testing.assert_array_equal(source.train_x, exact)
    flat = exact.reshape(-1, shape[-1]).astype(np.float64) / top
    np.testing.assert_allclose(source.mean, flat.mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(source.std, flat.std(0), rtol=1e-10)
    again = load(source.name)
    np.testing.assert_array_equal(again.test_x, source.test_x)


def test_labels_may_be_anything_that_can_be_sorted():
    x = RNG.integers(0, 256, (20, 2, 2, 1), np.uint8)
    named = jaxcl.data.from_arrays(x, np.array(["d", "a", "c", "b"])[Y])
    assert named.class_names == ("a", "b", "c", "d")
    sparse = jaxcl.data.from_arrays(x, 10 * Y + 5, x, 10 * Y + 5)
    assert sparse.class_names == ("5", "15", "25", "35")
    np.testing.assert_array_equal(sparse.train_y, Y)
    # Without a test part, a fifth of each class becomes the test part.
    assert np.bincount(named.test_y).tolist() == [1] * 4


def test_a_channel_that_is_constant_is_not_divided_by_its_spread():
    x = RNG.integers(0, 256, (20, 4, 4, 3), np.uint8)
    x[..., 1] = 77
    assert jaxcl.data.from_arrays(x, Y, x, Y).std[1] == 1.0
    x = x.astype(np.float32) / 300
    assert jaxcl.data.from_arrays(x, Y, x, Y).std[1] == 1.0


def test_moments_of_batches_are_those_of_the_whole():
    x = RNG.normal(1e4, 1e-1, (1000, 3)).astype(np.float32)
    seen = Moments(3)
    for start in (0, 1, 500, 999):
        stop = {0: 1, 1: 500, 500: 999, 999: 1000}[start]
        seen.add(x[start:stop])
    mean, std = seen.mean_std(1.0)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, x.astype(np.float64).std(0), rtol=1e-9)


IMAGES = RNG.integers(0, 256, (20, 5, 7, 3), np.uint8)


def test_counts_that_are_rare_in_the_test_part_are_on_one_scale():
    counts = np.minimum(IMAGES // 50, 5)
    given = (counts, Y), (np.minimum(counts, 1), Y)
    for (x, y), (test_x, test_y) in (given, given[::-1]):
        found = jaxcl.data.from_arrays(x, y, test_x, test_y)
        assert found.train_x.max() == x.max() and found.test_x.max() == test_x.max()


@pytest.mark.parametrize(
    "arguments,what",
    [
        ((IMAGES, Y[:19]), "x_train and y_train need the same number of rows.* 20 and"),
        ((IMAGES, Y, IMAGES), "x_test and y_test go together"),
        ((IMAGES.transpose(0, 3, 1, 2), Y), r"channels last.*transpose\(0, 2, 3, 1\)"),
        ((IMAGES, np.eye(4)[Y]), r"float64\[20, 4\].*argmax"),
        ((IMAGES, Y / 2), "whole number or text"),
        ((IMAGES[..., None], Y), r"\[N, H, W, C\].*got \[20, 5, 7, 3, 1\]"),
        ((IMAGES, Y, IMAGES[:, :4], Y), "examples of one shape"),
        (
            (IMAGES, Y, IMAGES / 255, Y),
            "one scale: x_train is 0 to 255, x_test 0 to 1$",
        ),
        ((IMAGES / 255, Y, IMAGES / 1.0, Y), "one scale"),
        ((IMAGES // 16, Y, IMAGES // 16 / 16, Y), "one scale: x_train is 0 to 15"),
        ((IMAGES // 16 / 16, Y, IMAGES // 16, Y), "one scale"),
        ((IMAGES, Y, IMAGES, Y + 1), r"labels that y_train has not: \[4\]"),
        ((np.where(IMAGES > 250, np.nan, 1.0), Y), "values that are NaN or infinite"),
        ((IMAGES.astype(str), Y), "must be numbers"),
        ((IMAGES[:0], Y[:0]), "above 0"),
        ((IMAGES, np.arange(20)), "two examples"),
        (
            (np.ma.masked_greater(IMAGES, 254), Y),
            f"x_train must have no masked entries, got {(IMAGES > 254).sum()}",
        ),
        ((IMAGES, np.ma.masked_equal(Y, 3)), "y_train must have no masked.*, got 5"),
        ((IMAGES, np.array([b"a", b"\xff"])[Y % 2]), "y_train must be text in UTF-8"),
    ],
)
def test_arrays_that_contradict_each_other(arguments, what):
    with pytest.raises(ValueError, match=what) as error:
        jaxcl.data.from_arrays(*arguments)
    assert "\n" not in str(error.value) or "two examples" in str(error.value)


@pytest.mark.parametrize(
    "names,what",
    [
        (("a", "b", "a", "c"), "class_names must differ, got a several times"),
        (("a", b"a", "b", "c"), "class_names must differ, got a several times"),
        (4, "class_names must be a sequence of names, got 4"),
        ({"a"}, "class_names must be a sequence of names, got {'a'}"),
        (("a", "b", "c"), r"labels lie in \[0, 3\), got \[3\]"),
    ],
)
def test_names_of_classes_that_cannot_be(names, what):
    with pytest.raises(ValueError, match=what):
        jaxcl.data.from_arrays(IMAGES, Y, class_names=names)


def test_labels_in_bytes_are_read_as_text():
    for names in (["gnu", "Öre", "emu", "cat"], list("dcba")):
        text = np.array(names)[Y]
        found = jaxcl.data.from_arrays(IMAGES, np.char.encode(text, "utf-8"))
        assert found.class_names == tuple(sorted(names))
        np.testing.assert_array_equal(np.array(found.class_names)[found.test_y], names)
        given = jaxcl.data.from_arrays(
            IMAGES, Y, class_names=np.char.encode(names, "utf-8")
        )
        assert given.class_names == tuple(names)


def test_npz_files(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(file, x_train=IMAGES, y_train=Y, x_test=IMAGES[:4], y_test=Y[:4])
    source = load(f"npz:{file}")
    assert source.name == f"npz:{file}" and len(source.test_x) == 4
    np.savez(file, images=IMAGES, y_train=Y)
    with pytest.raises(ValueError, match="it holds y_train, images"):
        load(f"npz:{file}")
    np.savez(file, x_train=IMAGES, y_train=Y, X_test=IMAGES, Y_test=Y)
    with pytest.raises(ValueError, match="test, and no more; it .* X_test, Y_test$"):
        load(f"npz:{file}")
    np.savez(file, x_train=IMAGES.astype(object), y_train=Y)
    with pytest.raises(DataError, match="cannot be read"):
        load(f"npz:{file}")
    with pytest.raises(DataError, match="cannot be read"):
        load(f"npz:{tmp_path / 'none.npz'}")


def test_classes_without_a_test_example_are_named(tmp_path):
    """As in a folder of images; also if the cache held the arrays before."""
    x, y = np.arange(48).reshape(12, 4) % 7, np.repeat(["a", "b", "c", "d"], 3)
    parts = (x, y, x[:3], y[:3])
    told = "3 classes (b, c, d), without a test example"
    source = jaxcl.data.from_arrays(*parts)
    assert jaxcl.data.from_arrays(*parts).notes == (f"{source.name}: {told}",)
    assert load(source.name).notes == source.notes
    np.savez(tmp_path / "own.npz", **dict(zip(NAMES, parts, strict=True)))
    assert load(f"npz:{tmp_path / 'own.npz'}").notes[0].endswith(f"own.npz: {told}")
    assert jaxcl.data.from_arrays(x, y).notes == ()


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import jaxcl, numpy as np\n"
        "x = np.arange(20 * 4).reshape(20, 2, 2)\n"
        "y = np.arange(20) % 4\n"
        "def two(): return x, y\n"
        "def four(): return x, y, x, y\n"
        "def named(): return {'x_train': x, 'y_train': y}\n"
        "def wrong(): return x\n"
        "def test(): return named() | {'X_test': x, 'y_tset': y, 3: x}\n"
        "def source(): return jaxcl.data.Source('s', x, y / 2, *[None] * 6)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sizes = [len(load(f"my_data:{name}").test_x) for name in ("two", "four", "named")]
    assert sizes == [4, 20, 4]
    sys.modules.pop("my_data")
    for name, what in (
        ("wrong", "it gives ndarray"),
        ("none", "cannot be imported"),
        ("test", "and no more; it holds x_train, y_train, X_test, y_tset, 3$"),
        ("source", "s: class_names must be"),
    ):
        with pytest.raises(ValueError, match=what):
            load(f"my_data:{name}")
    with pytest.raises(ValueError, match="image_size is for folder:PATH"):
        load("my_data:two", reading=SMALL)


def test_arrays_that_the_cache_does_not_have():
    with pytest.raises(DataError, match="call jaxcl.data.from_arrays"):
        load("arrays:0123456789abcdef")


@pytest.mark.parametrize(
    "name,what",
    [
        # Of these it was said that a folder, as the whole cache, has to be deleted.
        ("arrays:.", "arrays:KEY with the 16 hex digits .*, got 'arrays:.'"),
        ("arrays:..", "16 hex digits"),
        ("arrays:/tmp", "16 hex digits"),
        ("arrays:0123456789ABCDEF", "16 hex digits"),
        ("arrays:0123456789abcdef/..", "16 hex digits"),
        ("arrays:", "with text after the colon, got 'arrays:'"),
        ("folder:", "with text after the colon, got 'folder:'"),
        ("npz: ", "with text after the colon, got 'npz: '"),
        ("tfds:", "with text after the colon, got 'tfds:'"),
    ],
)
def test_names_that_lead_nowhere_or_elsewhere(name, what):
    load("digits")  # there is a cache
    with pytest.raises(ValueError, match=what) as error:
        load(name)
    assert "elete" not in str(error.value) and "\n" not in str(error.value)


def test_a_folder_may_be_the_current_one(tmp_path, monkeypatch):
    for name in "ab":
        for i in range(2):
            one_colour(tmp_path / "x" / name, f"{i}.png")
    monkeypatch.chdir(tmp_path / "x")
    assert load("folder:.").class_names == ("a", "b")


# --- TFDS by name ---------------------------------------------------------------------


def png(x):
    encoded = io.BytesIO()
    Image.fromarray(x).save(encoded, "PNG")
    return encoded.getvalue()


def prepare_tfds(data_dir, splits, shape=(None, None, 3)):
    """A prepared set of images whose heights differ, made without TensorFlow."""
    import tensorflow_datasets as tfds

    class Pebbles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {
                "photo": tfds.features.Image(shape=shape),
                "kind": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(n) for name, n in splits.items()}

        def _generate_examples(self, n):
            for i in range(n):
                height = 6 + 2 * (i % 3)
                yield (
                    i,
                    {
                        "photo": png(np.full((height, 6, 3), i, np.uint8)),
                        "kind": -1 if n == 3 else i % 2,
                    },
                )

    builder = Pebbles(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()


def test_any_set_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    prepare_tfds(tmp_path / "tfds", {"train": 12})
    with pytest.raises(
        DataError,
        match=r"pebbles: its images differ in size.*image_size=\"\(10, 6\)\"$",
    ):
        load("tfds:pebbles")
    reading = Reading(image_size=(4,), test_fraction=0.5)
    source = load("tfds:pebbles", reading=reading)
    assert source.class_names == ("a", "b")
    assert source.train_x.shape == source.test_x.shape == (6, 4, 4, 3)
    both = np.concatenate([source.train_x, source.test_x])[:, 0, 0, 0]
    assert sorted(both.tolist()) == list(range(12))
    assert load("tfds:pebbles", reading=reading._replace(test_seed=3)) is not None
    assert len(os.listdir(tmp_path / "cache/pebbles-4x4")) == 2
    # A machine without TFDS uses the cache.
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    again = load("tfds:pebbles", reading=reading)
    np.testing.assert_array_equal(again.train_x, source.train_x)


def test_a_test_split_without_labels_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    prepare_tfds(tmp_path / "tfds", {"train": 6, "test": 3, "validation": 4})
    with pytest.raises(ValueError, match="6 images of 200000 × 200000 need"):
        load("tfds:pebbles", reading=Reading(image_size=(200_000,)))
    source = load("tfds:pebbles", reading=Reading(image_size=(4,)))
    assert len(source.test_x) == 4
    for _ in range(2):  # prepared, and on a machine that has only the cache
        with pytest.raises(ValueError, match="test_seed is for data without .* got 3"):
            load("tfds:pebbles", reading=Reading(image_size=(4,), test_seed=3))
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_a_shipped_set_by_its_tfds_name_is_the_same_copy(monkeypatch, tfds_dir):
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    monkeypatch.setenv("JAXCL_CACHE", str(Path(os.environ["JAXCL_CACHE"]).parent / "c"))
    source = load("tfds:mnist")
    assert source.train_x.shape == (60000, 28, 28, 1)
    store = Path(os.environ["JAXCL_CACHE"]) / "mnist"
    assert len(os.listdir(store)) == 1
    meta = json.loads((next(store.iterdir()) / "meta.json").read_text())
    assert meta["name"] == "mnist"
