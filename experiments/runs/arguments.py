"""Words of a command line, before its flags are parsed."""

from __future__ import annotations


def of_model(argv: list[str]) -> list[str]:
    """A command line that names a model, with all its fields as --model=NAME=VALUE.

    The config's own model has other fields: they cannot be parsed by its.
    """
    model = "config.model."
    if not any(word.lstrip("-").startswith(f"{model}name") for word in argv[1:]):
        return argv
    given = []
    for word in list(argv[1:]):
        name = word.partition("=")[0].lstrip("-")
        if word.startswith("-") and name.startswith(model):
            argv, value = taken(argv, name)
            given.append(f"--model={name.removeprefix(model)}={value}")
    return [*argv, *given]


def taken(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    """A command line without a flag, and the flag's value: "--x=1" or "--x 1"."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in (f"-{flag}", f"--{flag}"):
            after = i + 1 if equals else i + 2
            value = value if equals else "".join(argv[i + 1 : after])
            return argv[:i] + argv[after:], value
    return argv, None
