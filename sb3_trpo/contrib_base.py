"""How policy and buffer are made for the algorithms that build on sb3-contrib's."""

from __future__ import annotations

from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy

from sb3_trpo.trpo import TRPO


class ContribTRPO(TRPO):
    """TRPO with a policy and a buffer of sb3-contrib's, which take other arguments than SB3's."""

    policy_base: ClassVar[type[BasePolicy]]
    """Class that every policy must derive from."""
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]]
    """Default buffers for observations without and with keys (Dict); a buffer of the user's must derive from them."""

    def _build(self) -> None:
        kind = self.buffer_classes[isinstance(self.observation_space, spaces.Dict)]
        self._check_class("policy", self.policy_class, self.policy_base)
        self._check_class("rollout_buffer_class", self.rollout_buffer_class or kind, kind)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self._policy_settings())
        self.policy = policy.to(self.device)  # type: ignore[assignment]  # sb3-contrib's maskable one is no subclass of SB3's
        settings: dict[str, Any] = {"gamma": self.gamma, "gae_lambda": self.gae_lambda, "n_envs": self.n_envs}
        self.rollout_buffer = (self.rollout_buffer_class or kind)(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            **settings | self._buffer_settings() | self.rollout_buffer_kwargs,
        )
        self._maybe_recommend_cpu()

    def _check_class(self, name: str, given: type, allowed: type) -> None:
        if not issubclass(given, allowed):
            raise ValueError(
                f"{name} is {given.__name__}, but {type(self).__name__} needs {allowed.__name__} or a subclass of it, for "
                f"{type(self.observation_space).__name__} observations. By name: {', '.join(self.policy_aliases)}."
            )

    def _policy_settings(self) -> dict[str, Any]:
        """Return the policy's arguments, spaces and learning rate apart."""
        return {"use_sde": self.use_sde, **self.policy_kwargs}

    def _buffer_settings(self) -> dict[str, Any]:
        """Return arguments that the buffer takes beyond SB3's; called after the policy has been made."""
        return {}
