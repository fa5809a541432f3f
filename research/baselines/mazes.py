"""Mazes: the grid is given, the moves from start to goal are asked for. One simple path exists, so any other is wrong.

A maze is a random spanning tree of a square grid by Prim's algorithm (each step opens a random wall between the tree
and a cell outside). Used for the same question in arXiv 2602.02710. The prompt has one character for each cell, row by
row: which of the walls to the right and below are open, and whether the cell is start or goal. The answer is one
character a move. Many tokens and few decisions: only at a junction is there anything to choose.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dco_trl.demo import task as demo
from dco_trl.demo.training import training_arguments
from research.baselines.tasks import Problems

MOVES = {"R": (0, 1), "L": (0, -1), "D": (1, 0), "U": (-1, 0)}
# A cell's character: 4 * (0 plain, 1 start, 2 goal) + 2 * (open below) + (open to the right).
CELLS = "abcdefghijkl"
START, GOAL = 1, 2
VOCABULARY = ["<pad>", "<eos>", "=", *MOVES, *CELLS]
NUM_HELD_OUT = 800
# Method: its settings, a run each. Those of the rivals were the best of three at pass@256 on a seed that is not
# reported; see `docs/results/mazes.md`.
METHODS: dict[str, list[dict[str, Any]]] = {
    "cross-entropy": [{}],
    "DCO": [{"num_attempts": n} for n in (16, 256, 4096)],
    "label smoothing": [{"epsilon": 0.05}],
    "entropy bonus": [{"strength": 0.01}],
    "TailSFT": [{"dropped": 0.1}],
}

Cell = tuple[int, int]
Edges = set[frozenset[Cell]]


def spanning_tree(size: int, rng: np.random.Generator) -> Edges:
    """Prim's algorithm with random weights: the open walls, each a pair of neighbouring cells."""
    tree = {(int(rng.integers(size)), int(rng.integers(size)))}
    edges: Edges = set()
    frontier = [(cell, neighbour) for cell in tree for neighbour in neighbours(cell, size)]
    while len(tree) < size * size:
        inside, outside = frontier.pop(int(rng.integers(len(frontier))))
        if outside in tree:
            continue
        tree.add(outside)
        edges.add(frozenset((inside, outside)))
        frontier += [(outside, neighbour) for neighbour in neighbours(outside, size) if neighbour not in tree]
    return edges


def neighbours(cell: Cell, size: int) -> list[Cell]:
    around = [(cell[0] + down, cell[1] + right) for down, right in MOVES.values()]
    return [(row, column) for row, column in around if 0 <= row < size and 0 <= column < size]


def solve(edges: Edges, start: Cell, goal: Cell) -> str:
    """The moves of the only simple path."""
    came: dict[Cell, tuple[Cell, str]] = {}
    waiting = [start]
    while waiting:
        cell = waiting.pop()
        for move, (down, right) in MOVES.items():
            following = (cell[0] + down, cell[1] + right)
            if frozenset((cell, following)) in edges and following not in came and following != start:
                came[following] = (cell, move)
                waiting.append(following)
    moves = ""
    while goal != start:
        goal, move = came[goal]
        moves = move + moves
    return moves


def write(edges: Edges, start: Cell, goal: Cell, size: int) -> str:
    """The prompt: one character for each cell, and `=`."""
    text = ""
    for row in range(size):
        for column in range(size):
            cell = (row, column)
            role = START if cell == start else GOAL if cell == goal else 0
            right = frozenset((cell, (row, column + 1))) in edges
            below = frozenset((cell, (row + 1, column))) in edges
            text += CELLS[4 * role + 2 * below + right]
    return text + "="


