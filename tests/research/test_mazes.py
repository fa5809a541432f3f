"""Mazes: a spanning tree, its one simple path, and a walk that accepts nothing else."""

import numpy as np
import pytest

from research.baselines import mazes, training
from research.baselines import run as baselines
from research.baselines.mazes import MOVES, Mazes, accept, images, is_solved, neighbours, solve, spanning_tree, write


@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_a_maze_is_a_spanning_tree_with_one_path(size):
    rng = np.random.default_rng(size)
    edges = spanning_tree(size, rng)
    assert len(edges) == size**2 - 1  # a tree, if connected
    assert all(b in neighbours(a, size) for a, b in map(tuple, edges))
    start = (0, 0)
    for goal in [(row, column) for row in range(size) for column in range(size) if (row, column) != start]:
        prompt, moves = write(edges, start, goal, size), solve(edges, start, goal)
        assert len(prompt) == size**2 + 1 and is_solved(prompt, moves)
        # Similar strings of moves are all refused: a changed move, one less, one more, a detour.
        others = {moves[:i] + move + moves[i + 1 :] for i in range(len(moves)) for move in MOVES} - {moves}
        others |= {moves[:-1], moves + "R", moves + "LR", "RL" + moves, "", "x"}
        assert not any(is_solved(prompt, other) for other in others)


def test_the_walk_is_a_reward_function():
    prompt = write(
        {frozenset({(0, 0), (0, 1)}), frozenset({(0, 1), (1, 1)}), frozenset({(1, 0), (1, 1)})}, (0, 0), (1, 0), 2
    )
    assert accept([prompt] * 3, [" RDL", "D", "RD"], answer=["RDL"] * 3) == [1.0, 0.0, 0.0]


def test_images_are_the_maze_under_the_symmetries_of_the_square():
    rng = np.random.default_rng(0)
    edges = spanning_tree(4, rng)
    drawn = images(edges, (0, 1), (3, 2), 4)
    prompts = {write(*image, 4) for image in drawn}
    assert len(prompts) == 8 and write(edges, (0, 1), (3, 2), 4) in prompts
    lengths = {len(solve(*image)) for image in drawn}
    assert len(lengths) == 1 and all(is_solved(write(*image, 4), solve(*image)) for image in drawn)


@pytest.mark.slow
def test_problems_are_apart_and_drawn_by_the_seed():
    task = Mazes(size=3, num_train=20, num_epochs=1, augment=True)
    problems, again = task.make_problems(0), task.make_problems(0)
    assert (len(problems.train), len(problems.validation), len(problems.test)) == (160, 400, 400)
    assert problems.test["prompt"] == again.test["prompt"] != task.make_problems(1).test["prompt"]
    assert not set(problems.test["prompt"]) & set(problems.validation["prompt"])
    plain = Mazes(size=3, num_train=20, num_epochs=1).make_problems(0)
    assert not set(plain.train["prompt"]) & {*plain.validation["prompt"], *plain.test["prompt"]}
    tokens = task.make_tokenizer()
    assert all(
        len(tokens(row["prompt"] + row["completion"]).input_ids) == 10 + len(row["completion"]) for row in plain.test
    )


@pytest.mark.slow
def test_every_method_of_the_mazes_trains_and_is_measured(monkeypatch):
    monkeypatch.setattr(training, "be_quiet", lambda: None)  # it would silence the tests that follow
    monkeypatch.setattr(mazes, "NUM_HELD_OUT", 20)
    task = Mazes(size=3, num_train=16, num_epochs=2)
    for method, setting, seed in baselines.plan(list(mazes.METHODS), 1, settings=mazes.METHODS):
        record, arrays = training.train(task, method, setting, seed, task.num_epochs)
        assert np.shape(record["coverage"]) == (2, len(training.TEMPERATURES), 2, len(training.KS))
        assert arrays["log_p"].shape == (2, len(training.TEMPERATURES), 20)
        assert record["task"] == task.description == "Mazes, 3 x 3: 16 to train on, 10 of validation and 10 of test"


def test_the_command_has_the_methods_of_the_mazes(tmp_path, capsys):
    command = ["--task", "mazes", "--work_dir", str(tmp_path / "runs"), "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit):
        baselines.main([*command, "--methods", "DCO", "GEM"])
    assert "--methods: mazes has no GEM; it has cross-entropy, DCO," in capsys.readouterr().err
