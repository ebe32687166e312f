"""PPO: FastPPO against stable-baselines3's PPO, in one process, in alternation.

    python benchmarks/ppo.py
    python benchmarks/ppo.py --widths 32 64 128 --rollout-steps 4 --minibatches 1

Timed is `learn` for one rollout and one update of three epochs. The sides: stable-baselines3 with
the Impala network as its users write it (channels first), with this project's (channels last), and
FastPPO. The script first checks on a common rollout that all sides have the same losses and
gradients, and after several updates the same weights.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from agents.fast.ppo import FastPPO
from agents.impala import COBBE_WIDTHS, ImpalaCNN
from agents.ppo import PPOSettings, make_ppo, make_training_env
from benchmarks.timing import Device, alternate, comparison, publish, ratios, spread
from configs.ppo import CPU
from envs.procgen import ProcgenSimulator
from evo_subnets.engines import keep_freed_memory

from stable_baselines3 import PPO  # isort: skip  # after agents, which silences gym
from stable_baselines3.common.buffers import RolloutBuffer  # isort: skip
from stable_baselines3.common.logger import Logger  # isort: skip

PLAIN, OURS_IN_SB3, FAST = "stable-baselines3", "stable-baselines3, our network", "FastPPO"
LOSSES = ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction",
          "loss")  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Times PPO's rollouts and updates."""

    game: str = "coinrun"
    """Procgen game."""
    widths: tuple[int, ...] = COBBE_WIDTHS
    """Channels of the Impala blocks."""
    num_envs: int = 64
    """Environments."""
    rollout_steps: int = 16
    """Steps of each environment in a round."""
    minibatches: int = 2
    """Minibatches of a rollout."""
    rounds: int = 5
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    device: Device = "cpu"
    """Where the networks are trained."""
    save: bool = False
    """Add the outcome to benchmarks/results/ppo.md."""


class PlainImpala(ImpalaCNN):
    """The same network, in whatever layout its input has."""

    def forward(self, observations: Tensor) -> Tensor:
        x = self.blocks(observations)
        return F.relu(self.hidden(F.relu(x).flatten(1)))


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # sides must agree to float32's rounding
    keep_freed_memory()
    settings = replace(
        CPU, widths=args.widths, num_envs=args.num_envs, rollout_steps=args.rollout_steps,
        minibatches=args.minibatches, target_kl=None, value_loss="clipped",
    )  # fmt: skip
    env = make_training_env(args.game, settings)
    agents = make_agents(env, settings, args.device)
    agreement = check(agents)
    steps = settings.num_envs * settings.rollout_steps
    jobs: dict[str, Callable[[], object]] = {
        name: lambda agent=agent: agent.learn(steps, reset_num_timesteps=False)  # type: ignore[misc]
        for name, agent in agents.items()
    }
    seconds = alternate(jobs, args.rounds)
    rates = {name: [steps / each for each in times] for name, times in seconds.items()}
    text = "\n\n".join(
        [
            f"{args.game}, Impala {'-'.join(map(str, args.widths))}, {args.num_envs} environments, "
            f"rollouts of {steps} steps, {args.minibatches} minibatches, {settings.epochs} epochs, "
            f"{args.device}, {args.threads} threads, {args.rounds} alternations.",
            agreement,
            comparison(seconds, PLAIN, "ms a rollout and update", 1e3, 0),
            "\n".join(f"{name}: {spread(rate, 0)} steps a second" for name, rate in rates.items()),
            f"FastPPO over {OURS_IN_SB3}: {spread(ratios(seconds[OURS_IN_SB3], seconds[FAST]))}",
            parts(agents[FAST], settings, seconds[FAST]),
        ]
    )
    env.close()
    publish(__file__, text, args.save)


