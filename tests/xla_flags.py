"""Flags with which XLA compiles faster and less well: for tests, not for timings.

export XLA_FLAGS="$(python -m tests.xla_flags)"

XLA ends a process that gives it a flag which it does not know, so that the flags depend
on its version.
"""

from importlib.metadata import version

# A program in 32 parts, as by default, takes a tenth more of the cores, which other
# processes use.
FASTER = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
EMITTERS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
"""Whether XLA knows ``xla_cpu_use_fusion_emitters``: with JAX 0.11 it does not."""

if EMITTERS:
    FASTER += " --xla_cpu_use_fusion_emitters=false"

if __name__ == "__main__":
    print(FASTER)
