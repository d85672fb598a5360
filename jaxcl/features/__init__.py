"""What a network has learned: pure functions of feature matrices, gradients and losses.

A feature matrix X [N, D] holds a layer's outputs for N examples, in evaluation mode.
Functions take one matrix or one pair. For several seeds they are vmapped or called one
after another, also inside `jax.shard_map` (see `jaxcl.ops.decompositions`).
"""

from jaxcl.features.conflict import cosine
from jaxcl.features.drift import feature_drift, weight_drift
from jaxcl.features.forgetting import lost_share, representation_forgetting
from jaxcl.features.landscape import barrier, loss_along_line
from jaxcl.features.lda import lda
from jaxcl.features.noise import NoiseKept, noise_kept
from jaxcl.features.plane import Place, Plane, place_in, plane_through, point_of
from jaxcl.features.probes import Probe, accuracy, multinomial_probe, ncm, ridge_probe
from jaxcl.features.rank import (
    Ranks,
    dormant_share,
    effective_rank,
    energy_rank,
    ranks,
    singular_values,
    stable_rank,
)
from jaxcl.features.saliency import input_gradient, occlusion, rank_correlation
from jaxcl.features.similarity import linear_cka

__all__ = [
    "NoiseKept",
    "Place",
    "Plane",
    "Probe",
    "Ranks",
    "accuracy",
    "barrier",
    "cosine",
    "dormant_share",
    "effective_rank",
    "energy_rank",
    "feature_drift",
    "input_gradient",
    "lda",
    "linear_cka",
    "loss_along_line",
    "lost_share",
    "multinomial_probe",
    "ncm",
    "noise_kept",
    "occlusion",
    "place_in",
    "plane_through",
    "point_of",
    "rank_correlation",
    "ranks",
    "representation_forgetting",
    "ridge_probe",
    "singular_values",
    "stable_rank",
    "weight_drift",
]
