"""Noticing that a policy's weights have changed while a copy of them is in use."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.utils.hooks import RemovableHandle

from sb3_trpo.numerics.torch_private import write_counts


class WeightWatch:
    """
    Notices changes to a policy's weights, at the cost of a few microseconds per check.

    It looks at three things, because no one of them is enough:

    - torch counts the in-place writes to a tensor (``load_state_dict``, most optimizers);
    - replacing ``tensor.data`` is not counted, but gives the tensor other memory (``vector_to_parameters``);
    - a fused optimizer's in-place writes are not counted either, so a hook counts its steps.

    A write through ``parameter.data`` into the same memory goes unnoticed.

    :param policy: the policy; its ``optimizer`` may be replaced at any time
    :param tensors: its weights
    """

    def __init__(self, policy: ActorCriticPolicy, tensors: Sequence[th.Tensor]) -> None:
        self._policy = policy
        self._tensors = tensors
        self._n_optimizer_steps = 0
        self._hook: RemovableHandle | None = None

    def start(self) -> None:
        """Notice changes from now on."""
        self.stop()
        self._optimizer = self._policy.optimizer
        self._hook = self._optimizer.register_step_post_hook(self._count_optimizer_step)
        self._seen = self._state()

    def stop(self) -> None:
        """Remove the hook from the optimizer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def has_changed(self) -> bool:
        """
        Check for changes.

        :return: whether the weights may have changed since :meth:`start`
        """
        return self._state() != self._seen

    def _count_optimizer_step(self, *_: object) -> None:
        self._n_optimizer_steps += 1

    def _state(self) -> tuple[int, bool, list[int], list[int]]:
        is_hooked = self._policy.optimizer is self._optimizer
        return self._n_optimizer_steps, is_hooked, write_counts(self._tensors), [*map(th.Tensor.data_ptr, self._tensors)]
