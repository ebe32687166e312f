"""Every option of the reinforcement-learning scripts acts, or is refused by name, before anything
is written. (How values alone are wrong is in test_scripts.py.)"""

import shutil
from dataclasses import fields, replace

import pytest
from networks import built
from script_client import check_refusal

from agents.impala import impala_actor
from agents.parents import SHIPPED, save_actor
from agents.ppo import PPOSettings
from configs.agent import AgentArgs
from configs.moving import MovingArgs
from configs.ppo import PRESETS, ParentArgs
from configs.procgen import PAPER_SIGMA, ProcgenArgs
from configs.sweep import SweepArgs
from configs.workers import WorkerArgs
from envs.games import GAMES
from evo_subnets import Search, singles

BIGFISH = SHIPPED / "bigfish" / "policy.safetensors"
IDLE = [
    # script, option, with which others, what is said
    ("procgen_ensemble", "--target-kl 0.02", "--sigma 0.1",
     "target_kl has no effect with --sigma 0.1: leave it out (got 0.02)"),
    ("procgen_ensemble", "--step-kl 0.1", "", "step_kl has no effect with one generation"),
    ("procgen_ensemble", "--recombine best", "--generations 1", "recombine has no effect with one"),
    ("procgen_ensemble", "--total-timesteps 64", "", "--total-timesteps has no effect with"),
    ("procgen_ensemble", "--checkpoint-every 64", f"--parent {BIGFISH}",
     f"--checkpoint-every has no effect with {BIGFISH}, which is trained"),
    ("procgen_ensemble", "--ppo.frame-stack 1 --ppo.target-kl None", "--parent auto",
     "--ppo.target-kl, --ppo.frame-stack has no effect with"),
    ("procgen_ensemble", "--gpus-per-worker 0.5", "", "--gpus-per-worker and --ray-address need"),
    ("procgen_ensemble", "--ray-address auto", "--workers 0", "need --workers"),
    ("population_sweep", "--parent train", "", "a sweep needs a parent"),
    ("population_sweep", "--mode hard", "--env bigfish", "there is none of bigfish (hard)"),
    ("population_sweep", "--ensemble-size 20", "--population-sizes 4 16",
     "ensemble_size 20 exceeds every population of 4, 16"),
    ("population_sweep", "--sigmas 0.1 0.2 0.1", "", "sigmas has 0.1 twice"),
    ("population_sweep", "--densities 0.2 0.2", "", "densities has 0.2 twice"),
    ("population_sweep", "--population-sizes 4 4", "--ensemble-size 2",
     "population_sizes has 4 twice"),
    ("population_sweep", "--gpus-per-worker 0.5", "", "need --workers"),
    ("population_sweep", "--seed -1", "", "seed must be an int in 0..2**31 - 1, got -1"),
    ("agent_ensemble", "--env Blackjack-v1", "", "needs observations of one shape"),
    ("agent_ensemble", "--seed -1", "", "seed must be an int in 0..2**31 - 1, got -1"),
    ("agent_ensemble", "--algorithm PPO", "",
     "algorithm has no effect with a parent that is trained here (no --agent)"),
    ("agent_ensemble", "--normalization a.pkl", "", "normalization has no effect with a parent"),
    ("agent_ensemble", "--frame-stack 4", "", "frame_stack has no effect with a parent"),
    ("agent_ensemble", "--total-timesteps 9", "--agent a.zip",
     "total_timesteps has no effect with --agent a.zip"),
    ("procgen_ensemble", "--further-training --parent train", "",
     "needs a --parent that is trained"),
    ("procgen_ensemble", "--further-training --parent nowhere/policy.safetensors", "",
     "needs its card.json beside it"),
    ("procgen_ensemble", "--validation-levels 900 101", "", "900 101 hold levels of the test"),
    ("procgen_ensemble", "--validation-levels 0 0", "", "count"),
    ("agent_ensemble", "--target-kl 0.1", "--sigma 0.1", "target_kl has no effect with --sigma"),
    ("agent_ensemble", "--step-kl 0.1", "", "step_kl has no effect with one generation"),
    ("agent_ensemble", "--gpus-per-worker 0.5", "", "need --workers"),
    ("train_parent", "cpu --seed -1", "", "seed must be an int in 0..2**31 - 1, got -1"),
    ("train_parent", "cpu --ppo.gamma 2", "", "gamma must be in 0..1, got 2"),
    ("train_parent", "cpu --ppo.learning-rate 0", "", "learning_rate must be positive, got 0"),
    ("train_parent", "cpu --ppo.widths 0", "", "widths must be positive numbers of channels"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "option", "others", "words"), IDLE, ids=[f"{case[0]} {case[1]}" for case in IDLE]
)
def test_an_option_that_would_do_nothing_is_refused(
    server, tmp_path, script, option, others, words
):
    result = server.run(script, *option.split(), *others.split(), "--out", tmp_path / "out")
    check_refusal(result, 2, words)
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_the_same_options_act_where_there_is_something_to_do():
    """With the others that the refusals ask for."""
    args = ProcgenArgs(
        parent="train", total_timesteps=64, checkpoint_every=32, ppo=PPOSettings(frame_stack=1)
    )
    assert args.training == {
        "total_timesteps": 64, "checkpoint_every": 32, "mode": "easy", "seed": 0,
    }  # fmt: skip
    assert ProcgenArgs(env="maze", total_timesteps=64).training["total_timesteps"] == 64
    assert ProcgenArgs(mode="hard", total_timesteps=64).parent_file is None
    assert ProcgenArgs(target_kl=0.1).target == 0.1
    assert ProcgenArgs().target == 0.2
    assert ProcgenArgs().training["total_timesteps"] == 10_000_000
    assert ProcgenArgs().training["checkpoint_every"] == 50_000
    assert ProcgenArgs(workers=WorkerArgs(2, ray_address="auto")).workers.chosen.workers == 2


