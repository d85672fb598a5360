"""Wrong inputs: what is given, and what the one-line error must say."""

from typing import NamedTuple

POSITIVE = "be greater than 0"
FINITE = "be finite"


class Wrong(NamedTuple):
    """A field that a command line sets, and what the error must say."""

    row: str
    field: str
    value: str
    rule: str  # "" if the flag's parser itself refuses the text


def _each(fields, values, row="bp"):
    return [
        Wrong(row, field, value, rule)
        for field in fields
        for value, rule in values.items()
    ]


_NOT_FINITE = {"inf": FINITE, "nan": FINITE, "-inf": FINITE}
_NUMBER = _NOT_FINITE | {"text": "text", "1,2": "1,2"}
_MISSING = {"None": "got None"}
_CHOICE = {"nosuch": "be one of", "": "be one of"}
_SCENARIO_STEPS = ("data.num_tasks", "train.batch_size", "train.eval_batch_size")

FIELDS = [
    *_each(
        ("optimizer.lr", "optimizer.decay_per_task"),
        _NUMBER | _MISSING | {"0": POSITIVE, "-1": POSITIVE, "0.0": POSITIVE},
    ),
    *_each(("optimizer.clip",), _NUMBER | {"0": POSITIVE, "-1": POSITIVE}),
    *_each(
        ("optimizer.weight_decay", "train.lr_min", "checkpoint_every"),
        _NUMBER | _MISSING | {"-1": "be at least 0", "-1e-9": "be at least 0"},
    ),
    *_each(
        ("optimizer.momentum", "optimizer.warmup", "data.valid_fraction"),
        _NUMBER | _MISSING | dict.fromkeys(("1", "2", "-1"), "lie in [0, 1)"),
    ),
    *_each(
        ("model.dropout",),
        _NUMBER | _MISSING | dict.fromkeys(("1", "2", "-1"), "lie in [0, 1)"),
    ),
    *_each(
        ("train.lr_factor",),
        _NUMBER | _MISSING | dict.fromkeys(("1", "0.5", "-3"), "be greater than 1"),
    ),
    *_each(
        (*_SCENARIO_STEPS, "feature_examples"),
        {"0": "be at least 1", "-1": "be at least 1", "1.5": "1.5", "text": "text"}
        | _MISSING,
    ),
    *_each(
        ("data.classes_per_task", "data.train_per_task", "data.test_per_task"),
        {"0": "be at least 1", "-1": "be at least 1", "1.5": "1.5", "text": "text"},
    ),
    *_each(
        ("train.epochs", "train.max_steps", "train.patience"),
        {"0": "be at least 1", "-1": "be at least 1", "1.5": "1.5", "text": "text"},
    ),
    *_each(
        (
            *("measure", "seed_mode", "keep_weights", "data.stream", "data.scenario"),
            *("model.dtype", "optimizer.schedule", "train.select"),
            *("train.patience_metric", "train.select_metric"),
        ),
        _CHOICE,
    ),
    *_each(
        ("joint", "joint_once", "data.stratified", "data.first_permuted"),
        {"maybe": "maybe", "2": "2"},
    ),
    *_each(
        ("optimizer.name", "model.name"),
        {
            "nosuch": "unknown",
            "": "unknown",
            ":": "cannot be imported",
            "math:": "cannot be imported",
            ":pi": "cannot be imported",
            "math:pi": "not a factory",
            "math:nosuch": "cannot be imported",
            "no.such.module:f": "cannot be imported",
            "math:sqrt": "",
            "builtins:dict": "",
        },
    ),
    *_each(
        ("strategy",),
        {
            "nosuch": "unknown strategy",
            ":": "cannot be imported",
            "math:pi": "not a factory",
            "math:nosuch": "cannot be imported",
            "no.such.module:f": "cannot be imported",
        },
    ),
    *_each(
        ("data.dataset",),
        {
            "nosuch": "must be one of",
            "": "must be one of",
            ":": "with text after the colon",
            "math:pi": "not a factory",
            "math:nosuch": "cannot be imported",
            "optax:adam": "missing 1 required positional argument",
            "builtins:dict": "it holds nothing",
            "json:load": "raised TypeError",
            "/tmp": "folder:PATH",
        },
    ),
    *_each(
        ("seeds",),
        {
            "()": "not be empty",
            "None": "an integer",
            "(0.5,)": "an integer",
            "(-1,)": "[0, 4294967295]",
            "(4294967296,)": "[0, 4294967295]",
            "(1, 1)": "distinct",
            "((0, 1),)": "an integer",
            "('a',)": "an integer",
            "(True,)": "an integer",
            "text": "text",
        },
    ),
    *_each(
        ("data.tasks",),
        {
            "(1,)": "(an integer at least 0, an integer at least 1)",
            "(0, 1, 2)": "(an integer at least 0, an integer at least 1)",
            "()": "(an integer at least 0, an integer at least 1)",
            "(0.5, 2)": "an integer",
            "('a', 2)": "an integer",
            "(-1, 2)": "at least 0",
            "(0, 0)": "at least 1",
            "(2, 1)": "first < stop",
            "(0, 99)": "first < stop",
            "text": "text",
        },
    ),
    *_each(
        ("data.mean",),
        {
            "()": "not be empty",
            "(2.0,)": "[0, 1]",
            "(-0.5,)": "[0, 1]",
            "('a',)": "a number",
            "(0.1, 0.2)": "a value for each of 1 channels",
            "text": "text",
        },
    ),
    *_each(
        ("data.std",),
        {
            "()": "not be empty",
            "(0.0,)": POSITIVE,
            "(-0.5,)": POSITIVE,
            "('a',)": "a number",
            "(0.1, 0.2, 0.3)": "a value for each of 1 channels",
            "text": "text",
        },
    ),
    *_each(
        ("model.widths",),
        {
            "(-5,)": "at least 1",
            "(100, 0)": "at least 1",
            "(1.5,)": "an integer",
            "('a',)": "an integer",
            "(True,)": "an integer",
            "((3, 4),)": "an integer",
            "None": "an integer",
            "text": "text",
        },
    ),
    *_each(
        ("rows",),
        {"text": "text"},
    ),
    *_each(
        ("data.class_order",),
        {"nosuch": "one of fixed, seed", "": "one of fixed, seed"},
    ),
    *_each(("model.head",), {"nosuch": "matches no parameter"}),
    *_each(("features",), {"nosuch": "nosuch"}),
    # Sizes that no machine has.
    *_each(
        ("model.widths",),
        {"(10000000, 10000000)": "GB", "(100, 2000000000)": "GB"},
    ),
    *_each(
        ("train.batch_size", "train.max_steps", "train.epochs"),
        {"100000000000": "be at most 2147483647"},
    ),
    Wrong("bp", "model.widths", "(100000000000,)", "be at most 2147483647"),
    Wrong("bp", "train.batch_size", "2000000000", "GB"),
    Wrong("bp", "train.batch_size", "50000000", "GB"),  # the layers' inputs
    Wrong("er", "method.capacity", "2000000000", "GB"),
    Wrong("random_features", "method.width", "3000000", "GB"),
    # Numbers that differ from 0, 1 or infinity in 64 bits, but not in 32.
    Wrong("bp", "optimizer.lr", "1e-60", POSITIVE),
    Wrong("bp", "optimizer.lr", "1e+60", FINITE),
    Wrong("bp", "optimizer.momentum", "0.999999999", "lie in [0, 1)"),
    # Methods' settings.
    *(
        Wrong(row, f"method.{field}", value, rule)
        for row, field, values in (
            ("ewc", "strength", _NOT_FINITE | {"-1": "be at least 0"}),
            ("si", "strength", _NOT_FINITE | {"-1": "be at least 0"}),
            ("mas", "strength", _NOT_FINITE | {"-1": "be at least 0"}),
            ("lwf", "strength", _NOT_FINITE | {"-1": "be at least 0"}),
            ("hat", "strength", _NOT_FINITE | {"-1": "be at least 0"}),
            ("derpp", "alpha", _NOT_FINITE | {"-1": "be at least 0"}),
            ("derpp", "beta", _NOT_FINITE | {"-1": "be at least 0"}),
            ("owm", "norm_penalty", _NOT_FINITE | {"-1": "be at least 0"}),
            ("ewc", "decay", {"nan": FINITE, "2": "[0, 1]", "0.5": "online"}),
            ("ewc", "fisher", _CHOICE),
            ("ewc", "samples", {"0": "be at least 1", "-3": "be at least 1"}),
            ("ewc", "chunk", {"0": "be at least 1"}),
            ("mas", "samples", {"0": "be at least 1"}),
            ("si", "damping", {"0": POSITIVE, "nan": FINITE, "inf": FINITE}),
            ("lwf", "temperature", {"0": POSITIVE, "nan": FINITE, "inf": FINITE}),
            ("hat", "s_max", {"0": POSITIVE, "inf": FINITE}),
            ("hat", "bound", {"0": POSITIVE, "nan": FINITE}),
            ("hat", "derivative", _CHOICE),
            ("hat", "epoch_progress", _CHOICE),
            ("gpm", "threshold", {"0": "(0, 1]", "1.5": "(0, 1]", "nan": "be "}),
            ("gpm", "samples", {"0": "be at least 1"}),
            ("gpm", "where", _CHOICE),
            ("gpm", "form", _CHOICE),
            ("owm", "alpha", {"0": POSITIVE, "-1": POSITIVE, "nan": FINITE}),
            ("owm", "alpha_decay", {"0": POSITIVE, "inf": FINITE}),
            ("owm", "window_stride", {"0": "be at least 1"}),
            ("owm", "progress", _CHOICE),
            ("agem", "per_class", {"0": "be at least 1"}),
            ("agem", "batch_size", {"0": "be at least 1"}),
            ("er", "capacity", {"0": "be at least 1", "-1": "be at least 1"}),
            ("er", "batch_size", {"0": "be at least 1"}),
            ("er", "offer", _CHOICE),
            ("ol", "extractor", {"2": "[0, 1]", "nan": FINITE}),
            ("ol", "on", _CHOICE),
            ("ol", "later", _CHOICE),
            ("bp_slda", "shrinkage", {"0": "(0, 1]", "2": "(0, 1]", "nan": FINITE}),
            ("bp_slda", "chunk", {"0": "be at least 1"}),
            ("bp_ncm", "chunk", {"0": "be at least 1"}),
            ("pca", "chunk", {"0": "be at least 1"}),
            ("random_features", "width", {"0": "be at least 1"}),
            ("random_frozen", "epochs", {"-1": "be at least 0"}),
        )
        for value, rule in values.items()
    ),
]

