"""The fields of a config: their allowed values, defaults and meanings.

A new field is one line in `FIELDS`: every config then has it, it is checked however it
is set, and ``--help`` lists it. Needs ml_collections, as the commands do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from jaxcl import schema
from jaxcl.data import scenarios
from jaxcl.data.reading import FAULTY
from jaxcl.heads import SCENARIOS
from jaxcl.nn.precision import DTYPES
from jaxcl.schema import Count, Natural, NonEmpty, NonNegative, OneOf, Positive, Range
from jaxcl.strategies import METHODS, is_row
from jaxcl.training.plan import METRICS, SCHEDULES, SELECT, Measured
from jaxcl.training.seeds import MODES


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      default: a neutral value.
      kind: the allowed values; see `jaxcl.schema`.
      comment: the field's meaning.
    """

    default: Any
    kind: Any
    comment: str = ""


class _Known(NamedTuple):
    """A rule: a row of the table of methods, or a method's import path."""

    def __str__(self) -> str:
        return f"be one of {', '.join(METHODS)}, or 'package.module:factory'"

    def holds(self, value: str) -> bool:
        return is_row(value)


class _Plain(NamedTuple):
    """A rule: a name that may stand in the name of a folder."""

    def __str__(self) -> str:
        return "be a name, without / and control characters"

    def holds(self, value: str) -> bool:
        return value.isprintable() and "/" not in value and value not in (".", "..")


def _named(names: Iterable[str]) -> Any:
    return Annotated[str, OneOf(tuple(names))]


_Channels = Annotated[tuple[schema.Share, ...], NonEmpty()]
_Sizes: Any = Annotated[tuple[Count, ...], NonEmpty()]
_Spreads = Annotated[tuple[schema.Positive, ...], NonEmpty()]
_Row = Annotated[str, _Known()]
_Folder = Annotated[str, _Plain()]
_PATH = 'or "package.module:name"'

# Every field that a config has, besides those of its model and of its method.
FIELDS: dict[str, Field] = {
    "name": Field("", _Folder, "of the benchmark, in tables and as a folder"),
    "row": Field("", str, "row of the table of methods, which --config=NAME:ROW sets"),
    "strategy": Field("finetune", str, f"the method's registered name, {_PATH}"),
    "seeds": Field((0, 1, 2, 3, 4), schema.Seeds, "trained together, all different"),
    "joint": Field(False, bool, "each task trains on the data of all tasks so far"),
    "joint_once": Field(False, bool, "with joint: one training, on all tasks' data"),
    "measure": Field("test", _named(("test", "valid")), "the part that is measured"),
    "measure_tasks": Field("all", Measured, "seen: those so far, and the next"),
    "seed_mode": Field("auto", _named(MODES), "vmap: side by side, map: in turn"),
    "rows": Field(tuple(METHODS), tuple[_Row, ...], "what `compare` runs by default"),
    "data.dataset": Field(
        "digits", str, f"a shipped name, tfds:NAME, folder:PATH, npz:PATH, {_PATH}"
    ),
    "data.image_size": Field(None, _Sizes | None, "(height, width) of all images"),
    "data.test_fraction": Field(
        0.2, Annotated[float, Range(0, 1, "()")], "of each class, without a test part"
    ),
    "data.test_seed": Field(0, Natural, "seed that test_fraction is drawn with"),
    "data.faulty": Field("skip", _named(FAULTY), "on files that cannot be used"),
    "data.stream": Field("split", _named(scenarios.KINDS), "how the tasks differ"),
    "data.scenario": Field("task", _named(SCENARIOS), "what is known at test time"),
    "data.num_tasks": Field(5, Count, "tasks of the stream"),
    "data.classes_per_task": Field(None, Count | None, "None: as even as can be"),
    "data.class_order": Field("fixed", str, "fixed, seed (drawn), or named ones"),
    "data.task_classes": Field(
        None, tuple | None, "split: a tuple of classes per task"
    ),
    "data.valid_fraction": Field(
        0.1, schema.Part, "of each task's training data, held out for validation"
    ),
    "data.stratified": Field(False, bool, "hold out the same share of each class"),
    "data.first_permuted": Field(True, bool, "permuted: the first task's pixels too"),
    "data.angles": Field(None, tuple[float, ...] | None, "rotated: degrees per task"),
    "data.angle_step": Field(
        0.0, float, "rotated, without angles: degrees from one task to the next"
    ),
    "data.angle_draw": Field(
        None,
        tuple[float, float] | None,
        "rotated: (low, high), drawn per task and seed",
    ),
    "data.first_angle": Field(None, float | None, "rotated; None: as the others"),
    "data.train_per_task": Field(None, Count | None, "at most, validation included"),
    "data.test_per_task": Field(None, Count | None, "examples at most"),
    "data.tasks": Field(
        None, tuple[Natural, Count] | None, "(first, stop) of the stream; None: all"
    ),
    "data.label_noise": Field(
        0.0, schema.Part, "share of each class's training labels that are another's"
    ),
    "data.confusion": Field(
        None, tuple | None, "of label_noise: pairs (class, called); None: any other"
    ),
    "data.mean": Field(
        None, _Channels | None, "per channel, of pixels in [0, 1]; None: the data's"
    ),
    "data.std": Field(None, _Spreads | None, "as mean"),
    "data.flip": Field(False, bool, "in training, mirror half of the images"),
    "data.crop_padding": Field(
        0, Natural, "in training, cut images out of so many pixels of black around"
    ),
    "data.augment": Field(
        "", str, 'in training, last: "package.module:name", (x [B, ...], key) -> x'
    ),
    "model.name": Field("mlp", str, f"of `jaxcl.nn.models.MODELS`, {_PATH}"),
    "model.head": Field("head", str, 'path of the classifier, joined by "/"'),
    "model.dtype": Field("float32", _named(DTYPES), "what the network computes in"),
    "optimizer.name": Field("sgd", str, f"sgd, adam, adamw {_PATH}"),
    "optimizer.lr": Field(0.01, Positive, "learning rate"),
    "optimizer.momentum": Field(0.0, schema.Part, "of sgd"),
    "optimizer.nesterov": Field(False, bool, "of sgd with momentum"),
    "optimizer.weight_decay": Field(0.0, NonNegative, "pull of the weights to 0"),
    "optimizer.clip": Field(None, Positive | None, "largest norm of the gradient"),
    "optimizer.schedule": Field("constant", _named(SCHEDULES), "of lr, in each task"),
    "optimizer.warmup": Field(0.0, schema.Part, "share of a task in which lr rises"),
    "optimizer.decay_per_task": Field(1.0, Positive, "factor of lr, task to task"),
    "optimizer.lr_floor": Field(0.0, NonNegative, "least lr of decay_per_task"),
    "train.epochs": Field(None, Count | None, "per task"),
    "train.first_epochs": Field(
        None, Natural | None, "of the first task; 0: it keeps its initial weights"
    ),
    "train.max_steps": Field(None, Count | None, "per task, at most"),
    "train.batch_size": Field(64, Count, "examples per step"),
    "train.eval_batch_size": Field(256, Count, "examples measured at once"),
    "train.patience": Field(None, Count | None, "epochs no better, then lr falls"),
    "train.lr_factor": Field(3.0, Annotated[float, Range(1, open="(")], "of patience"),
    "train.lr_min": Field(1e-4, NonNegative, "an lr below it ends the task"),
    "train.patience_metric": Field("accuracy", _named(METRICS), "patience follows it"),
    "train.select": Field("last", _named(SELECT), "weights that the next task gets"),
    "train.select_metric": Field("accuracy", _named(METRICS), "select=best goes by it"),
    "checkpoint_every": Field(600.0, NonNegative, "seconds between checkpoints"),
    "keep_weights": Field(
        "none", _named(("none", "last", "tasks", "epochs")), "when weights are kept"
    ),
    "write_to": Field("", str, "tensorboard, wandb, with commas between"),
    "features": Field(
        "",
        str,
        "measured after each task: rank, probes, multinomial, cka, drift, conflict, "
        "told, confusion, or my_module:name, a function (x [N, ..., units], y [N]) -> "
        "scalar of each layer; with commas between",
    ),
    "feature_layers": Field("", str, "those measured, with commas between; '': all"),
    "feature_examples": Field(1000, Count, "of each task, that features measures"),
}


