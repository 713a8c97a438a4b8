"""The Beta function and the means of a Beta distribution's logarithms."""

from __future__ import annotations

import torch as th


def log_beta_function(alpha: th.Tensor, beta: th.Tensor) -> th.Tensor:
    """
    Compute ``log B(alpha, beta) = lgamma(alpha) + lgamma(beta) - lgamma(alpha + beta)``.

    :param alpha: of any shape
    :param beta: of the same shape
    :return: of the same shape
    """
    return th.lgamma(alpha) + th.lgamma(beta) - th.lgamma(alpha + beta)


def mean_logs(alpha: th.Tensor, beta: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Compute ``E[log u] = psi(alpha) - psi(alpha + beta)`` and ``E[log(1 - u)]``, which are also the gradient of ``log B``.

    :param alpha: of any shape
    :param beta: of the same shape
    :return: both, of the same shape
    """
    of_sum = th.digamma(alpha + beta)
    return th.digamma(alpha) - of_sum, th.digamma(beta) - of_sum