def make_agents(env: object, settings: PPOSettings, device: str = "cpu") -> dict[str, PPO]:
    """The sides, with the same weights, on one environment."""
    model = make_ppo(env, settings, seed=0, device=device, agent=FastPPO)  # type: ignore[arg-type]
    agents: dict[str, PPO] = {}
    for name, kind, network in (
        (PLAIN, PPO, PlainImpala),
        (OURS_IN_SB3, PPO, ImpalaCNN),
        (FAST, FastPPO, ImpalaCNN),
    ):
        agents[name] = make_ppo(env, settings, seed=0, device=device, agent=kind, network=network)  # type: ignore[arg-type]
        agents[name].policy.load_state_dict(model.policy.state_dict())
        agents[name].set_logger(Logger(None, []))
    return agents


def check(agents: dict[str, PPO]) -> str:
    """Largest differences on a rollout of the first side's; an AssertionError where losses or
    gradients differ by more than 1e-5 on a CPU. A GPU adds the 2,048 pictures' parts up in an order
    of its own: 8e-5 was seen there."""
    source = agents[PLAIN]
    source.train = lambda: None  # type: ignore[method-assign]
    source.learn(source.n_steps * source.n_envs)
    del source.train
    weights, rollout = copy.deepcopy((source.policy.state_dict(), source.rollout_buffer))
    found = {}
    for name, agent in agents.items():
        copy_rollout(rollout, agent)
        agent.policy.load_state_dict(weights)
        found[name] = outcome(agent)
        agent.n_epochs = CPU.epochs
        agent.policy.load_state_dict(weights)
    lines = []
    for name in (OURS_IN_SB3, FAST):
        differences = [largest(a, b) for a, b in zip(found[PLAIN], found[name], strict=True)]
        rounding = 1 if agent.device.type == "cpu" else 30
        assert max(differences[:2]) < 1e-5 * rounding, (name, differences)
        # Adam's first steps are as long for a gradient of rounding errors as for any other
        assert differences[2] < 1e-4 * rounding, (name, differences)
        losses, gradients, after = (f"{each:.0e}" for each in differences)
        lines.append(
            f"{name}: losses differ by {losses}, gradients by {gradients} of the largest, weights "
            f"after an epoch by {after}"
        )
    return "\n".join(lines)


def copy_rollout(stored: RolloutBuffer, agent: PPO) -> None:
    """The steps of a rollout into an agent's buffer."""
    buffer = agent.rollout_buffer
    buffer.reset()
    for step in range(stored.buffer_size):
        buffer.add(
            stored.observations[step], stored.actions[step], stored.rewards[step],
            stored.episode_starts[step], torch.from_numpy(stored.values[step]),
            torch.from_numpy(stored.log_probs[step]),
        )  # fmt: skip
    buffer.advantages, buffer.returns = stored.advantages.copy(), stored.returns.copy()


def outcome(agent: PPO) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Losses of the last minibatch's update, its gradients, and the weights afterwards."""
    agent.n_epochs = 1
    agent.policy.optimizer.state.clear()
    np.random.seed(0)
    agent.train()
    logged = agent.logger.name_to_value
    losses = [torch.tensor(float(logged[f"train/{name}"])) for name in LOSSES]
    parameters = list(agent.policy.parameters())
    gradients = [weight.grad.clone() for weight in parameters if weight.grad is not None]
    after = [weight.detach().clone() for weight in parameters]
    agent.policy.optimizer.state.clear()
    return losses, gradients, after


def largest(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest difference, in units of the largest value where that is above one."""
    scale = max(1.0, max(each.abs().max().item() for each in first))
    pairs = zip(first, second, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs) / scale


def parts(agent: PPO, settings: PPOSettings, seconds: list[float]) -> str:
    """What the simulator and the rollout's network take of a round."""
    simulator = ProcgenSimulator("coinrun", settings.num_envs)
    draw = np.random.default_rng(0)
    actions = draw.integers(0, 15, (settings.rollout_steps, settings.num_envs))

    def play() -> None:
        for each in actions:
            simulator.step(each)

    played = alternate({"play": play}, len(seconds))["play"]
    simulator.close()
    share = [100 * each for each in ratios(played, seconds)]
    return f"The simulator's stepping would take {spread(share, 1)} % of FastPPO's time."


if __name__ == "__main__":
    main(tyro.cli(Args))
