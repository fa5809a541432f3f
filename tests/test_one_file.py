"""`examples/dco_in_one_file.py` gives the numbers of the package, and imports nothing of it."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from dco_trl import DCOConfig, DCOTrainer, coverage_weight, log_coverage
from dco_trl.demo import task
from dco_trl.demo.training import training_arguments
from dco_trl.sampling import exact_coverage

FILE = Path(__file__).parents[1] / "examples" / "dco_in_one_file.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("dco_in_one_file", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(script):
    """A model that knows some of eight problems, so that its weights are neither all 1 nor all 0."""
    (ids, is_answer), _ = script.make_problems(8, 4, seed=0)
    model = script.make_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    while script.coverage_weight(script.answer_log_p(model, ids, is_answer), 256).mean() > 0.7:
        script.dco_loss(model, ids, is_answer, 1).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, ids, is_answer


def test_it_is_short_and_needs_torch_and_transformers_alone():
    source = FILE.read_text()
    names = {n.module or "" for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}
    names |= {alias.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import) for alias in n.names}
    assert {name.split(".")[0] for name in names} == {"argparse", "math", "torch", "transformers"}
    assert len(source.splitlines()) < 200


@pytest.mark.parametrize("n", [1, 2, 16, 256, 4096])
def test_weight_and_coverage_are_the_packages(script, n):
    log_p = torch.tensor([-800.0, -50.0, -12.0, -5.0, -1.0, -0.01], dtype=torch.float64)
    torch.testing.assert_close(script.coverage_weight(log_p, n), coverage_weight(log_p, n), rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(script.log_coverage(log_p, n), log_coverage(log_p, n), rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("n", [1, 256])
def test_loss_and_gradient_are_the_trainers(script, trained, n, tmp_path):
    model, ids, is_answer = trained
    texts = ["".join(script.CHARACTERS[i - 2] for i in row if i > 1) for row in ids.tolist()]
    rows = [{"prompt": text[:6], "completion": text[6:]} for text in texts]
    tokenizer = task.make_tokenizer()
    ours = script.dco_loss(model, ids, is_answer, n)
    model.zero_grad()
    ours.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    arguments = training_arguments(str(tmp_path), len(rows), 1, seed=0)
    trainer = DCOTrainer(
        model,
        args=DCOConfig(num_attempts=n, **arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert torch.equal(batch["input_ids"].sort(0).values, ids.sort(0).values)  # the same rows, in another order
    model.train()
    model.zero_grad()
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=count)
    loss.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(
        gradient, torch.cat([p.grad.flatten() for p in model.parameters()]), rtol=1e-3, atol=1e-6
    )
    if n > 1:
        weights = script.coverage_weight(script.answer_log_p(model, ids, is_answer).detach(), n)
        assert 0.1 < weights.mean() < 0.9
    exact = exact_coverage(model, tokenizer, task.as_problems(Dataset.from_list(rows)), progress=False)
    assert script.measure(model, ids, is_answer) == pytest.approx(100 * exact.pass_at_k(script.KS), rel=1e-4)


@pytest.mark.slow
def test_the_command_prints_its_table(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--epochs", "2", "--num_train", "64"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["1", "2"] and all(len(line.split()) == 9 for line in lines[3:])