def base(name: str) -> ConfigDict:
    """The fields every config has, at neutral values; see `FIELDS`.

    A field whose default is None takes the type of its kind.
    """
    config: dict[str, Any] = {"method": {}}
    for path, field in FIELDS.items():
        node, _, leaf = path.rpartition(".")
        default = field.default
        if default is None:
            default = config_dict.placeholder(schema.plain(field.kind))
        (config.setdefault(node, {}) if node else config)[leaf] = default
    return ConfigDict(config | {"name": name})


def require_fields(config: Any) -> None:
    """Refuses a config with a missing or unknown field, or a value of another kind.

    The fields of a model and of a method are checked by the model and the method.

    Raises:
      ValueError: the message names the field, the value and what is allowed.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(f"a config must be a ConfigDict, got {config!r}")
    given = dict(flat(config.to_dict()))
    own = [f for f in given if f.partition(".")[0] not in ("model", "method")]
    for what, names in (
        ("has no field", [f for f in own if f not in FIELDS]),
        ("needs the field", [f for f in FIELDS if f not in given]),
    ):
        if names:
            node = names[0].rpartition(".")[0]
            known = [f for f in FIELDS if f.rpartition(".")[0] == node] or FIELDS
            rule = f"its fields are {', '.join(known)}"
            raise ValueError(f"a config {what} {names[0]!r}; {rule}")
    kinds = {name: field.kind for name, field in FIELDS.items()}
    schema.require_all("config.", given, kinds)
    if not isinstance(config.get("method"), ConfigDict):
        raise ValueError(
            f"config.method must be settings, got {config.get('method')!r}"
        )


def literal(text: str) -> Any:
    """A value from a command line: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, ValueError):  # TypeError: a list in a set
        return text.strip()


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every field of a nested dict, sorted by name."""
    for name, value in sorted(fields.items()):
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def described() -> str:
    """Every field with its meaning, kind and default, one per line."""
    return "\n".join(
        f"--config.{name}: {comment} ({schema.words(kind)}; default {default!r})"
        for name, (default, kind, comment) in FIELDS.items()
    )