OTHER = {
    "env": "starpilot", "parent": "mine.zip", "population_size": 20, "sampler": "singles",
    "ensemble_size": 4, "density": 0.4, "sigma": 0.1, "target_kl": 0.1, "validation_episodes": 7,
    "test_episodes": 7, "held_out_episodes": 7, "evolution": MovingArgs(generations=2),
    "deterministic": True, "mode": "hard", "seed": 5, "device": "cpu",
    "validation_levels": (200, 300), "paper": True, "distill": True, "further_training": True,
    "reevaluate": 12,
    "sigmas": (0.5,), "densities": (0.7,), "population_sizes": (12,),
}  # fmt: skip
"""Another value of each option that results depend on."""
SAME_RESULTS = {"video", "out", "overwrite", "workers", "checkpoint_every"}
IN_TRAINING = {"total_timesteps": 64, "ppo": PPOSettings(frame_stack=1)}


@pytest.mark.parametrize("kind", [ProcgenArgs, SweepArgs])
def test_a_journal_knows_every_option_that_results_depend_on(kind):
    usual = kind()
    for option in fields(kind):
        if option.name in SAME_RESULTS:
            assert option.name not in usual.asked
        elif option.name in IN_TRAINING:
            with_it = {option.name: IN_TRAINING[option.name]}
            assert kind(parent="train", **with_it).asked != kind(parent="train").asked
        elif option.name == "mode" and kind is SweepArgs:
            assert kind(parent="mine.zip", mode="hard").asked["mode"] == "hard"
        else:
            other = replace(usual, **{option.name: OTHER[option.name]})
            assert other.asked != usual.asked, option.name


def test_the_papers_settings_are_one_option():
    """Whitaker 2023, section 4.3.4 and table 4.2, whose mean sigma is printed as 0.04."""
    search = ProcgenArgs(env="maze", paper=True).search
    assert search == Search(8, 8, 0.04, 0.2, 0, singles)
    assert set(PAPER_SIGMA) == set(GAMES)
    assert round(sum(PAPER_SIGMA.values()) / 16, 2) == 0.04
    again = replace(ProcgenArgs(env="maze", paper=True), seed=3)
    assert again.search.sigma == 0.04
    for other in ({"sigma": 0.1}, {"density": 0.5}, {"population_size": 16, "ensemble_size": 4}):
        with pytest.raises(ValueError, match="leave out one of them"):
            ProcgenArgs(paper=True, **other)
    with pytest.raises(ValueError, match="target_kl has no effect with --paper"):
        ProcgenArgs(paper=True, target_kl=0.1)