# Command, arguments ({d}: a folder of the test), what the line must say.
_BOTH = ["--config=digits", "--strategies=ewc,hat", "--workdir={d}/w"]
COMMANDS = [
    ("compare", [*_BOTH, "--for=ewc"], "--for must be ROW:FIELD=VALUE"),
    ("compare", [*_BOTH, "--for=ewc:=1"], "--for must be ROW:FIELD=VALUE"),
    ("compare", [*_BOTH, "--for=gpm:method.samples=3"], "the rows are ewc, hat"),
    (
        "compare",
        [*_BOTH, "--for=ewc:method.nosuch=3"],
        "nosuch; method has chunk, decay",
    ),
    ("compare", [*_BOTH, "--for=ewc:optimizer.lr=x"], "optimizer.lr must be float"),
    ("compare", [*_BOTH, "--for=ewc:optimizer.lr=-1"], POSITIVE),
    ("compare", [*_BOTH, "--for=ewc:row=bp"], "row is no field of one row alone"),
    ("compare", [*_BOTH, "--for=ewc:model.name=alexnet"], "model.name is no field"),
    ("compare", [*_BOTH, "--for=ewc:data.tasks={{[1]}}"], "data.tasks"),
    *(
        (command, [*_BOTH, "--for=gpm:optimizer.lr=0.1"], "the rows are ewc, hat")
        for command in ("heads", "plane", "attention", "memory")
    ),
    ("heads", [*_BOTH, "--for=hat:optimizer.lr=-1"], POSITIVE),
    ("heads", [*_BOTH, "--config.measure=valid"], "measure must be test"),
    *(
        (command, [*_BOTH[:1], "--strategies=", "--workdir={d}/w"], "names nothing")
        for command in ("compare", "heads", "plane", "attention", "sweep")
    ),
    ("claims", ["--claim="], "names nothing"),
    ("claims", ["--runs=nosuch*"], "is called 'nosuch*'"),
    ("bench", ["--cases="], "names nothing"),
    ("bench", ["--out=/nosuch/x.json"], "--out must be a file"),
    *(
        (command, ["word"], "unexpected argument 'word'")
        for command in ("claims", "bench", "roofline", "readings")
    ),
    *(
        ("run", ["--config=digits", *2 * (field,), "--workdir={d}/w"], "given twice")
        for field in ("--config.model.widths=(9,)", "--config.seeds=(5,)")
    ),
    ("run", ["--config=digits", "--config=digits:ewc"], "--config is given twice"),
    ("run", ["--config=digits", "--config.name=../x", "--workdir={d}/w"], "without /"),
    ("run", ["--config=digits", "--cpu_devices=0"], "--cpu_devices"),
    ("plane", ["--config=digits", "--seed=99", "--workdir={d}/w"], "has no seed 99"),
    (
        "plane",
        ["--config=digits", "--config.data.tasks=(0,1)", "--workdir={d}/w"],
        "a plane needs two tasks",
    ),
    ("plane", ["--config=digits", "--points=1000000000"], "--points"),
    *(
        ("sweep", ["--config=digits", f"--grid={text}", "--workdir={{d}}/w"], told)
        for text, told in (
            ("measure='test'", "no field 'measure' to vary"),
            ("{{1:(1,)}}", "no field 1 to vary"),
            ("train.epochs=1,1", "needs distinct values"),
            ("hat:method.strength=1", "--grid=hat:method.strength: the rows are bp"),
            ("bp:=1", "no field"),
        )
    ),
    (
        "sweep",
        ["--config=digits", "--grid=data.tasks={{[1]}}", "--workdir={d}/w"],
        "data.tasks",
    ),
    (
        "run",
        [
            "--config=digits",
            "--config.model.name=alexnet",
            "--config.model.width={{[1]}}",
            "--workdir={d}/w",
        ],
        "width",
    ),
    (
        "compare",
        [*_BOTH, "--for=hat:optimizer.lr=1", "--for=hat:optimizer.lr=2"],
        "--for gives hat:optimizer.lr twice",
    ),
    (
        "run",
        ["--config=digits", "--workdir={d}/w", "--config.data.num_tasks=2000000000"],
        "not enough for 2000000000 tasks",
    ),
    ("run", ["--config=digits"], "--workdir"),
    ("run", ["--workdir={d}/w"], "--config"),
    ("run", ["--config=digits", "--workdir="], "got ''"),
    ("run", ["--config=digits", "--workdir=~"], "got '~'"),
    ("run", ["--config=digits", "--workdir=~/runs"], "got '~/runs'"),
    ("run", ["--config=digits", "--workdir=gs://bucket/runs"], "gs://bucket/runs"),
    ("run", ["--config=digits", "--workdir=/dev/null/x"], "/dev/null/x"),
    ("run", ["--config=digits", "--workdir={d}/file"], "{d}/file"),
    ("run", ["--config=digitz", "--workdir={d}/w"], "no config 'digitz'; known"),
    ("run", ["--config=", "--workdir={d}/w"], "config"),
    ("run", ["--config=digits:nosuch", "--workdir={d}/w"], "'nosuch' is no row"),
    ("run", ["--config=digits:ewc,gpm", "--workdir={d}/w"], "'gpm' is no row"),
    ("run", ["--config={d}/nosuch.py", "--workdir={d}/w"], "nosuch.py"),
    ("run", ["--config={d}", "--workdir={d}/w"], "{d}"),
    ("run", ["--config={d}/syntax.py", "--workdir={d}/w"], "syntax"),
    ("run", ["--config={d}/raises.py", "--workdir={d}/w"], "division by zero"),
    ("run", ["--config={d}/raises_later.py", "--workdir={d}/w"], "division by zero"),
    ("run", ["--config={d}/imports.py", "--workdir={d}/w"], "nosuchmodule"),
    ("run", ["--config={d}/nothing.py", "--workdir={d}/w"], "get_config"),
    ("run", ["--config={d}/none.py", "--workdir={d}/w"], "returned None"),
    ("run", ["--config={d}/dict.py", "--workdir={d}/w"], "ConfigDict"),
    ("run", ["--config={d}/extra.py", "--workdir={d}/w"], "has no field 'colour'"),
    ("run", ["--config={d}/deep.py", "--workdir={d}/w"], "no field 'data.colour'"),
    ("run", ["--config={d}/partial.py", "--workdir={d}/w"], "needs the field"),
    ("run", ["--config={d}/optimizer.py", "--workdir={d}/w"], "'optimizer.clip'"),
    ("run", ["--config={d}/method.py", "--workdir={d}/w"], "config.method must"),
    ("run", ["--config=digits", "--workdir={d}/w", "stray"], "'stray'"),
    ("run", ["--config=digits", "--workdir={d}/w", "--nosuch=1"], "nosuch"),
    ("run", ["--config=digits", "--workdir={d}/w", "--config.nosuch=1"], "nosuch"),
    ("run", ["--config=digits", "--workdir={d}/w", "--config.data.x=1"], "'x'"),
    ("run", ["--config=digits", "--workdir={d}/w", "--config.seeds.x=1"], "seeds"),
    ("run", ["--config=digits:ewc", "--workdir={d}/w", "--config.method.x=1"], "'x'"),
    ("run", ["--config=digits", "--workdir={d}/w", "--cpu_devices=x"], "cpu_devices"),
    (
        "run",
        ["--config={d}/mine.py:tests.factories:nothing", "--workdir={d}/w"],
        "None",
    ),
    ("run", ["--config={d}/mine.py:tests.factories:raises", "--workdir={d}/w"], "Key"),
    ("run", ["--config={d}/mine.py:tests.factories:text", "--workdir={d}/w"], "hook"),
    *(
        (
            "run",
            [f"--config={{d}}/mine.py:tests.factories:{hook}", "--workdir={d}/w"],
            f"tests.factories:{hook}",
        )
        for hook in (
            *("nothing", "raises", "text", "grads", "updates", "loss", "after_task"),
            *("forward", "report"),
        )
    ),
    ("run", ["--config=digits", "--workdir={d}/listed"], "config.json"),
    ("run", ["--config=digits", "--workdir={d}/torn"], "config.json"),
    ("run", ["--config=digits", "--workdir={d}/folders"], "config.json"),
    ("compare", ["--config=digits", "--workdir={d}/w", "--strategies=bp,bp"], "bp, bp"),
    (
        "compare",
        ["--config=digits", "--workdir={d}/w", "--strategies=bp,x"],
        "'x' is no row",
    ),
    ("compare", ["--config=digits", "--workdir={d}/w", "--strategies=bp,"], "got bp,"),
    ("compare", ["--config={d}/twice.py", "--workdir={d}/w"], "bp, bp"),
    ("compare", ["--config={d}/no_rows.py", "--workdir={d}/w"], "at least one"),
    (
        "compare",
        ["--config=digits:ewc", "--workdir={d}/w", "--config.method.strength=1.0"]
        + ["--strategies=bp"],
        "ewc",
    ),
    ("sweep", ["--config=digits", "--workdir={d}/w"], "has no sweep()"),
    ("sweep", ["--config={d}/sweep_none.py", "--workdir={d}/w"], "got None"),
    ("sweep", ["--config={d}/sweep_empty.py", "--workdir={d}/w"], "got {{}}"),
    ("sweep", ["--config={d}/sweep_text.py", "--workdir={d}/w"], "got 'ewc'"),
    ("sweep", ["--config={d}/sweep_row.py", "--workdir={d}/w"], "got (1, 2)"),
    ("sweep", ["--config={d}/sweep_raises.py", "--workdir={d}/w"], "division"),
    ("sweep", ["--config={d}/sweep_field.py", "--workdir={d}/w"], "no field colour"),
    ("sweep", ["--config={d}/sweep_value.py", "--workdir={d}/w"], "got ()"),
    ("sweep", ["--config=digits", "--grid={{}}", "--workdir={d}/w"], "got {{}}"),
    *(
        (
            "sweep",
            [
                "--config=digits",
                "--strategies=ewc",
                f"--grid={grid}",
                "--workdir={d}/w",
            ],
            said,
        )
        for grid, said in (
            ("None", "None"),
            ("text", "text"),
            ("[1]", "[1]"),
            ("{{}}", "{{}}"),
            ("{{'method.strength': 3}}", "got 3"),
            ("{{'method.strength': ()}}", "got ()"),
            ("{{'method.strength': (-1.0,)}}", "-1.0"),
            ("{{'method.strength': ('a',)}}", "'a'"),
            ("{{'nosuch': (1,)}}", "nosuch"),
            ("{{'train.epochs': (0, 1)}}", "0"),
        )
    ),
    ("report", [], "no folder given"),
    ("report", ["{d}/nosuch"], "no such folder"),
    ("report", ["{d}/file"], "no such folder"),
    ("report", ["{d}"], "{d}"),
    ("report", [""], "got ''"),
    ("report", ["{d}/good", "--out="], "got ''"),
    ("report", ["{d}/good", "--out=gs://x"], "gs://x"),
    ("report", ["{d}/good", "--out={d}/file/x"], "{d}/file"),
    ("report", ["{d}/result_list"], "JSON object"),
    ("report", ["{d}/result_torn"], "not valid JSON"),
    ("report", ["{d}/result_binary"], "not valid JSON"),
    ("report", ["--page={d}/nosuch"], "nosuch"),
    ("bench", ["--cases=nosuch"], "unknown case 'nosuch'"),
    ("bench", ["--rounds=0"], "--rounds"),
    ("roofline", ["--networks=nosuch"], "unknown network 'nosuch'"),
    ("roofline", ["--seeds=0"], "--seeds must be numbers of at least 1"),
    ("run", ["--config=digits", "--config.row=joint"], "--config=FILE:ROW"),
    (
        "sweep",
        ["--config=digits:bp", "--workdir={d}/w", "--grid=optimizer.lr=0.05,-0.05"],
        "optimizer.lr must be greater than 0, got -0.05",
    ),
    (
        "heads",
        ["--config=digits", "--workdir={d}/w", "--config.model.head=hidden_0"],
        "heads must name the classifier",
    ),
    ("memory", ["--config=digits", "--tasks=x"], "--tasks must be numbers"),
    ("memory", ["--config=digits", "--strategies=bp,bp"], "bp, bp"),
    ("claims", ["--claim=nosuch"], "unknown claim 'nosuch'"),
    ("claims", ["--setting=nosuch"], "nosuch"),
    ("claims", ["--workdir="], "got ''"),
    ("heads", ["--config=digits", "--workdir={d}/w", "--strategies=bp,bp"], "bp, bp"),
    ("readings", ["--seeds=1"], "seeds"),
    ("plane", [], "--runs=DIR"),
    ("plane", ["--config=digits", "--runs={d}/good"], "--runs=DIR"),
    ("plane", ["--runs={d}/nosuch"], "no run's folder"),
    ("plane", ["--config=digits", "--strategies=bp,ewc"], "bp, ewc: name one of each"),
    ("plane", ["--config=digits", "--points=1"], "points"),
    ("plane", ["--config=digits", "--workdir="], "got ''"),
    ("attention", [], "--runs=DIR"),
    ("attention", ["--runs={d}/nosuch"], "no run's folder"),
    ("attention", ["--config=digits", "--strategies=bp"], "two methods are compared"),
    ("attention", ["--config=digits", "--measured=1"], "measured"),
    # Before anything is trained:
    ("attention", ["--config=digits", "--images=0,99999", "--workdir={d}/w"], "0..7"),
    ("attention", ["--config=digits", "--images=a", "--workdir={d}/w"], "--images"),
    (
        "attention",
        [
            "--config=digits",
            "--config.model.name=resnet18",
            "--config.model.norm=batch_current",
            "--workdir={d}/w",
        ],
        "normalises by the batch",
    ),
]

