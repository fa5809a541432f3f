"""A change of TRL that breaks the trainers raises one error that names it."""

import re
import subprocess
import sys

import pytest
import transformers
import trl
from training import make_trainer
from trl import SFTTrainer

from dco_trl.trainer import trl_contract

NAMED = (
    f"`dco_trl` does not work with TRL {re.escape(trl.__version__)} and Transformers "
    f"{re.escape(transformers.__version__)}: "
)
WAY_OUT = r"\. Install a TRL version that `dco_trl` supports"


@pytest.mark.parametrize(
    ("uses", "found"),
    [("its own loss", r"calls with fused_lm_head=\[True\], loss "), ("logits", "AttributeError: .*logits")],
)
def test_a_loss_that_is_not_of_log_probs_is_refused(monkeypatch, uses, found):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if uses == "its own loss":
            return model(**inputs, fused_lm_head=True).loss
        return model(**inputs).logits.sum()

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    with pytest.raises(
        RuntimeError, match=f"{NAMED}`SFTTrainer.compute_loss` no longer .*log_probs.*{found}.*{WAY_OUT}"
    ):
        make_trainer()


@pytest.mark.parametrize("name", trl_contract._METHODS)
def test_a_method_that_is_gone_is_refused(monkeypatch, name):
    for base in SFTTrainer.__mro__:
        if name in vars(base):
            monkeypatch.delattr(base, name)
    with pytest.raises(RuntimeError, match=f"{NAMED}`SFTTrainer.{name}` is gone{WAY_OUT}"):
        make_trainer()


def test_a_method_that_takes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", lambda self, dataset, tokenizer: dataset)
    monkeypatch.setattr(SFTTrainer, "_save_checkpoint", lambda self, trial, model: None)
    expected = (
        rf"{NAMED}`SFTTrainer._prepare_dataset` takes \(dataset, tokenizer\), not \(dataset, processing_class, .*; "
        rf"`SFTTrainer._save_checkpoint` takes \(trial, model\), not \(model, trial\){WAY_OUT}"
    )
    with pytest.raises(RuntimeError, match=expected):
        make_trainer()


def test_a_further_argument_is_no_change(monkeypatch):
    def log(self, logs, start_time=None, further=None):
        pass

    monkeypatch.setattr(SFTTrainer, "log", log)
    trl_contract.check_methods()


@pytest.mark.parametrize("name", trl_contract._ATTRIBUTES)
def test_an_attribute_that_is_gone_is_refused(monkeypatch, name):
    init = SFTTrainer.__init__

    def init_without(self, *args, **kwargs):
        init(self, *args, **kwargs)
        del vars(self)[name]

    monkeypatch.setattr(SFTTrainer, "__init__", init_without)
    with pytest.raises(RuntimeError, match=f"`SFTTrainer` no longer has `{name}`{WAY_OUT}"):
        make_trainer()


def test_the_check_leaves_no_trace():
    trainer = make_trainer()
    assert not trainer._metrics["train"] and not trainer._metrics["eval"]
    assert trainer._total_train_tokens == 0


@pytest.mark.slow
def test_a_name_that_cannot_be_imported_is_named():
    code = (
        "import trl.trainer.sft_trainer as module; del module.DataCollatorForLanguageModeling; "
        "import dco_trl.trainer.trl_contract"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(f"^ImportError: {NAMED}cannot import name 'DataCollatorForLanguageModeling'.*{WAY_OUT}", last)
