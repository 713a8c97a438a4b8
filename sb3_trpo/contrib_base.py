"""Base of the algorithms that use sb3-contrib's policies and buffers."""

from __future__ import annotations

from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_trpo.trpo import TRPO


class ContribTRPO(TRPO):
    """TRPO with policies and buffers of sb3-contrib, which take other arguments than SB3's."""

    policy_base: ClassVar[type[BasePolicy]]
    """Class from which every policy must derive."""
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]]
    """Default buffers, for other observations than Dict and for Dict; a user's own must derive from the one that fits."""

    def _make_policy(self) -> ActorCriticPolicy:
        self._check_class("policy", self.policy_class, self.policy_base)
        policy: Any = self.policy_class(
            self._plain.observation_space, self._plain.action_space, self.lr_schedule, **self._policy_settings()
        )
        return policy  # type: ignore[no-any-return]  # sb3-contrib's maskable policy is no subclass of SB3's, but has its methods

    def _policy_settings(self) -> dict[str, Any]:
        """Return the keywords of the policy."""
        return {"use_sde": self.use_sde, **self.policy_kwargs}

    def _make_buffer(self, n_steps: int) -> RolloutBuffer:
        default = self.buffer_classes[isinstance(self.observation_space, spaces.Dict)]
        kind = self.rollout_buffer_class or default
        self._check_class("rollout_buffer_class", kind, default)
        settings: dict[str, Any] = {"gamma": self.gamma, "gae_lambda": self.gae_lambda, "n_envs": self.n_envs}
        return kind(
            n_steps,
            self._plain.observation_space,
            self._plain.action_space,
            device=self.device,
            **settings | self._buffer_settings(n_steps) | self.rollout_buffer_kwargs,
        )

    def _buffer_settings(self, n_steps: int) -> dict[str, Any]:
        """Return the keywords that the buffer takes beyond SB3's; called when the policy has been made."""
        return {}

    def _check_class(self, name: str, given: type, allowed: type) -> None:
        if not issubclass(given, allowed):
            raise ValueError(
                f"{name} is {given.__name__}, but {type(self).__name__} needs {allowed.__name__} or a subclass of it, for "
                f"{type(self.observation_space).__name__} observations. By name: {', '.join(self.policy_aliases)}."
            )
