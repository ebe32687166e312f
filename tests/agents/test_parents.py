"""Procgen parents: files, and where they come from."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import all_same_bits, built
from small_agents import GAME, channels_first, pictures

from agents import parents
from agents.impala import impala_actor
from agents.parents import load_actor, load_parent, parent_file, save_actor, train_parent
from agents.ppo import PPOSettings, train
from evo_subnets import Ensemble, files, materialize, quads
from evo_subnets.files import StorageError
from evo_subnets.rl import Actor
from evo_subnets.runs import Run


def test_a_saved_actor_comes_back_bit_for_bit(actor, tmp_path):
    path = tmp_path / "folder" / "policy.safetensors"
    save_actor(path, actor, about={"game": GAME, "steps": 12})
    found, about = load_actor(path)
    assert about == {"game": GAME, "steps": 12}
    assert all_same_bits(found.state_dict(), actor.state_dict())
    assert found.features.widths == (2, 3, 4)
    assert found.observation_space == actor.observation_space
    assert not found.training
    observations = channels_first(pictures(3))
    with torch.no_grad():
        assert torch.equal(found(observations), actor(observations))
    # children are numbered by row whatever the memory format
    mutation = quads(4, sigma=0.1, density=0.2, seed=0)[0]
    children = [materialize(dict(model.named_parameters()), mutation) for model in (found, actor)]
    assert all_same_bits(*children)


def test_loading_an_actor_leaves_the_global_generators_alone(actor, tmp_path):
    """The fixture of conftest.py fails this test if it does not."""
    save_actor(tmp_path / "policy.safetensors", actor, about={})
    load_actor(tmp_path / "policy.safetensors")


@pytest.fixture
def damaged(tmp_path, actor):
    """A function from a kind of damage to the path of such a file."""

    def make(damage):
        path = tmp_path / f"{damage}.safetensors"
        if damage == "missing":
            return path
        if damage == "folder":
            path.mkdir()
            return path
        own = copy.deepcopy(actor)
        with torch.no_grad():
            for bias in own.parameters():
                bias += 0.1  # zeros would be packed
        save_actor(path, own, about={"game": GAME})
        data = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(data[:-100])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "text":
            path.write_text("weights")
        elif damage == "flipped":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "ensemble":
            Ensemble.from_mutations(actor, quads(4, sigma=0.1, density=0.2, seed=0)).save(path)
        elif damage in ("widths", "words", "nothing"):
            tensors, description = files.load_tensors(path, "evo_subnets.actor")
            other = {"widths": [2, 3, 5], "words": ["2", "3", "4"], "nothing": None}[damage]
            network = {**description["network"], "widths": other}
            files.save_tensors(
                path,
                tensors,
                kind="evo_subnets.actor",
                description={"network": network, "about": {}},
            )
        return path

    return make


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "there is no such file"),
        ("folder", "there is no such file"),
        ("truncated", "truncated or not a safetensors file"),
        ("empty", "truncated or not a safetensors file"),
        ("text", "truncated or not a safetensors file"),
        ("flipped", "damaged"),
        ("ensemble", "expected a file of kind evo_subnets.actor, got evo_subnets.ensemble"),
        ("widths", "weights of another architecture"),
        ("words", "describes no Impala actor"),
        ("nothing", "describes no Impala actor"),
    ],
)
def test_a_file_that_is_no_actor_is_a_storage_error_in_one_line(damaged, damage, message):
    path = damaged(damage)
    with pytest.raises(StorageError, match=message) as error:
        load_actor(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_only_impala_actors_are_saved(cartpole_agent, tmp_path):
    with pytest.raises(ValueError, match="only Impala actors are saved, got FlattenExtractor"):
        save_actor(tmp_path / "policy.safetensors", Actor.from_agent(cartpole_agent), about={})
    assert not list(tmp_path.iterdir())


# --- where they come from


SETTINGS = PPOSettings(num_envs=4, rollout_steps=8, minibatches=2, epochs=1, widths=(2, 2, 2))


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def trained(out, game=GAME, settings=SETTINGS, steps=64, **options):
    with Run(out) as run:
        return train_parent(game, settings, run=run, total_timesteps=steps, **options)


def test_a_parent_is_found_or_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(parents, "SHIPPED", tmp_path)
    path = tmp_path / GAME / "policy.safetensors"
    assert parent_file("auto", GAME) is None
    path.parent.mkdir()
    path.touch()
    assert parent_file("auto", GAME) == path
    assert parent_file("auto", GAME, mode="hard") is None, "those are of easy mode"
    assert parent_file("auto", "maze") is None
    assert parent_file("train", GAME) is None
    assert parent_file("mine.zip", GAME, mode="hard") == Path("mine.zip")


def test_what_the_repository_ships_names_its_game():
    shipped = sorted(path.parent.name for path in parents.SHIPPED.glob("*/policy.safetensors"))
    assert shipped == ["bigfish", "fruitbot", "starpilot"]
    for game in shipped:
        _, about = load_actor(parents.SHIPPED / game / "policy.safetensors")
        assert (about["game"], about["mode"]) == (game, "easy")


@pytest.mark.moves_generators
def test_a_parent_is_trained_once_and_found_again(tmp_path):
    actor, about = trained(tmp_path, checkpoint_every=32)
    assert about == {"game": GAME, "mode": "easy", "seed": 0, "steps": 64}
    assert checkpoints(tmp_path) == ["checkpoint-32.safetensors", "checkpoint-64.safetensors"]
    assert load_actor(tmp_path / "policy.safetensors")[1] == about
    found = load_parent(tmp_path / "policy.safetensors", game=GAME)
    for other in (found, trained(tmp_path)[0]):
        assert all_same_bits(other.state_dict(), actor.state_dict())


def test_a_training_needs_a_folder():
    with pytest.raises(ValueError, match="needs a folder for its checkpoints"):
        train_parent(GAME, SETTINGS, run=Run.none(), total_timesteps=32)


def test_a_zip_of_stable_baselines3_is_a_parent_of_any_game(procgen_agent, tmp_path):
    procgen_agent.save(tmp_path / "agent.zip")
    found = load_parent(tmp_path / "agent.zip", game="maze", mode="hard")
    assert all_same_bits(found.state_dict(), Actor.from_agent(procgen_agent).state_dict())


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"game": GAME, "mode": "easy", "steps": 3}, None),
        ({}, None),
        ({"game": "maze", "mode": "easy"}, "is a parent of env maze, this run asks for bossfight: "
         "use --env maze"),
        ({"game": GAME, "mode": "hard"}, "is a parent of mode hard, this run asks for easy: "
         "use --mode hard"),
    ],
)  # fmt: skip
def test_a_parent_of_another_game_is_refused_by_name(actor, tmp_path, about, message):
    path = tmp_path / "policy.safetensors"
    save_actor(path, actor, about=about)
    if message is None:
        assert all_same_bits(load_parent(path, game=GAME).state_dict(), actor.state_dict())
        return
    with pytest.raises(ValueError, match=message):
        load_parent(path, game=GAME)


@pytest.mark.moves_generators
def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path):
    trained(tmp_path, steps=32)
    before = json.loads((tmp_path / "journal.json").read_text())
    assert "adam" not in before["asked"]["parent"]["ppo"], "older folders have none, and go on"
    with pytest.raises(ValueError, match="adam"):
        trained(tmp_path, settings=replace(SETTINGS, adam="tensorflow"))
    other = PPOSettings(num_envs=4, rollout_steps=16, minibatches=2, epochs=1, widths=(2, 2, 3))
    with pytest.raises(ValueError, match=r"holds a run with .*widths .*: use"):
        trained(tmp_path, settings=other)
    for options, words in (
        ({"seed": 1}, "with seed 0"), ({"mode": "hard"}, "with mode 'easy'"),
        ({"game": "maze"}, "with game 'bossfight'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            trained(tmp_path, **options)
    assert json.loads((tmp_path / "journal.json").read_text()) == before
    assert checkpoints(tmp_path) == ["checkpoint-32.safetensors"]
    trained(tmp_path, steps=64)
    assert checkpoints(tmp_path) == ["checkpoint-32.safetensors", "checkpoint-64.safetensors"]


@pytest.mark.moves_generators
def test_a_training_that_went_on_for_longer_is_not_taken_for_a_shorter_one(tmp_path):
    trained(tmp_path, steps=64)
    assert trained(tmp_path, steps=40)[1]["steps"] == 64, "40 steps are two rollouts of 32"
    with pytest.raises(ValueError, match="holds a run of 64 steps already: total_timesteps 32"):
        trained(tmp_path, steps=32)


def test_impossible_steps_are_refused(tmp_path):
    for options in ({"steps": 0}, {"checkpoint_every": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got"):
            train(
                GAME, SETTINGS, total_timesteps=options.get("steps", 32), out=tmp_path / "out",
                checkpoint_every=options.get("checkpoint_every", 32),
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.moves_generators
def test_files_that_are_no_procgen_parent_are_refused(tmp_path, cartpole_agent, damaged):
    cartpole_agent.save(tmp_path / "cartpole.zip")
    with pytest.raises(ValueError, match=r"sees \(4,\) and has 2"):
        load_parent(tmp_path / "cartpole.zip", game=GAME)
    whole = (tmp_path / "cartpole.zip").read_bytes()
    for name, data in (("truncated", whole[: len(whole) // 2]), ("empty", b"")):
        path = tmp_path / f"{name}.zip"
        path.write_bytes(data)
        with pytest.raises(StorageError, match="not a stable-baselines3 PPO agent") as error:
            load_parent(path, game=GAME)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "no.zip", tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(StorageError, match="there is no such file"):
            load_parent(path, game=GAME)
    for damage in ("truncated", "widths"):
        with pytest.raises(StorageError):
            load_parent(damaged(damage), game=GAME)
    other = built(lambda: impala_actor((2, 2, 2), frame_stack=2, actions=4))
    save_actor(tmp_path / "four.safetensors", other, about={})
    with pytest.raises(ValueError, match=r"has 15 actions, this one .* has 4"):
        load_parent(tmp_path / "four.safetensors", game=GAME)
