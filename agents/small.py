"""A small parent for any environment, where there is no agent yet."""

import io
from pathlib import Path

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space

from evo_subnets import files
from evo_subnets.rl.zips import generators_kept
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
