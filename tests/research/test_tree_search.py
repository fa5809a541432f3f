"""The search over steps: its puzzles against brute force, its probabilities, and the command at a small size."""

import json
import sys
from itertools import product

import numpy as np
import pytest
from research_jobs import run_here

from research.options import tree_search as tree


def test_the_checker_allows_whole_numbers_within_bounds():
    assert [tree.apply(3, step) for step in ("+5", "-2", "-3", "*4")] == [8, 1, None, 12]
    assert tree.apply(250, "*4") is None and tree.apply(333, "*3") == 999


def test_distances_are_those_of_trying_everything():
    found = tree.distances_from(7)
    for length in (1, 2):
        for steps in product(tree.STEPS, repeat=length):
            number = 7
            for step in steps:
                number = None if number is None else tree.apply(number, step)
            assert number is None or found[number] <= length
    assert found[7] == 0 and found[35] == 1 and found[175] == 2


@pytest.mark.slow
def test_solutions_are_shortest_and_steps_alone_have_labels():
    train, *others = tree.make_puzzles(0)
    assert len(train) == 4 * tree.NUM_TRAIN
    kept = [puzzle for puzzles in others for some in puzzles.values() for puzzle in some]
    assert len(kept) == len(set(kept)) == 2 * 4 * tree.NUM_TEST
    assert not {puzzle for puzzle, _ in train} & set(kept)
    for puzzle, steps in train[:50]:
        number = puzzle[0]
        for step in steps:
            number = tree.apply(number, step)
        assert number == puzzle[1] and len(steps) == tree.distances_from(puzzle[0])[number]
    row = tree.row_of((17, 54), ["*3", "+3"])
    assert "".join(tree.VOCABULARY[i] for i in row["input_ids"]) == "17>54:*3=51+3=54"
    assert "".join("." if i == -100 else tree.VOCABULARY[i] for i in row["labels"]) == "......*3...+3..."


def test_probabilities_of_steps_are_the_models():
    import torch

    model, text = tree.make_model(0).eval(), "17>54:*3=51"
    found = tree.log_p_of_steps(model, [text, "1>9:"])[0]
    for step, log_p in zip(tree.STEPS, found, strict=True):
        ids = torch.tensor([tree.encode(text + step)])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        assert log_probs.gather(1, ids[0, 1:, None])[-2:].sum().item() == pytest.approx(log_p, rel=1e-4)


def test_a_search_without_a_model_is_breadth_first():
    one_step, two_steps = tree.solve(None, [(7, 35), (7, 175)])
    assert one_step == 1 and 2 <= two_steps <= 1 + len(tree.STEPS)
    search = tree.Search((7, 35))
    search.expand(np.zeros(len(tree.STEPS)))
    assert search.solved_at == 1 and search.is_over


def test_nodes_are_shared_out_for_the_most_puzzles():
    solved_at = np.array([[2, 0, 9], [0, 1, 0], [1, 2, 3]])
    assert tree.solved(solved_at, [2, 1, 0]).tolist() == [True, True, False]
    assert tree.solved(solved_at, tree.best_split(solved_at, 3)).all()
    assert tree.best_split(solved_at, 1) in ([0, 1, 0], [0, 0, 1])


@pytest.mark.slow
def test_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tree, "NUM_TRAIN", 16)
    monkeypatch.setattr(tree, "NUM_TEST", 2)
    monkeypatch.setattr(tree, "NODES", 6)
    monkeypatch.setattr(tree, "run_all", run_here)
    output = tmp_path / "tree.json"
    arguments = f"x --work_dir {tmp_path} --output {output} --num_epochs 1 --seeds 1"
    monkeypatch.setattr(sys, "argv", arguments.split())
    tree.main()
    results = json.loads(output.read_text())
    solved = results["summary"]["solved"]
    ways = {"N_eff=1", "N_eff=4", "N_eff=16", "best", "together", "schedule", "uniform"}
    assert solved.keys() == ways and set(solved["best"]) == {*map(str, tree.LENGTHS), "all"}
    assert all(sum(entry["schedule"]) == entry["nodes"] for entry in results["summary"]["splits"])
    assert len(results["runs"]) == 3 and results["runs"][0]["coverage_weight"] == [1.0]
    assert "shortest solution of 2 steps" in capsys.readouterr().out
