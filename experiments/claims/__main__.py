r"""Shows or refutes claims about continual learning, one after the other.

python -m experiments.claims [--claim=NAME,...] [--setting=quick|toy|full] \
    [--workdir=DIR] [--runs=PATTERN,...]

Runs what is missing of the claims' runs under the workdir (by default
results/claims/SETTING) and takes up what was broken off; claims share their runs.
After every run the claim's page, figures and JSON are written to WORKDIR/claims/NAME,
and for ``toy`` and ``full`` to experiments/results/claims as well. Prints held, did not
hold or undecided, with effects, intervals and p-values.

quick  digits and small slices, for CI: it decides nothing
toy    real data on two CPU cores
full   the papers' settings, for an accelerator

``--runs`` leaves all runs for another day but those whose names match a pattern, as in
``--runs="permuted_*,split_mnist_bp"``; what needs the others is not yet run.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from absl import flags

from jaxcl.training.protocol import Interrupted

from .. import launch
from ..reporting.claim_page import in_words
from ..runs import machine
from .carry import carry_out, found
from .claim import SETTINGS
from .pages import record, write
from .report import report
from .table import CLAIMS


def main(argv: Sequence[str]) -> int:
    names = _CLAIMS.value or list(CLAIMS)
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise machine.UsageError(
            f"unknown claim {unknown[0]!r}; known: {', '.join(CLAIMS)}"
        )
    setting = _SETTING.value
    workdir = launch.folder(_WORKDIR.value, "claims", setting)
    machine.writable(workdir)
    for name in names:
        claim = CLAIMS[name]
        runs = claim.runs(setting)
        outcomes = found(runs, workdir)
        for run in runs:
            chosen = any(fnmatch(run.name, pattern) for pattern in _RUNS.value)
            if run.name in outcomes or not chosen:
                continue
            try:
                carry_out(run, workdir)
            except Interrupted:
                return launch.stopped(workdir)
            outcomes = found(runs, workdir)  # one run may be several of the claim
            if machine.is_main_process():
                write(claim, setting, outcomes, workdir)
                record(claim, setting, outcomes, workdir)
        if machine.is_main_process():
            write(claim, setting, outcomes, workdir)
            record(claim, setting, outcomes, workdir)
            print(in_words(report(claim, setting, outcomes)))
    return 0


if __name__ == "__main__":
    _CLAIMS = flags.DEFINE_list("claim", None, "Names; by default all.")
    _SETTING = flags.DEFINE_enum("setting", "quick", SETTINGS, "How large.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/claims/….")
    _RUNS = flags.DEFINE_list("runs", "*", "Patterns; by default all.")
    launch.run(main)
