"""Windows, the hard filter's stream of rows, and what draws add to the counts."""

import json
from collections import deque

import numpy as np
import pytest

from dco_trl.trainer.rationales import Draws, add_draws, draw_metrics
from dco_trl.trainer.success_counts import SuccessCounts
from dco_trl.trainer.window import RowStream, Window, hard_batches


def test_a_window_survives_json():
    window = Window(deque([[3, 1], [2]]), {3: (0.5, -1.0), 1: (1.0, -2.5)}, {3: [[5, 1], [6, 1]]})
    assert Window.from_state_dict(json.loads(json.dumps(window.state_dict()))) == window
    assert Window.from_state_dict(json.loads(json.dumps(Window().state_dict()))) == Window()


def test_the_streams_of_all_processes_go_over_the_data_together_in_ever_other_orders():
    streams = [RowStream(range(10, 20), 0, i, 3) for i in range(3)]
    passes = [[stream.take(100) for stream in streams] for _ in range(3)]
    for shares in passes:
        assert sorted(sum(shares, [])) == list(range(10, 20))
        assert [len(share) for share in shares] == [4, 3, 3] == [stream.num_rows for stream in streams]
    assert len({str(shares) for shares in passes}) == 3
    assert RowStream(range(10, 20), 1, 0, 3).take(100) != passes[0][0]


def test_a_stream_goes_on_from_its_place():
    straight, stopped = RowStream(range(7), 5, 0, 1), RowStream(range(7), 5, 0, 1)
    rows = [straight.take(3) for _ in range(8)]
    assert [len(taken) for taken in rows] == [3, 3, 1, 3, 3, 1, 3, 3]
    for _ in range(4):
        stopped.take(3)
    resumed = RowStream(range(7), 5, 0, 1)
    resumed.place = stopped.place
    assert [resumed.take(3) for _ in range(4)] == rows[4:]


def test_every_process_has_a_row_of_a_small_data_set():
    assert [RowStream([4], 0, i, 3).take(2) for i in range(3)] == [[4], [4], [4]]


def test_hard_rows_fill_the_batches_and_each_problem_is_asked_for_once():
    asked = []

    def are_hard(problems):
        asked.extend(problems)
        return [problem >= 4 for problem in problems]

    problem_of = np.array([0, 0, 2, 2, 4, 4, 6, 6])
    stream = RowStream(range(8), 0, 0, 1)
    batches, num_tried = hard_batches([[0, 1, 2], [3], [4, 5]], stream, problem_of, are_hard)
    assert [len(batch) for batch in batches] == [3, 1, 2]
    assert {row for batch in batches for row in batch} <= {4, 5, 6, 7}
    assert sorted(asked) == [0, 2, 4, 6] and num_tried > 6
    stream = RowStream(range(8), 0, 0, 1)
    assert hard_batches([[0]], stream, problem_of, lambda problems: [False] * len(problems)) == ([], 8)


def make_draws(problems, drawn, graded, correct, **counts) -> Draws:
    return Draws(*map(np.array, (problems, drawn, graded, correct)), **counts)


def test_a_prompt_that_two_processes_drew_counts_once():
    counts, next_index = SuccessCounts(4), np.array([1, 1, 1, 1])
    counts.add([0, 1, 2, 3], 8, 4)
    everywhere = [make_draws([0, 2], [8, 8], [8, 6], [2, 3]), make_draws([2, 3], [8, 8], [6, 8], [3, 8])]
    add_draws(everywhere, counts, next_index, 0.5)
    assert counts.num_sampled.tolist() == [4 + 8, 8, 4 + 6, 4 + 8]
    assert counts.num_correct.tolist() == [2 + 2, 4, 2 + 3, 2 + 8]
    assert next_index.tolist() == [9, 1, 9, 9]


def test_metrics_are_those_of_all_processes():
    some = make_draws([0, 1], [8, 16], [8, 12], [2, 3], num_tokens=100, num_truncated=6, num_unparsed=3, num_settled=1)
    other = make_draws([2], [8], [8], [0], num_tokens=20, num_truncated=2, num_unparsed=1, num_settled=1)
    assert draw_metrics([some, other]) == {
        "prompts_settled": 2 / 3,
        "rationales": 32 / 3,
        "rationale_tokens": 120,
        "rationales_truncated": 8 / 32,
        "rationales_unparsed": 4 / 32,
        "rationales_ungraded": 4 / 32,
    }


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_updated_counts_are_those_that_forgetting_and_adding_leave(factor):
    counts = SuccessCounts(3)
    counts.add([0, 1, 2], [8, 4, 6], [3, 4, 0])
    n, c = counts.updated([2, 0], factor, [1, 2], [1, 0])
    assert counts.num_sampled.tolist() == [8, 4, 6]
    counts.forget(factor, [2, 0])
    counts.add([2, 0], [1, 2], [1, 0])
    assert (n.tolist(), c.tolist()) == (counts.num_sampled[[2, 0]].tolist(), counts.num_correct[[2, 0]].tolist())
    counts.prior = (0.5, 1.5)
    assert counts.rate([2.0, 0.0], [1.0, 0.0]).tolist() == [1.5 / 4, 0.25]
