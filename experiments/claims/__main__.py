r"""Shows or refutes claims about continual learning, one after another.

python -m experiments.claims [--claim=NAME,...] [--setting=quick|toy|full] \
    [--workdir=DIR] [--runs=PATTERN,...] [--recorded]

Runs the claims' missing runs under the workdir (by default results/claims/SETTING) and
resumes interrupted ones; claims share their runs. After every run the claim's page,
figures and JSON are written to WORKDIR/claims/NAME, and for ``toy`` and ``full`` also
to experiments/results/claims. Prints the verdicts (held, did not hold, undecided) with
effects, intervals and p-values.

quick  digits and small slices, for CI: it decides nothing
toy    real data on two CPU cores
full   the papers' settings, for an accelerator

With ``--runs`` only the runs whose names match a pattern are run, as in
``--runs="permuted_*,split_mnist_bp"``. Effects that need other runs are "not yet run".
With ``--recorded`` what experiments/results/claims has counts as run: trials, runs,
measurements. A recorded page is never replaced by one with fewer runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import filter as filter_
from fnmatch import fnmatch
from pathlib import Path

from absl import flags

from jaxcl.training.protocol import Interrupted

from .. import launch
from ..reporting.claim_page import in_words
from ..runs import machine
from .carry import carry_out, found
from .claim import SETTINGS
from .pages import record, record_trials, write
from .recorded import RECORDED
from .report import report
from .table import CLAIMS

NO_RUN = "none"


def main(argv: Sequence[str]) -> int:
    names = _CLAIMS.value or list(CLAIMS)
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise machine.UsageError(
            f"unknown claim {unknown[0]!r}; known: {', '.join(CLAIMS)}"
        )
    setting = _SETTING.value
    known = {run.name for name in names for run in CLAIMS[name].runs(setting)}
    unused = [p for p in _RUNS.value if p != NO_RUN and not filter_(known, p)]
    if unused:
        raise machine.UsageError(
            f"no run of {', '.join(names)} is called {unused[0]!r}; runs: "
            f"{', '.join(sorted(known))}; {NO_RUN}: only the pages are written"
        )
    recorded = _recorded(setting)
    workdir = launch.folder(_WORKDIR.value, "claims", setting)
    machine.writable(workdir)
    for name in names:
        claim = CLAIMS[name]
        runs = claim.runs(setting)
        outcomes = found(runs, workdir, recorded)
        for run in runs:
            chosen = any(fnmatch(run.name, pattern) for pattern in _RUNS.value)
            if run.name in outcomes or not chosen:
                continue
            try:
                carry_out(run, workdir, recorded)
            except Interrupted:
                if machine.is_main_process():
                    record_trials(setting, workdir)
                return launch.stopped(workdir)
            # One run may have several names in a claim.
            outcomes = found(runs, workdir, recorded)
            if machine.is_main_process():
                write(claim, setting, outcomes, workdir)
                record(claim, setting, outcomes, workdir)
        if machine.is_main_process():
            write(claim, setting, outcomes, workdir)
            lost = record(claim, setting, outcomes, workdir)
            print(in_words(report(claim, setting, outcomes)))
            if lost:
                print(
                    f"The recorded page of {name} stays as it is: it has runs that "
                    f"{workdir} lacks ({', '.join(lost)}); --recorded takes them in, "
                    "if their settings are still the chosen ones."
                )
    return 0


def _recorded(setting: str) -> Path | None:
    """Where to find recorded runs, if the command line asks for them."""
    if not _RECORDED.value:
        return None
    if setting == "quick":
        raise machine.UsageError("--recorded needs --setting=toy or full, got quick")
    if not RECORDED.is_dir():
        raise machine.UsageError(f"--recorded needs a clone: there is no {RECORDED}")
    return RECORDED


if __name__ == "__main__":
    _CLAIMS = launch.define_list("claim", None, "Names; by default all.")
    _SETTING = flags.DEFINE_enum("setting", "quick", SETTINGS, "How large.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "By default results/claims/….")
    _RECORDED = flags.DEFINE_bool("recorded", False, "Recorded runs count as run.")
    _RUNS = launch.define_list("runs", ["*"], "Patterns; by default all.")
    launch.run(main)
