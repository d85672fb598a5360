r"""Changes configs at random: each must build its problem or be refused in one line.

python -m tests.faults.mutations --minutes=1 [--seed=1]

A mutation takes a row of digits and sets one to three fields of the config, its model
or its method. The new values are of the field's kind, or anything at all, as in a
config file. Then `prepare` must build the config or refuse it. Nothing is trained, and
nothing may be written. Prints how many configs were built and how many refused. Ends
with status 1 at the first that is neither, and prints the smallest mutation that
hypothesis finds for it.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import hypothesis
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import digits
from experiments.runs.execute import prepare
from experiments.runs.machine import UsageError
from jaxcl import benchmark, schema, strategies
from jaxcl.data.cache import DataError
from jaxcl.fields import FIELDS
from jaxcl.nn.models import MODELS

ROWS = tuple(strategies.METHODS)
SMALL = st.integers(-3, 12)
NUMBERS = st.one_of(
    SMALL,
    st.integers(),
    st.floats(),
    st.floats(0, 2),
    st.sampled_from([0.0, -0.0, 1.0, 1e-45, 1e39, math.inf, math.nan, 2**31, 2**32]),
)
WORDS = st.one_of(
    st.sampled_from(
        ["", ":", "math:pi", "optax:adam", "last", "best", "loss", "cosine", "class"]
        + ["domain", "permuted", "seed", "valid", "vmap", "bfloat16", "adamw", "batch"]
        + ["batch_current", "mlp", "alexnet", "linear", "rank,cka", "head", *ROWS]
    ),
    st.text(max_size=8),
)
PLAIN = st.one_of(NUMBERS, WORDS, st.booleans(), st.none())
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=4).map(tuple), st.lists(SMALL))
MODEL = ("widths", "dropout", "input_dropout", "norm", "use_bias", "start")


def of_kind(kind: Any) -> st.SearchStrategy[Any]:
    """Values that a kind allows, or that are close to allowed ones."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        rule = of[1]
        if isinstance(rule, schema.OneOf):
            return st.sampled_from(rule.names)
        if of[0] is float and isinstance(rule, schema.Range):
            return st.floats(max(rule.low, 0), min(rule.high, 20))
        return of_kind(of[0])
    if origin in (Union, UnionType):
        return st.one_of(*map(of_kind, of))
    if origin in (tuple, Sequence):
        return st.lists(of_kind(of[0]), min_size=1, max_size=3).map(tuple)
    plain = {int: st.integers(0, 12), float: st.floats(0, 2), bool: st.booleans()}
    return plain.get(kind, st.none() if kind is NoneType else VALUES)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A row, and new values for some of its fields."""
    row = draw(st.sampled_from(ROWS))
    factory = strategies.METHODS[row].factory
    kinds = {name: field.kind for name, field in FIELDS.items()}
    of_model = schema.kinds_of(MODELS["mlp"])
    kinds |= {f"model.{name}": of_model[name] for name in MODEL}
    of_method = schema.kinds_of(factory)
    settings = [f"method.{name}" for name in benchmark.defaults(factory)]
    kinds |= {name: of_method[name.removeprefix("method.")] for name in settings}
    names = [*kinds, *settings * 4]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    wild = draw(st.integers(0, 3)) == 0
    return row, {n: draw(VALUES if wild else of_kind(kinds[n])) for n in chosen}


def outcome(row: str, fields: dict[str, Any], workdir: Path) -> str:
    """The outcome of a mutation: "built", or "refused" with the reason."""
    whole = digits.get_config(row).to_dict()
    for name, value in fields.items():  # of any type, as a config file may
        node, _, leaf = name.rpartition(".")
        (whole[node] if node else whole)[leaf] = value
    config = ConfigDict(whole)
    try:
        prepare(config, workdir)
    except (ValueError, DataError, UsageError) as error:
        text = str(error)
        assert text and "\n" not in text.strip(), f"more than a line: {text}"
        return "refused"
    finally:
        assert not workdir.exists(), "something was written"
    return "built"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    seed = int(time.time()) if given.seed is None else given.seed
    count: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="jaxcl-mutations-"))
    warnings.simplefilter("ignore")

    @hypothesis.settings(
        max_examples=50,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(mutations())
    def hold(mutation: tuple[str, dict[str, Any]]) -> None:
        if time.monotonic() < end:
            count[outcome(*mutation, folder / "w")] += 1

    print(f"seed {seed}")
    while time.monotonic() < end:
        hypothesis.seed(seed + sum(count.values()))(hold)()
    print(", ".join(f"{n} {what}" for what, n in sorted(count.items())))
    folder.rmdir()
    return 0 if count["built"] and count["refused"] else 1


if __name__ == "__main__":
    sys.exit(main())