def test_every_option_of_a_search_reaches_it():
    args = ProcgenArgs(
        population_size=20, ensemble_size=4, density=0.4, sigma=0.1, seed=5, sampler="singles"
    )
    search = args.search
    assert (search.population_size, search.ensemble_size, search.seed) == (20, 4, 5)
    assert (search.density, search.sigma, search.sampler.__name__) == (0.4, 0.1, "singles")
    assert AgentArgs(population_size=4, ensemble_size=2, seed=3).search.seed == 3


def test_every_preset_trains_what_it_says():
    for name, (_, args) in PRESETS.items():
        assert isinstance(args, ParentArgs), name
        assert args.training["total_timesteps"] == args.total_timesteps


# --- refused when the parent is known, and still before anything is written

TINY = ["--population-size", 4, "--ensemble-size", 2]
GRID = ["--population-sizes", 4, "--ensemble-size", 2, "--densities", 0.5]


@pytest.fixture
def maze(tmp_path):
    path = tmp_path / "maze.safetensors"
    actor = built(lambda: impala_actor((2, 2, 2), 2))
    save_actor(path, actor, about={"game": "maze", "mode": "hard"})
    return path


LATER = [
    ("procgen_ensemble", ["--sigma", "1e30", *TINY], "sigma 1e+30 is "),
    ("procgen_ensemble", ["--sigma", "1e30", "--parent", "train", *TINY], "sigma 1e+30 is "),
    ("procgen_ensemble", ["--sigma", 100, *TINY], "nothing of the parent would be left"),
    ("population_sweep", ["--sigmas", 0.01, "1e30", *GRID], "sigma 1e+30 is "),
    ("procgen_ensemble", ["--env", "starpilot", "--parent", BIGFISH],
     "is a parent of env bigfish, this run asks for starpilot: use --env bigfish"),
    ("population_sweep", ["--env", "starpilot", "--parent", BIGFISH], "use --env bigfish"),
    ("procgen_ensemble", ["--mode", "hard", "--parent", BIGFISH],
     "is a parent of mode easy, this run asks for hard: use --mode easy"),
    ("procgen_ensemble", ["--parent", "nowhere.safetensors"], "there is no such file"),
    ("population_sweep", ["--parent", "nowhere.zip"], "there is no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "options", "words"), LATER)
def test_a_refused_run_leaves_nothing_behind(server, tmp_path, script, options, words):
    result = server.run(script, *options, "--out", tmp_path / "out")
    check_refusal(result, 1, words)
    assert not list(tmp_path.iterdir())


def test_a_folder_does_not_remember_a_refusal(server, maze, tmp_path):
    """The corrected command runs where the wrong one was refused."""
    out = tmp_path / "out"
    command = ["population_sweep", "--env", "maze", "--parent", maze, "--sigmas", 0.1, *GRID,
               "--validation-episodes", 1, "--out", out]  # fmt: skip
    check_refusal(server.run(*command), 1, "is a parent of mode hard", "use --mode hard")
    assert not out.exists()
    easy = tmp_path / "bigfish.safetensors"
    shutil.copy(BIGFISH, easy)
    wrong = ["--env", "fruitbot", "--parent", easy]
    check_refusal(server.run(*command, *wrong), 1, "use --env bigfish")
    assert not out.exists()
    result = server.run(*command, "--env", "maze", "--parent", maze, "--mode", "hard")
    assert result.status == 0, result.stderr


@pytest.mark.parametrize("out", ["", "."])
@pytest.mark.parametrize(
    ("script", "options"),
    [("procgen_ensemble", []), ("population_sweep", []), ("train_parent", ["cpu"])],
)
def test_the_current_folder_is_no_output_folder(server, script, options, out):
    result = server.run(script, *options, "--out", out)
    check_refusal(result, 1, "a run needs a folder of its own")
    assert result.stdout == ""
