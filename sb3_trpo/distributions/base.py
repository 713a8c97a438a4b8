r"""
What the trust region and the rollout need to know about one kind of action distribution.

SB3's ``Distribution`` already has ``log_prob``, ``entropy``, ``sample`` and ``mode``. A :class:`DistributionKind` adds what
SB3 lacks: the parameters z as tensors, the joint KL divergence and the Fisher metric. These three are enough to train. A kind
may also have a :class:`Head`, which computes z from the output of a plain network. With a head, Fisher products need no
autograd graph, and the fast loop collects the rollouts.

=======  =========================================================================
output   what the last layer of the actor returns, ``(n_states, n_outputs)``
psi      parameters of the head itself: a standard deviation, or none
z        parameters of the distribution at a state, a function of both
M        the Fisher metric, the Hessian of KL(old || .) in z
u        a cotangent of z
=======  =========================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_trpo.distributions.policy import AnyDistributionPolicy
from sb3_trpo.numerics.gauss_newton import Metric, Outputs

NAN_ADVICE = (
    "The policy gave NaN in place of an action. If its observations are finite, its weights are not: load the last good ones, "
    "and lower target_kl or learning_rate."
)


class DistributionKind(ABC):
    """
    One kind of action distribution. All quantities are for the joint action: sums over its dimensions.

    Instances have no state, unless :meth:`bound_to` makes them. They are listed in ``registry.py``, or in the class attribute
    ``distribution_kinds`` of an algorithm::

        class MyTRPO(TRPO):
            distribution_kinds = (*TRPO.distribution_kinds, MyKind())
    """

    distributions: ClassVar[tuple[type[Distribution], ...]]
    """The SB3 distributions of this kind. Their subclasses belong to it too, unless another kind lists them."""
    policies: ClassVar[tuple[type[BasePolicy], ...]] = (ActorCriticPolicy, AnyDistributionPolicy)
    """
    The policy classes that compute their distribution as :meth:`head` describes it.

    A policy gets a head only if it inherits every method between observation and distribution from one of them, unchanged.
    """

    def bound_to(self, distribution: object, find: Callable[[object], DistributionKind | None]) -> DistributionKind | None:
        """
        Find the kind of one distribution among :attr:`distributions`, for kinds that are made of others.

        :param distribution: the distribution
        :param find: finds the kind of another one, such as a part of it
        :return: the kind; ``None`` if there is none after all. Most kinds are the same for all their distributions
        """
        return self

    @abstractmethod
    def parameters(self, distribution: Distribution) -> Outputs:
        """
        Read z from a distribution.

        :param distribution: one of :attr:`distributions`
        :return: tensors of shape ``(n_states, ...)``, with the autograd graph that leads to the policy's parameters
        """

    @abstractmethod
    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """
        Compute KL(old || new) at each state.

        :param old: z of the old policy
        :param new: z of the new policy
        :return: shape ``(n_states,)``, in nats
        """

    @abstractmethod
    def fisher_metric(self, z: Outputs) -> Metric:
        """
        Build ``dz -> M dz``.

        :param z: the parameters at which to take the metric
        :return: the product, which returns a tensor like each of ``z``
        """

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """
        Describe how z is computed from the output of the policy's last layer.

        :param policy: its ``action_dist`` is one of :attr:`distributions` or a subclass
        :return: the head, on the policy's own tensors; ``None`` leaves the policy to autograd and to SB3's rollout loop
        """
        return None

    def diagnostics(self, policy: BasePolicy) -> dict[str, float]:
        """
        Measure what only policies of this kind have.

        :param policy: any policy
        :return: values by name, logged as ``train/<name>``; empty for policies of other kinds
        """
        return {}

    def spread(self, distribution: Distribution) -> th.Tensor | None:
        """
        Measure how far actions scatter, if this differs from state to state.

        :param distribution: one of :attr:`distributions`
        :return: standard deviations of the actions, whose mean is logged as ``train/std``; ``None`` if there are none to log
        """
        return None


class Head(ABC):
    """The last step of a plain actor: from the output of its layers, and psi, to the action distribution."""

    needs_last_hidden: ClassVar[bool] = False
    """Whether the output contains, behind that of the last layer, the input of the last layer."""

    @property
    def parameters(self) -> list[th.Tensor]:
        """Psi: the tensors besides the layers' that the distribution depends on."""
        return []

    def with_parameters(self, parameters: Sequence[th.Tensor]) -> Head:
        """
        Build the same head on other tensors.

        :param parameters: like :attr:`parameters`; the fast loop adds a leading dimension ``n_states``
        :return: the head
        """
        return self

    @abstractmethod
    def distribution(self, output: th.Tensor) -> Distribution:
        """
        Build the action distribution, bit for bit as the policy's own method does.

        :param output: shape ``(n_states, n_outputs)``
        :return: the distribution, possibly the same object at each call
        """

    @abstractmethod
    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """
        Differentiate z with respect to output and psi.

        :param output: the output at which to differentiate, shape ``(n_states, n_outputs)``
        :return: the products with the derivative. A part of dz that the Fisher metric maps to 0 may be left out
        """

    @abstractmethod
    def sampler(self, output: th.Tensor) -> Sampler:
        """
        Build a sampler for the fast rollout loop.

        :param output: CPU buffer of shape ``(n_envs, n_outputs)``, which the actor overwrites at each step
        :return: a sampler that reads the buffer and psi whenever it is called
        """


class HeadLinearization(NamedTuple):
    """
    Products with the derivative of z at one output.

    :param jvp: ``(d_output, [d_psi, ...]) -> dz``
    :param vjp: ``u -> (cotangent of output, [cotangent of psi, ...])``, the latter summed over states
    """

    jvp: Callable[[th.Tensor, Sequence[th.Tensor]], Outputs]
    vjp: Callable[[Outputs], tuple[th.Tensor, list[th.Tensor]]]


class Sampler(Protocol):
    """
    Samples actions as SB3's distribution does: the same bits from the same generator, with less overhead.

    There are two steps so that the second can be repeated: NumPy raises on a harmless underflow if the user asked it to.
    """

    def draw(self) -> None:
        """
        Draw the random numbers, from torch's global CPU generator.

        :raises ValueError: if psi has become NaN
        """
        ...

    def actions(self) -> np.ndarray:
        """
        Compute the actions from the numbers drawn, without changing any state.

        :return: a new array of shape ``(n_envs, n_dimensions)``, or of any shape that reshapes to it
        """
        ...
