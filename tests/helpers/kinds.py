"""KL divergence and Fisher metric of SB3's distributions, by the package's kinds."""

import torch as th

from sb3_trpo.distributions.registry import CORE_KINDS, kind_of


def kl(old, new):
    kind = kind_of(old, CORE_KINDS)
    return kind.kl(kind.parameters(old), kind.parameters(new))


def metric_matrices(distribution):
    """Apply the metric to every basis vector, shape ``(n, k, k)``."""
    kind = kind_of(distribution, CORE_KINDS)
    z = tuple(part.detach() for part in kind.parameters(distribution))
    sizes = [part.shape[1] for part in z]
    metric = kind.fisher_metric(z)
    bases = th.eye(sum(sizes), dtype=z[0].dtype).expand(len(z[0]), -1, -1)
    return th.stack([th.cat(metric(basis.split(sizes, 1)), 1) for basis in bases.unbind(1)], 2)
