"""The whole state of a problem's seeds after each of its tasks."""

import numpy as np

from jaxcl.training.problem import per_seed
from jaxcl.training.programs import make_programs
from jaxcl.training.seeds import SeedMesh


def after_each_task(problem):
    """A list of host `SeedState`s [S, ...], without patience and failures."""
    mesh = SeedMesh(len(problem.seeds), problem.seed_mode)
    programs, base = make_programs(problem, mesh), problem.stream.base
    mine = mesh.spread(per_seed(problem))
    base = mesh.share(base)
    seed, found = programs.init((), mine, ()), []
    for task in map(np.int32, range(problem.stream.num_tasks)):
        seed = programs.begin(seed, (mine, mesh.real), ())
        cache = programs.before_task(seed, mine, (base, task))
        for epoch in map(np.int32, range(problem.plan.epochs)):
            longest = np.int32(10**6)
            if mesh.mode == "vmap":
                sizes = np.diff(np.asarray(problem.stream.per_seed.train.offset))
                longest = np.int32(-(-sizes[:, task].max() // problem.plan.batch_size))
            shared = (base, task, epoch, longest)
            seed, _ = programs.epoch(seed, (mine, cache), shared)
        seed = programs.end(seed, mine, (base, task))
        found.append(mesh.gather(seed))
    return found
