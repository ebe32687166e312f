"""The sixteen games: levels, frame stacks, ends of episodes, states, and both interfaces."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecTransposeImage

import envs.procgen
from envs import (
    GAMES,
    TEST_LEVELS,
    TRAIN_LEVELS,
    Levels,
    ProcgenSimulator,
    ProcgenVecEnv,
    ProcgenVectorEnv,
    normalized_return,
)

NO_OPERATION = 4
SIXTEEN = [
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
]  # fmt: skip
PATIENT = ["caveflyer", "climber", "coinrun", "heist", "jumper", "leaper", "maze", "miner", "ninja"]
"""Games where doing nothing lasts until the time limit."""


@pytest.fixture
def simulator(request):
    """A function that makes simulators, which are closed at the end of the test."""
    made = []

    def make(game="bossfight", num_envs=3, **options):
        made.append(ProcgenSimulator(game, num_envs, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def random_actions(steps, num_envs, seed=0):
    return np.random.default_rng(seed).integers(0, 15, (steps, num_envs))


def record(simulator, actions):
    """Everything that a policy and its trainer can see while `actions` are played."""
    seen = [simulator.observation]
    for action in actions:
        seen += [*simulator.step(action), simulator.elapsed.copy()]
        seen += [simulator.info(key) for key in ("level_seed", "prev_level_seed")]
    return seen


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --- games and levels


def test_the_sixteen_games_are_there():
    assert list(GAMES) == SIXTEEN


@pytest.mark.parametrize("mode", ["easy", "hard"])
@pytest.mark.parametrize("game", SIXTEEN)
def test_every_game_plays_in_both_modes(simulator, game, mode):
    env = simulator(game, 2, mode=mode)
    assert env.observation.shape == (2, 64, 64, 6)
    assert env.observation.dtype == np.uint8
    for action in random_actions(5, 2):
        step = env.step(action)
        assert step.observation.shape == step.final_observation.shape == (2, 64, 64, 6)
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (2,)
        assert (step.reward.dtype, step.terminated.dtype) == (np.float32, np.bool_)
    assert env.observation[..., 3:].any()
    assert set(env.info("level_seed").tolist()) <= set(range(200))


@pytest.mark.parametrize("job", [ProcgenSimulator, lambda game, _: normalized_return(0, game)])
def test_an_unknown_game_is_told_the_sixteen(job):
    with pytest.raises(ValueError, match="no Procgen game 'pong'") as error:
        job("pong", 1)
    for name in SIXTEEN:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "extreme"}, "'easy' or 'hard', got 'extreme'"),
        ({"num_envs": 0}, "num_envs must be an integer in 1..4096, got 0"),
        ({"frame_stack": 0}, "frame_stack must be an integer in 1..64, got 0"),
    ],
)
def test_impossible_simulators_are_refused(simulator, options, message):
    with pytest.raises(ValueError, match=message):
        simulator(**options)


@pytest.mark.parametrize("actions", [np.zeros(2, int), np.zeros((3, 1), int), 0])
def test_the_number_of_actions_is_checked(simulator, actions):
    with pytest.raises(ValueError, match="expected 3 actions"):
        simulator().step(actions)


@pytest.mark.parametrize("bounds", [(-1, 5), (0, 0), (2**31 - 2, 2)])
def test_impossible_levels_are_refused(bounds):
    with pytest.raises(ValueError, match="levels"):
        Levels(*bounds)


def level_sequences(env, actions, every=20):
    """The levels of each slot, where all of them start anew every so many steps."""
    sequences = [[level] for level in env.info("level_seed").tolist()]
    for number, action in enumerate(actions, 1):
        step = env.step(action)
        new = step.terminated | step.truncated
        if number % every == 0:
            env.reset()
            new = np.ones_like(new)
        levels = env.info("level_seed")
        for slot in np.flatnonzero(new):
            if number % every == 0 and (step.terminated | step.truncated)[slot]:
                sequences[slot].append(int(env.info("prev_level_seed")[slot]))
            sequences[slot].append(int(levels[slot]))
    return sequences


@pytest.mark.parametrize("game", SIXTEEN)
def test_levels_depend_on_the_seed_and_not_on_the_policy(simulator, game):
    levels = Levels(1_000, 1_000_000)
    waiting = np.full((130, 3), NO_OPERATION)
    ours = level_sequences(simulator(game, seed=5, levels=levels), random_actions(130, 3))
    theirs = level_sequences(simulator(game, seed=5, levels=levels), waiting)
    other = level_sequences(simulator(game, seed=6, levels=levels), waiting)
    for slot in range(3):
        both = min(len(ours[slot]), len(theirs[slot]))
        assert both >= 7
        assert ours[slot][:both] == theirs[slot][:both]
        assert len(set(ours[slot][:both])) == both
        assert other[slot][:7] != theirs[slot][:7]
    assert ours[0][:7] != ours[1][:7]


def test_test_levels_are_never_training_levels():
    last_of_training = TRAIN_LEVELS.start + TRAIN_LEVELS.count - 1
    assert (TRAIN_LEVELS.start, last_of_training) == (0, 199)
    assert TEST_LEVELS.start >= 500, "the 500 training levels of the hard mode lie below"
    assert TEST_LEVELS.start > last_of_training
    assert TEST_LEVELS.start in TEST_LEVELS
    assert TEST_LEVELS.start - 1 not in TEST_LEVELS
    assert TEST_LEVELS.start + TEST_LEVELS.count not in TEST_LEVELS


@pytest.mark.parametrize("mode", ["easy", "hard"])
@pytest.mark.parametrize("levels", [TRAIN_LEVELS, TEST_LEVELS, Levels(70, 3)])
def test_the_simulator_keeps_to_its_levels(simulator, levels, mode):
    env = simulator("bossfight", 64, levels=levels, mode=mode)
    seen = set()
    for _ in range(4):
        seen |= set(env.info("level_seed").tolist())
        env.reset()
    assert all(level in levels for level in seen)
    assert len(seen) == 3 if levels.count == 3 else len(seen) > 100


# --- frame stack


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_frames_are_stacked_oldest_first_and_cleared_where_episodes_start(simulator, depth):
    """Against stacks that are put together here from single frames."""
    env = simulator("bossfight", frame_stack=depth, seed=1)
    single = simulator("bossfight", frame_stack=1, seed=1)
    blank = np.zeros((64, 64, 3), np.uint8)
    history = [[blank] * (depth - 1) + [frame] for frame in single.observation]
    ended = 0

    def stacks():
        return np.stack([np.concatenate(frames[-depth:], axis=-1) for frames in history])

    assert np.array_equal(env.observation, stacks())
    for number, action in enumerate(random_actions(150, 3), 1):
        before = stacks()
        step, frame = env.step(action), single.step(action)
        for slot, done in enumerate(frame.terminated | frame.truncated):
            start = [blank] * (depth - 1) if done else history[slot]
            history[slot] = [*start, frame.observation[slot]]
            ended += done
        assert np.array_equal(step.observation, stacks())
        assert np.array_equal(step.final_observation, before)
        if number == 100:
            env.reset()
            history = [[blank] * (depth - 1) + [frame] for frame in single.reset()]
            assert np.array_equal(env.observation, stacks())
    assert ended >= 5


def test_observations_are_the_callers_own(simulator):
    env = simulator()
    first = env.step(np.full(3, NO_OPERATION))
    kept = [part.copy() for part in first]
    env.observation[:] = 7
    for action in random_actions(30, 3):
        env.step(action)
    assert same(list(first), kept)


# --- ends of episodes


@pytest.mark.parametrize("game", PATIENT)
def test_a_time_limit_is_a_truncation(simulator, game):
    env = simulator(game, 2, seed=3)
    for number in range(1, GAMES[game].time_limit):
        step = env.step(np.full(2, NO_OPERATION))
        assert not (step.terminated | step.truncated).any(), number
    assert env.elapsed.tolist() == [GAMES[game].time_limit - 1] * 2
    step = env.step(np.full(2, NO_OPERATION))
    assert step.truncated.all()
    assert not step.terminated.any()
    assert env.elapsed.tolist() == [0, 0]


@pytest.mark.parametrize("game", ["bossfight", "fruitbot", "starpilot"])
def test_a_natural_end_is_a_termination(simulator, game):
    env = simulator(game, 8)
    ended = 0
    for action in random_actions(200, 8):
        elapsed = env.elapsed.copy()
        step = env.step(action)
        assert not step.truncated.any()
        assert np.array_equal(env.elapsed, np.where(step.terminated, 0, elapsed + 1))
        ended += step.terminated.sum()
    assert ended >= 5


def test_a_level_completed_on_its_very_last_step_was_not_cut_short(simulator, monkeypatch):
    env = simulator("maze", 3)
    frames = {"rgb": np.zeros((3, 64, 64, 3), np.uint8)}
    first = np.array([True, True, False])

    class LastStep:
        def act(self, actions):
            pass

        def observe(self):
            return np.array([10, 0, 0], np.float32), frames, first

        def get_info(self):
            return [{"prev_level_complete": complete} for complete in (1, 0, 0)]

        def close(self):
            pass

    env.elapsed[:] = 499
    env.close()
    monkeypatch.setattr(env, "_env", LastStep())
    step = env.step(np.zeros(3, int))
    assert step.terminated.tolist() == [True, False, False]
    assert step.truncated.tolist() == [False, True, False]


# --- reset and close


def test_reset_without_a_seed_starts_new_episodes(simulator):
    env = simulator("coinrun", 8, levels=TEST_LEVELS)
    for action in random_actions(20, 8):
        env.step(action)
    before = env.info("level_seed")
    assert env.elapsed.any()
    observation = env.reset()
    assert not env.elapsed.any()
    assert (env.info("level_seed") != before).all()
    assert not observation[..., :3].any()
    assert observation[..., 3:].any()
    assert np.array_equal(observation, env.observation)


def test_reset_with_a_seed_begins_again(simulator):
    env, actions = simulator(seed=9), random_actions(80, 3)
    first = record(env, actions)
    env.reset(9)
    assert same(first, record(env, actions))
    env.reset(10)
    assert not same(first, record(env, actions))
    env.reset()
    assert not same(first, record(env, actions)), "reset() must not go back to the first levels"


def uses(env):
    yield lambda: env.step(np.zeros(3, int))
    yield env.reset
    yield env.get_state
    yield lambda: env.info("level_seed")


def test_a_closed_simulator_is_closed(simulator):
    env = simulator(seed=4)
    start = env.observation
    env.close()
    env.close()
    for use in uses(env):
        with pytest.raises(ValueError, match=r"closed; reset\(seed\) opens it again"):
            use()
    assert np.array_equal(env.reset(4), start)
    for use in uses(env):
        use()


def test_close_and_reseeding_free_the_real_simulator(simulator, monkeypatch):
    closed = []

    class Watched(envs.procgen.ProcgenGym3Env):
        def close(self):
            closed.append(self)
            super().close()

    monkeypatch.setattr(envs.procgen, "ProcgenGym3Env", Watched)
    env = simulator()
    env.reset()
    assert not closed
    env.reset(1)
    assert len(closed) == 1
    env.close()
    assert len(set(map(id, closed))) == 2


# --- states


def test_states_replay_bit_for_bit_in_any_slot_seed_and_level_range(simulator):
    env = simulator("bossfight", 3, seed=1, frame_stack=3)
    for action in random_actions(25, 3):
        env.step(action)
    states, actions = env.get_state(), random_actions(90, 3, seed=2)
    went = record(env, actions)
    assert sum(step.sum() for step in went[3::8]) >= 3, "episodes end on the way"

    env.set_state(states)
    assert same(went, record(env, actions)), "in the same simulator"

    other = simulator("bossfight", 3, seed=77, frame_stack=3, levels=Levels(5_000, 10))
    for action in random_actions(40, 3, seed=3):
        other.step(action)
    assert np.array_equal(other.set_state(states), went[0])
    assert same(went, record(other, actions)), "in another simulator"

    order = [2, 0, 1]
    other.set_state([states[slot] for slot in order])
    moved = record(other, actions[:, order])
    assert all(np.array_equal(a[order], b) for a, b in zip(went, moved, strict=True)), "in others"


def test_one_state_can_be_given_to_all_slots(simulator):
    env = simulator("coinrun")
    env.set_state([env.get_state()[1]] * 3)
    for action in random_actions(20, 1):
        step = env.step(np.repeat(action, 3))
        assert (step.observation == step.observation[:1]).all()
    assert len(set(env.info("level_seed").tolist())) == 1


def test_states_can_be_given_to_some_slots_and_the_others_play_on(simulator):
    env, whole = simulator("bossfight", 5, seed=3), simulator("bossfight", 2, seed=8)
    undisturbed = simulator("bossfight", 5, seed=3)
    actions = random_actions(40, 5)
    for action in actions[:10]:
        env.step(action)
        undisturbed.step(action)
    env.set_state(whole.get_state(), first=2)
    for action in actions[10:]:
        step = env.step(action)
        theirs, others = whole.step(action[2:4]), undisturbed.step(action)
        assert same([column[2:4] for column in step], theirs)
        assert same([column[[0, 1, 4]] for column in step], [c[[0, 1, 4]] for c in others])


def test_a_state_remembers_the_steps_towards_the_time_limit(simulator):
    env = simulator("maze")
    for _ in range(490):
        env.step(np.full(3, NO_OPERATION))
    other = simulator("maze", seed=8)
    other.set_state(env.get_state())
    for left in range(9, -1, -1):
        step = other.step(np.full(3, NO_OPERATION))
        assert step.truncated.all() == (left == 0)
    assert not step.terminated.any()


def test_a_state_does_not_change_with_further_play(simulator):
    env = simulator()
    states, start = env.get_state(), env.observation
    for action in random_actions(20, 3):
        env.step(action)
    assert np.array_equal(env.set_state(states), start)
    assert not env.elapsed.any()


def test_the_number_of_states_is_checked(simulator):
    env = simulator()
    with pytest.raises(ValueError, match="expected 3 states, got 2"):
        env.set_state(env.get_state()[:2])
    with pytest.raises(ValueError, match=r"expected slots in 0\.\.2, got 2\.\.3"):
        env.set_state(env.get_state()[:2], first=2)


# --- normalised return


@pytest.mark.parametrize("mode", ["easy", "hard"])
@pytest.mark.parametrize("game", SIXTEEN)
def test_the_minimum_is_0_and_the_maximum_is_1(game, mode):
    low, high = GAMES[game].returns(mode)
    assert low < high
    assert normalized_return([low, high, (low + high) / 2], game, mode=mode).tolist() == [0, 1, 0.5]


@pytest.mark.parametrize(
    ("game", "mode", "value", "expected"),
    [
        ("bigfish", "easy", 13.7, 12.7 / 39),
        ("bigfish", "hard", 20, 0.5),
        ("fruitbot", "easy", 0, 1.5 / 33.9),
        ("starpilot", "hard", 1.5, 0.0),
        ("jumper", "easy", 1, 0.0),  # not the 3 of copies of the paper's table
        ("leaper", "easy", 1.5, 0.0),
        ("maze", "hard", 7, 0.5),
        ("coinrun", "easy", 2.5, -0.5),
    ],
)
def test_normalised_returns_by_hand(game, mode, value, expected):
    assert normalized_return(value, game, mode=mode) == pytest.approx(expected)


# Mean returns of the runs published with github.com/openai/train-procgen, 25 M steps, easy
ALL_LEVELS = "20.53 8.81 7.30 6.93 10.31 9.07 6.28 28.60 7.04 7.86 7.33 9.85 11.05 8.02 14.63 33.12"
UNSEEN = "4.78 7.63 5.27 5.87 5.86 8.67 1.91 26.53 2.75 5.74 5.82 5.53 9.39 5.79 4.63 23.79"


@pytest.mark.parametrize(
    ("returns", "raw", "expected"), [(ALL_LEVELS, 12.30, 0.642), (UNSEEN, 8.12, 0.354)]
)
def test_published_runs_have_their_published_normalised_mean(returns, raw, expected):
    values = [float(text) for text in returns.split()]
    normalized = [normalized_return(*pair) for pair in zip(values, SIXTEEN, strict=True)]
    assert np.mean(values) == pytest.approx(raw, abs=0.006)
    assert np.mean(normalized) == pytest.approx(expected, abs=0.0006)


# --- gymnasium


@pytest.fixture
def vector_env(simulator):
    env = ProcgenVectorEnv(simulator("bossfight", 4, seed=2))
    yield env
    env.close()


def test_the_vector_env_is_one_for_gymnasium(vector_env):
    assert isinstance(vector_env, gymnasium.vector.VectorEnv)
    assert vector_env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector_env.num_envs == 4
    assert vector_env.single_observation_space == gymnasium.spaces.Box(
        0, 255, (64, 64, 6), np.uint8
    )
    assert vector_env.single_action_space == gymnasium.spaces.Discrete(15)
    assert vector_env.observation_space.shape == (4, 64, 64, 6)
    assert vector_env.action_space == gymnasium.spaces.MultiDiscrete([15] * 4)
    assert vector_env.unwrapped is vector_env
    vector_env.action_space.seed(0)
    observation, infos = vector_env.reset(seed=3)
    assert observation in vector_env.observation_space
    assert infos["level_seed"].shape == (4,)
    observation, reward, terminated, truncated, infos = vector_env.step(
        vector_env.action_space.sample()
    )
    assert observation in vector_env.observation_space
    assert reward.shape == terminated.shape == truncated.shape == (4,)
    assert infos["level_seed"].shape == (4,)


def test_the_vector_env_can_be_seeded(vector_env):
    first = vector_env.reset(seed=3)
    other = vector_env.reset(seed=4)
    again = vector_env.reset(seed=3)
    later = vector_env.reset()
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1]["level_seed"], again[1]["level_seed"])
    for env in (other, later):
        assert not np.array_equal(first[1]["level_seed"], env[1]["level_seed"])
    with pytest.raises(ValueError, match="one integer seed for all environments"):
        vector_env.reset(seed=[1, 2, 3, 4])


def test_the_infos_of_ended_episodes_are_gymnasiums(vector_env):
    observation, infos = vector_env.reset(seed=1)
    ended = 0
    for action in random_actions(150, 4):
        before, level = observation, infos["level_seed"]
        observation, _, terminated, truncated, infos = vector_env.step(action)
        done = terminated | truncated
        assert ("final_obs" in infos) == ("final_info" in infos) == done.any()
        if not done.any():
            assert np.array_equal(infos["level_seed"], level)
            continue
        assert np.array_equal(infos["_final_obs"], done)
        assert np.array_equal(infos["_final_info"], done)
        final = infos["final_info"]
        assert np.array_equal(final["_level_seed"], done)
        assert np.array_equal(final["level_seed"][done], level[done])
        assert infos["final_obs"].shape == (4,)
        for slot in range(4):
            if done[slot]:
                assert np.array_equal(infos["final_obs"][slot], before[slot])
                assert not observation[slot, ..., :3].any()
                ended += 1
            else:
                assert infos["final_obs"][slot] is None
    assert ended >= 8


def test_gymnasium_records_its_episodes(vector_env):
    env = RecordEpisodeStatistics(vector_env)
    env.reset(seed=1)
    returns, lengths, expected = np.zeros(4), np.zeros(4, int), []
    for action in random_actions(150, 4):
        _, reward, terminated, truncated, infos = env.step(action)
        returns += reward
        lengths += 1
        done = terminated | truncated
        assert ("episode" in infos) == done.any()
        for slot in np.flatnonzero(done):
            expected.append((returns[slot], lengths[slot]))
            assert infos["episode"]["r"][slot] == pytest.approx(returns[slot])
            assert infos["episode"]["l"][slot] == lengths[slot]
        returns[done], lengths[done] = 0, 0
    assert env.episode_count == len(expected) >= 8
    assert list(zip(env.return_queue, env.length_queue, strict=True)) == expected


def test_gymnasium_makes_lists_of_its_infos(vector_env):
    env = DictInfoToList(vector_env)
    env.reset(seed=1)
    for action in random_actions(60, 4):
        _, _, terminated, truncated, infos = env.step(action)
        for slot, done in enumerate(terminated | truncated):
            assert ("final_obs" in infos[slot]) == done
            assert infos[slot]["level_seed"] == vector_env.simulator.info("level_seed")[slot]


def test_closing_the_vector_env_is_real_and_not_only_once(vector_env):
    vector_env.close()
    vector_env.close()
    with pytest.raises(ValueError, match="closed"):
        vector_env.step(np.zeros(4, int))
    vector_env.reset(seed=1)
    vector_env.step(np.zeros(4, int))
    vector_env.close()
    with pytest.raises(ValueError, match="closed"):
        vector_env.step(np.zeros(4, int))


# --- stable-baselines3


def test_the_vec_env_tells_how_episodes_ended(simulator):
    env = ProcgenVecEnv(simulator("maze", 2, seed=3))
    observation = env.reset()
    for _ in range(500):
        before, level = observation, env.simulator.info("level_seed")
        observation, reward, done, infos = env.step(np.full(2, NO_OPERATION))
        if not done.any():
            assert infos == [{}, {}]
    assert done.all()
    assert reward.shape == (2,)
    for slot, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["level_seed"] == level[slot]
        assert np.array_equal(info["terminal_observation"], before[slot])


@pytest.fixture
def vec_env(simulator):
    return ProcgenVecEnv(simulator("bossfight", 4, seed=2))


def test_natural_ends_are_not_truncations_for_stable_baselines3(vec_env):
    observation = vec_env.reset()
    ended = 0
    for action in random_actions(100, 4):
        before = observation
        observation, _, done, infos = vec_env.step(action)
        for slot in np.flatnonzero(done):
            assert infos[slot]["TimeLimit.truncated"] is False
            assert np.array_equal(infos[slot]["terminal_observation"], before[slot])
            ended += 1
    assert ended >= 5


def test_it_works_under_the_wrappers_of_stable_baselines3(vec_env):
    """In the order of training: raw episode statistics, normalised rewards, channels first."""
    monitor = VecMonitor(vec_env)
    normalize = VecNormalize(monitor, norm_obs=False, norm_reward=True, gamma=0.999)
    env = VecTransposeImage(normalize)
    assert env.observation_space.shape == (6, 64, 64)
    vec_env.seed(5)
    assert env.reset().shape == (4, 6, 64, 64)
    returns, lengths, ended = np.zeros(4), np.zeros(4, int), 0
    for action in random_actions(100, 4):
        _, reward, done, infos = env.step(action)
        raw = normalize.get_original_reward()
        scale = np.sqrt(normalize.ret_rms.var + normalize.epsilon)
        assert np.allclose(reward, np.clip(raw / scale, -10, 10))
        returns += raw
        lengths += 1
        for slot in np.flatnonzero(done):
            assert infos[slot]["episode"]["r"] == pytest.approx(returns[slot], abs=1e-5)
            assert infos[slot]["episode"]["l"] == lengths[slot]
            assert infos[slot]["terminal_observation"].shape == (6, 64, 64)
            ended += 1
        returns[done], lengths[done] = 0, 0
    assert ended >= 5
    assert env.get_attr("render_mode") == [None] * 4
    env.close()
    with pytest.raises(ValueError, match="closed"):
        vec_env.step(np.zeros(4, int))


def test_states_go_through_env_method(vec_env):
    env = VecMonitor(vec_env)
    env.reset()
    states = env.env_method("get_state")
    assert len(states) == 4
    actions = random_actions(80, 4)
    runs = []
    for _ in range(2):
        observations = env.env_method("set_state", states)
        runs.append([observations, *(env.step(action)[:3] for action in actions)])
    assert np.array_equal(runs[0][0], runs[1][0])
    for first, second in zip(runs[0][1:], runs[1][1:], strict=True):
        assert same(first, second)
    with pytest.raises(ValueError, match="leave indices out"):
        env.env_method("get_state", indices=[0])


def test_seed_decides_the_next_reset_alone(vec_env):
    assert list(vec_env.seed(11)) == [11] * 4
    first = vec_env.reset()
    levels = vec_env.simulator.info("level_seed")
    second = vec_env.reset()
    assert not np.array_equal(first, second)
    assert not np.array_equal(levels, vec_env.simulator.info("level_seed"))
    vec_env.seed(11)
    assert np.array_equal(vec_env.reset(), first)


def test_attributes_are_the_simulators(vec_env):
    assert vec_env.get_attr("render_mode") == [None] * 4
    assert vec_env.get_attr("game", [0, 2]) == ["bossfight"] * 2
    assert vec_env.get_attr("levels", 1) == [TRAIN_LEVELS]
    assert vec_env.env_is_wrapped(gymnasium.Wrapper) == [False] * 4
    assert vec_env.has_attr("time_limit")
    assert not vec_env.has_attr("no_such_thing")
    with pytest.raises(NotImplementedError):
        vec_env.set_attr("game", "maze")


# --- pictures for people


def test_high_resolution_frames(simulator):
    small, env = simulator("coinrun", 2, seed=1), simulator("coinrun", 2, high_resolution=True)
    env.set_state(small.get_state())
    frames = env.frames()
    assert frames.shape == (2, 512, 512, 3)
    assert frames.dtype == np.uint8
    reduced = frames.reshape(2, 64, 8, 64, 8, 3).mean(axis=(2, 4))
    assert np.abs(reduced - small.observation[..., 3:]).mean() < 20, "it shows the same picture"
    with pytest.raises(ValueError, match="only with high_resolution=True"):
        small.frames()


def test_the_vec_env_renders_high_resolution(simulator):
    env = ProcgenVecEnv(simulator("coinrun", 2, high_resolution=True))
    assert env.render_mode == "rgb_array"
    assert env.get_attr("render_mode") == ["rgb_array"] * 2
    assert env.render().size == 2 * 512 * 512 * 3
