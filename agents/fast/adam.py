"""Adam with TensorFlow's epsilon, which the reference PPO was trained with."""

from typing import Any

import torch


class TensorFlowAdam(torch.optim.Adam):
    """Adam that adds epsilon to the root of the second moment **before** its bias is corrected.

    That is Kingma & Ba 2015's "epsilon hat", section 2, and what `tf.train.AdamOptimizer` does.
    torch adds it after the correction, so here torch's epsilon is `eps` over the root of the
    correction: 32 times `eps` in the first step, 1.5 times in the 600th. Weights whose gradients
    are small move less until then.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epsilons = [float(group["eps"]) for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:
        """As in torch."""
        for group, epsilon in zip(self.param_groups, self.epsilons, strict=True):
            taken = max((float(self.state[p]["step"]) for p in self._seen(group)), default=0.0)
            group["eps"] = epsilon / (1 - group["betas"][1] ** (taken + 1)) ** 0.5
        return super().step(closure)

    def _seen(self, group: dict[str, Any]) -> list[torch.Tensor]:
        return [weight for weight in group["params"] if "step" in self.state.get(weight, {})]