def is_solved(prompt: str, moves: str) -> bool:
    """Walk: do the moves lead from start to goal, through open walls, and end there?

    No path is known beforehand: this is what a user's verifier does. A walk that comes by a cell twice is refused, so
    that what is accepted is exactly the answer of `solve`.
    """
    cells = prompt.rstrip("=")
    size = round(len(cells) ** 0.5)
    codes = np.array([CELLS.index(cell) for cell in cells]).reshape(size, size)
    (start,), (goal,) = np.argwhere(codes // 4 == START).tolist(), np.argwhere(codes // 4 == GOAL).tolist()
    at, seen = tuple(start), {tuple(start)}
    for move in moves:
        if move not in MOVES:
            return False
        to = (at[0] + MOVES[move][0], at[1] + MOVES[move][1])
        wall = 1 if move in "RL" else 2  # of the upper or left one of the two cells
        upper = min(at, to)
        if not (0 <= to[0] < size and 0 <= to[1] < size) or to in seen or not codes[upper] & wall:
            return False
        at = to
        seen.add(at)
    return at == tuple(goal)


def accept(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The walk as a reward function, for `dco-trl solve --grader research/baselines/mazes.py:accept`."""
    return [float(is_solved(prompt, moves.strip())) for prompt, moves in zip(prompts, completions, strict=True)]


def images(edges: Edges, start: Cell, goal: Cell, size: int) -> list[tuple[Edges, Cell, Cell]]:
    """The maze and its seven images under the symmetries of the square."""
    found = []
    for transpose in (False, True):
        for flip_row in (False, True):
            for flip_column in (False, True):

                def move(cell: Cell, t: bool = transpose, r: bool = flip_row, c: bool = flip_column) -> Cell:
                    row, column = cell[::-1] if t else cell
                    return size - 1 - row if r else row, size - 1 - column if c else column

                found.append(({frozenset(map(move, edge)) for edge in edges}, move(start), move(goal)))
    return found


@dataclass(frozen=True)
class Mazes:
    """Mazes by a small Llama from nothing; the seed draws mazes, first weights and batches.

    Attributes:
        size: Cells a side.
        num_train: Mazes to train on.
        augment: Train on the seven images of each maze too.
        num_epochs: Epochs; with `augment`, an epoch is eight times as long.
    """

    size: int = 5
    num_train: int = 1000
    num_epochs: int = 40
    augment: bool = False

    settings = {
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": 50,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
    }

    @property
    def title(self) -> str:
        return f"Mazes, {self.size} x {self.size}"

    @property
    def description(self) -> str:
        images = " and their images" if self.augment else ""
        half = NUM_HELD_OUT // 2
        return f"{self.title}: {self.num_train:,} to train on{images}, {half} of validation and {half} of test"

    def make_problems(self, seed: int) -> Problems:
        rng = np.random.default_rng([seed, self.size])
        mazes: dict[str, tuple[Edges, Cell, Cell]] = {}
        while len(mazes) < self.num_train + NUM_HELD_OUT:
            edges = spanning_tree(self.size, rng)
            start, goal = (
                (int(i) // self.size, int(i) % self.size) for i in rng.choice(self.size**2, 2, replace=False)
            )
            mazes.setdefault(write(edges, start, goal, self.size), (edges, start, goal))
        drawn = list(mazes.values())
        train = drawn[NUM_HELD_OUT:]
        if self.augment:
            train = [image for maze in train for image in images(*maze, self.size)]
        half = NUM_HELD_OUT // 2
        return Problems(*(self._rows(part) for part in (train, drawn[:half], drawn[half:NUM_HELD_OUT])))

    def _rows(self, mazes: list[tuple[Edges, Cell, Cell]]) -> Dataset:
        return Dataset.from_list([{"prompt": write(*maze, self.size), "completion": solve(*maze)} for maze in mazes])

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        return demo.make_tokenizer(VOCABULARY)

    def make_model(self, seed: int) -> PreTrainedModel:
        """An untrained Llama of two layers and width 128."""
        positions = 2 * self.size**2 + 2
        return demo.make_model(
            seed,
            len(VOCABULARY),
            hidden_size=128,
            intermediate_size=256,
            max_position_embeddings=positions,
        )

    def arguments(self, folder: str, num_problems: int, num_epochs: int, seed: int) -> dict[str, Any]:
        return training_arguments(folder, num_problems, num_epochs, seed) | self.settings
