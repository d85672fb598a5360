"""Identifies a run's state: its problem, and the code and versions that made it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jaxcl
from jaxcl.training.describe import described, hash_of
from jaxcl.training.problem import Problem, setup_of, strategy_for

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SHOWN = 5
FILE_OF = "file of "
BASE = "stream.base."


class Fingerprint(NamedTuple):
    """The run that a state belongs to; every field is text, to be stored and compared.

    Attributes:
      identity: the caller's description, such as its config: field -> value.
      problem: the `Problem`, by `jaxcl.training.describe`: place in it -> value.
      code: hash of this package's files.
      versions: package -> version, for packages that the arithmetic depends on, and
        "file of MODULE" -> hash, for functions and classes that are not installed.
    """

    identity: dict[str, str]
    problem: dict[str, str]
    code: str
    versions: dict[str, str]


def fingerprint(problem: Problem, identity: Mapping[str, str]) -> Fingerprint:
    """The fingerprint of a run in this process.

    The layout of seeds changes no result and is left out; so is everything that differs
    between devices. The strategy is described as built, with its first seed's settings.
    """
    fields = problem._asdict()
    del fields["seed_mode"], fields["make_strategy"]
    setup = setup_of(problem)
    first = {name: values[0] for name, values in problem.settings.items()}
    fields["strategy"] = strategy_for(problem, setup, **first)
    lines, sources = described(fields)
    files = {f"{FILE_OF}{module}": sources[module] for module in sorted(sources)}
    return Fingerprint(dict(identity), lines, code(), versions() | files)


def made_of(mine: Fingerprint, versions: Mapping[str, str]) -> dict[str, Any]:
    """What a session notes besides: the user's own files, and the data by their hash.

    Returns:
      "versions", the given ones with the files of methods and models that are not
      installed; and "data", a hash of the images and labels that all seeds share.
    """
    own = {k: v for k, v in mine.versions.items() if k.startswith(FILE_OF)}
    lines = [f"{k} {v}" for k, v in mine.problem.items() if k.startswith(BASE)]
    data = hash_of("\n".join(sorted(lines)).encode())[:16]
    return {"versions": {**versions, **own}, "data": data}


@functools.cache
def code() -> str:
    """Hash of this package's Python files, names and content.

    Commands and configs, which are inside the package once it is installed, are left
    out.
    """
    root = Path(jaxcl.__file__).parent
    files = sorted(file.relative_to(root) for file in root.rglob("*.py"))
    own = [file for file in files if file.parts[0] not in ("experiments", "configs")]
    parts = [f"{file.as_posix()} {hash_of((root / file).read_bytes())}" for file in own]
    return hash_of("\n".join(parts).encode())[:16]


@functools.cache
def versions() -> dict[str, str]:
    """The versions of the packages that results depend on."""
    return {package: metadata.version(package) for package in PACKAGES}


def foreign(there: Fingerprint, now: Fingerprint) -> list[str]:
    """Differences that show that a state is of another run; empty if there are none.

    Other code may describe the same problem with other names: then only the names that
    both have are compared.
    """
    if there.identity and now.identity:
        found = _differences(there.identity, now.identity)
        if found or otherwise_made(there, now):
            return found
    both = there.problem.keys() & now.problem.keys()
    if otherwise_made(there, now):
        return _differences(
            {k: there.problem[k] for k in both}, {k: now.problem[k] for k in both}
        )
    return _differences(there.problem, now.problem)


def otherwise_made(there: Fingerprint, now: Fingerprint) -> list[str]:
    """Differences of code and versions, in words; empty if there are none."""
    found = _differences(there.versions, now.versions)
    if there.code != now.code:
        found.append(f"the code of jaxcl is {there.code} there and {now.code} now")
    return found


def in_words(differences: Sequence[str], there: Fingerprint, now: Fingerprint) -> str:
    """What `foreign` has found, for a user: data that have changed are told as such.

    What else differs then follows from them, as the scale of images does.
    """
    whole = "; ".join(differences)
    parts = [_changed(part, there, now) for part in ("train", "test")]
    if not any(parts) or not (there.identity and there.identity == now.identity):
        return whole
    names = [v for k, v in now.identity.items() if k.endswith("data.dataset")]
    of = f" of {names[0][1:-1]}" if names else ""
    return f"the data{of} have changed since: {'; '.join(filter(None, parts))}"


def _changed(part: str, there: Fingerprint, now: Fingerprint) -> str:
    """How a part's images or labels differ; empty if they do not, or are not known."""
    images, labels = f"{BASE}{part}_x", f"{BASE}{part}_y"
    if any(images not in f.problem for f in (there, now)):
        return ""
    if all(there.problem[k] == now.problem.get(k) for k in (images, labels)):
        return ""
    # An array is described as "float32[N, ...] HASH".
    n, m = (
        re.findall(r"\d+", f.problem[images].partition("[")[2]) for f in (there, now)
    )
    kind = "training" if part == "train" else "test"
    if n[:1] != m[:1]:
        return f"{n[0]} {kind} examples then, {m[0]} now"
    return f"{n[0]} {kind} examples then and now, some with other values or labels"


def _differences(there: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    differ = [k for k in sorted({*there, *now}) if there.get(k) != now.get(k)]
    # A part described once and then referred to differs at each of its places.
    first = [k for k in differ if "as before, " not in there.get(k, now.get(k, ""))]
    words = [
        f"{key} is {there.get(key, 'absent')} there and {now.get(key, 'absent')} now"
        for key in first or differ
    ]
    more = len(words) - SHOWN
    return words[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