# A result's field, a value it cannot have, what the line must say.
RESULTS = [
    ("seeds", [], "not be empty"),
    ("seeds", [0, 0], "distinct"),
    ("seeds", [-1], "-1"),
    ("seeds", [0.5], "0.5"),
    ("seeds", ["a"], "a"),
    ("seeds", None, "None"),
    ("seeds", [4294967296], "4294967296"),
    ("status", [], "one per seed"),
    ("status", None, "None"),
    ("matrix", [[[2.0]]], "[0, 1]"),
    ("matrix", [[[-0.5]]], "[0, 1]"),
    ("matrix", [[0.5]], "[S, T, T]"),
    ("matrix", "text", "numbers"),
    ("matrix", None, "[S, T, T]"),
    ("baseline", [[1.5]], "[0, 1]"),
    ("baseline", [0.5], "[S, T]"),
    ("task_names", [], "not be empty"),
    ("task_names", "abc", "abc"),
    ("tasks_done", 2, "2"),
    ("tasks_done", -1, "-1"),
    ("tasks_done", 0.5, "0.5"),
    ("tasks_done", "x", "x"),
    ("steps", -1, "-1"),
    ("steps", 1.5, "1.5"),
    ("steps", None, "None"),
    ("wall_s", -1.0, "-1"),
    ("wall_s", "x", "x"),
    ("versions", [], "[]"),
    ("report", [], "[]"),
    ("report", {"taken": []}, "[]"),
    ("report", {"taken": {"a": [[1, 2]]}}, "[S, T]"),
    ("notes", 3, "3"),
    ("sessions", [3], "3"),
    ("scenario", "both", "both"),
    ("config_name", 3, "3"),
    ("row", None, "None"),
]
