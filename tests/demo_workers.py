"""Stand-ins for a training run, importable by the demonstration's processes: quick, failing, killed."""

import os
import signal


def quick(num_attempts, seed, num_epochs, progress):
    for _ in range(num_epochs):
        progress()
    return {"num_attempts": num_attempts, "seed": seed, "threads": os.environ["OMP_NUM_THREADS"]}


def failing(num_attempts, seed, num_epochs, progress):
    raise ArithmeticError(f"no training with N = {num_attempts}")


def killed(num_attempts, seed, num_epochs, progress):
    os.kill(os.getpid(), signal.SIGKILL)
