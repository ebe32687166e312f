"""A small parent for any environment, where there is no agent yet."""

import io
from pathlib import Path

import gymnasium
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space

from evo_subnets import files
from evo_subnets.rl.zips import algorithm_of, generators_kept, read_agent
from evo_subnets.streams import check_seed

NUM_ENVS, STEPS = 8, 128


def train_small(env: str, *, steps: int, seed: int, path: Path) -> int:
    """The environment steps of a PPO that is trained with stable-baselines3's usual options, on the
    CPU, and written to a zip, whole or not at all.

    The policy is one for dictionaries, pictures or vectors, as the observations are.
    """
    seed = check_seed(seed, bits=31)
    with generators_kept():
        envs = make_vec_env(env, NUM_ENVS, seed=seed)
        space = envs.observation_space
        if isinstance(space, gymnasium.spaces.Dict):
            policy = "MultiInputPolicy"
        else:
            policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
        agent = PPO(policy, envs, n_steps=STEPS, batch_size=256, seed=seed, device="cpu")
        agent.set_logger(Logger(None, []))  # the default one leaves a folder behind
        agent.learn(steps)
        envs.close()
        data = io.BytesIO()
        agent.save(data)
    files.write_atomically(path, data.getvalue())
    return agent.num_timesteps


def check_further(path: Path, *, algorithm: str | None, normalized: bool, frames: int) -> None:
    """A ValueError where an agent's training cannot go on from its zip alone."""
    name = algorithm_of(path) if algorithm is None else algorithm
    if name not in ("PPO", "A2C"):
        why = f"{name} learns from what its zip does not hold"
    elif normalized:
        why = "the scale of its rewards is in a VecNormalize"
    elif frames > 1:
        why = "its frames were stacked outside"
    else:
        return
    raise ValueError(f"{path} cannot be trained further: {why}; leave out --further-training")


def train_further(source: Path, env: str, *, steps: int, seed: int, path: Path) -> int:
    """A control: writes the PPO or A2C agent of a zip after so many more steps, on the CPU, with
    its own options; the environment steps that it has taken by then."""
    seed = check_seed(seed, bits=31)
    agent = read_agent(source)
    assert isinstance(agent, PPO | A2C)
    with generators_kept():
        envs = make_vec_env(env, agent.n_envs, seed=seed)
        agent.set_env(envs)
        agent.set_random_seed(seed)
        agent.set_logger(Logger(None, []))
        agent.learn(steps, reset_num_timesteps=False)
        envs.close()
        data = io.BytesIO()
        agent.save(data)
    files.write_atomically(path, data.getvalue())
    return agent.num_timesteps
