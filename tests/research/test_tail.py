"""TailSFT as understood here: what an epoch leaves out, and that the rest is cross-entropy."""

import pytest
import torch

from research.baselines import training
from research.baselines.mazes import Mazes
from research.baselines.tail import TailTrainer


@pytest.fixture
def make(tmp_path):
    task = Mazes(size=3, num_train=24, num_epochs=3)
    train = task.make_problems(0).train

    def make(method, setting, epochs=1):
        arguments = task.arguments(str(tmp_path), len(train), epochs, seed=0) | {"per_device_train_batch_size": 8}
        return training.make_trainer(method, setting, task.make_model(0), arguments, train, task.make_tokenizer())

    return make


def gradient(trainer, batch):
    tokens = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=tokens)
    trainer.model.zero_grad()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def test_what_takes_part_is_trained_as_cross_entropy_trains_it(make):
    tail, plain = make("TailSFT", {"dropped": 0.5}), make("cross-entropy", {})
    assert type(tail) is TailTrainer
    batch = next(iter(tail.get_train_dataloader()))
    for ours, theirs in zip(gradient(tail, batch), gradient(plain, batch), strict=True):  # nothing is left out yet
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    examples = list(tail.first_loss)
    tail.left_out = set(examples[:3])
    part = {name: value[3:] for name, value in batch.items()}
    for ours, theirs in zip(gradient(tail, batch), gradient(plain, part), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    tail.left_out = set(examples)
    assert not gradient(tail, batch)[1].any()


def test_the_examples_whose_loss_fell_most_are_left_out(make):
    tail = make("TailSFT", {"dropped": 0.5})
    tail.first_loss = {(1,): 5.0, (2,): 1.0, (3,): 3.0, (4,): 2.0}
    tail.last_loss = {(1,): 4.5, (2,): 0.1, (3,): 1.0, (4,): 2.5}
    assert tail.fallen_most() == {(2,), (3,)}


@pytest.mark.slow
def test_each_epoch_leaves_out_its_share_and_still_sees_every_example(make):
    tail = make("TailSFT", {"dropped": 0.25}, epochs=3)
    tail.train()
    assert len(tail.first_loss) == 24 and len(tail.left_out) == 6
    assert all(loss < tail.first_loss[example] for example, loss in tail.last_loss.items() if example in tail.left_out)


@pytest.mark.parametrize("dropped", [-0.1, 1.0])
def test_the_share_is_a_share(make, dropped):
    with pytest.raises(ValueError, match=f"dropped: got {dropped}; give a share"):
        make("TailSFT", {"dropped": dropped})
