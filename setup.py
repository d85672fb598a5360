"""Which packages the distribution has; all else about it is in pyproject.toml.

The commands and the configs lie beside the library here and inside it once installed,
so that no `experiments` or `configs` of anybody else's is written over.
"""

from setuptools import find_namespace_packages, setup

library = find_namespace_packages(include=["jaxcl", "jaxcl.*"])
commands = find_namespace_packages(
    include=["experiments", "experiments.*"], exclude=["experiments.results*"]
)
packages = [*library, *(f"jaxcl.{name}" for name in commands), "jaxcl.configs"]

setup(
    packages=[name for name in packages if "__pycache__" not in name],
    package_dir={"jaxcl.experiments": "experiments", "jaxcl.configs": "configs"},
)
