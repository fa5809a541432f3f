"""A mixture of experts: the load-balancing loss is TRL's, and the weights do not touch it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.trainer_utils import set_seed

from dco_trl import DCOConfig, DCOTrainer, coverage_weight
from dco_trl.demo import task


@pytest.mark.parametrize("num_attempts", [1, 100_000])
def test_the_loss_is_the_weighted_one_and_the_unweighted_balance(num_attempts, tmp_path):
    set_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(task.VOCABULARY),
        hidden_size=32,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        output_router_logits=True,
        router_aux_loss_coef=0.1,
    )
    trainer = DCOTrainer(
        model=AutoModelForCausalLM.from_config(config, dtype=torch.float32),
        args=DCOConfig(
            str(tmp_path), num_attempts=num_attempts, use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=8, report_to="none",
        ),
        train_dataset=task.make_problems(0)[0].select(range(8)),
        processing_class=task.make_tokenizer(),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        out = trainer.model(**plain)
    labels = batch["labels"][:, 1:]
    labelled = labels != -100
    log_probs = out.logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * labelled
    weights = coverage_weight(log_probs.double().sum(1), num_attempts)
    assert num_attempts == 1 or weights.mean() < 0.9  # the weights matter
    expected = -(weights[:, None] * log_probs).sum() / labelled.sum() + 0.1 * out.aux_loss
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)
