"""Rows with pictures: two families of vision-language models, built from a configuration, in both formats."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cot import make_cot_trainer
from peft import LoraConfig
from PIL import Image
from tiny_models import make_tokenizer
from training import MANY, assert_same_run, make_trainer, run
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from trl import SFTTrainer

from dco_trl import DCOTrainer, coverage_weight
from dco_trl.problem import DataError
from dco_trl.runs import problems_from_rows

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{% for part in m['content'] %}{{ part.get('text', '<image>') }}"
    "{% endfor %}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SIZES = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2)
VISION = dict(**SIZES, image_size=16, num_hidden_layers=2)
PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)) for i in range(8)]
ANSWERS = ["7", "12", "345", "6", "78", "9", "10", "2"]
PLAIN = [
    {"images": [picture], "prompt": "<image>what?", "completion": f"{answer}<eos>"}
    for picture, answer in zip(PICTURES, ANSWERS, strict=True)
]
CHAT = [
    {
        "image": picture,
        "prompt": [{"role": "user", "content": "what?"}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    for picture, answer in zip(PICTURES, ANSWERS, strict=True)
]
ROWS = {"plain": PLAIN, "chat": CHAT}


def make(family: str) -> dict[str, Any]:
    """A model with random weights and its processor, which needs Pillow alone."""
    tokenizer = make_tokenizer()
    names = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    text = dict(
        **SIZES,
        model_type="llama",
        num_hidden_layers=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    if family == "idefics3":
        size = {"longest_edge": 16}
        pictures = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
        processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=TEMPLATE)
        vision = {**VISION, "patch_size": 4}
        config = Idefics3Config(
            image_token_id=image_id, vision_config=vision, text_config=text, scale_factor=2, pad_token_id=0
        )
        return {"model": Idefics3ForConditionalGeneration(config), "processing_class": processor}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    arguments = dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    processor = LlavaProcessor(pictures, tokenizer, chat_template=TEMPLATE, **arguments)
    vision = {**VISION, "model_type": "clip_vision_model", "patch_size": 8, "projection_dim": 16}
    config = LlavaConfig(image_token_index=image_id, vision_config=vision, text_config=text, pad_token_id=0)
    return {"model": LlavaForConditionalGeneration(config), "processing_class": processor}


def arguments(family: str, rows: list[dict], trainer_class=DCOTrainer, **settings: Any) -> dict[str, Any]:
    data = {"train_dataset": rows, "eval_dataset": rows, "max_length": None}
    attempts = {"num_attempts": MANY} if trainer_class is DCOTrainer else {}
    return {"trainer_class": trainer_class, **make(family), **data, **attempts, **settings}


@torch.no_grad()
def own_log_p(model, processor, row: dict) -> float:
    """Log-probability of the answer and its end, from the logits of one row."""
    pictures = row.get("images") or [row["image"]]
    if isinstance(row["prompt"], str):
        prompt, completion = row["prompt"], row["completion"]
    else:
        prompt, completion = f"u:<image>{row['prompt'][0]['content']}a:", f"{row['completion'][0]['content']}<eos>"
    whole, before = (
        processor(images=[pictures], text=[text], return_tensors="pt") for text in (prompt + completion, prompt)
    )
    log_probs = model(**whole).logits[0, :-1].double().log_softmax(-1)
    ids, start = whole["input_ids"][0, 1:], before["input_ids"].size(1) - 1
    return float(log_probs.gather(1, ids[:, None])[start:].sum())


FAMILIES = pytest.mark.parametrize("family", ["idefics3", "llava"])
FORMATS = pytest.mark.parametrize("form", ROWS)


@FAMILIES
@FORMATS
@pytest.mark.parametrize(
    "peft", [None, LoraConfig(r=2, target_modules=r".*text_model.*[qv]_proj|.*language.*[qv]_proj")]
)
def test_p_is_that_of_a_forward_pass_of_ones_own(family, form, peft, tmp_path):
    settings = dict(save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=3, output_dir=str(tmp_path))
    trainer = make_trainer(**arguments(family, ROWS[form], peft_config=peft, **settings))
    model, processor = trainer.model.eval(), trainer.processing_class
    before = torch.tensor([own_log_p(model, processor, row) for row in ROWS[form]])
    trainer.train()
    model.eval()
    after = torch.tensor([own_log_p(model, processor, row) for row in ROWS[form]])
    found = pq.read_table(tmp_path / "checkpoint-3/eval_log_p.parquet")
    assert found["row"].to_pylist() == list(range(8))
    np.testing.assert_allclose(found["log_p"], after, rtol=1e-4)
    assert (after - before).abs().max() > 1e-3 and before.std() > 0.1
    [evaluated] = [row for row in trainer.state.log_history if "eval_coverage@256" in row]
    assert evaluated["eval_coverage@256"] == pytest.approx(float((1 - (1 - after.exp()) ** 256).mean()), rel=1e-3)


@FAMILIES
def test_the_loss_is_weighted_by_ones_own_p(family):
    trainer = make_trainer(**arguments(family, PLAIN[:4], max_steps=1, learning_rate=0.0))
    log_p = torch.tensor([own_log_p(trainer.model.eval(), trainer.processing_class, row) for row in PLAIN[:4]])
    weights = coverage_weight(log_p, MANY)
    assert weights.max() - weights.min() > 0.1
    trainer.train()
    entry = trainer.state.log_history[0]
    num_tokens = sum(len(answer) + 1 for answer in ANSWERS[:4])
    assert entry["loss"] == pytest.approx(float(-(weights * log_p).sum() / num_tokens), rel=1e-4)
    assert entry["coverage_weight"] == pytest.approx(float(weights.mean()), rel=1e-4)


@FAMILIES
@FORMATS
@pytest.mark.slow
def test_one_attempt_is_sft_bit_for_bit(family, form):
    ours = run(**arguments(family, ROWS[form], num_attempts=1))
    assert_same_run(ours, run(**arguments(family, ROWS[form], SFTTrainer)))


@FAMILIES
@pytest.mark.slow
def test_accumulated_batches_are_one_batch(family):
    whole, parts = (
        run(**arguments(family, PLAIN, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size))
        for size in (8, 2)
    )
    assert_same_run(parts, whole, rtol=1e-3, atol=1e-5)


@FAMILIES
def test_text_behind_the_end_of_a_turn_is_no_part_of_p(family):
    """A template may write a line break there, which is never sampled."""
    trainers = []
    for template in (TEMPLATE, TEMPLATE.replace("<eos>", "<eos>\n")):
        given = arguments(family, CHAT)
        given["processing_class"].chat_template = template
        trainers.append(make_trainer(**given))
    whole, behind = (trainer.evaluate() for trainer in trainers)
    assert whole["eval_log_p"] == pytest.approx(behind["eval_log_p"], rel=1e-5)


def messages(row: dict) -> dict:
    return {"image": row["image"], "messages": row["prompt"] + row["completion"]}


def test_conversations_about_pictures_are_split():
    rows = [messages(row) for row in CHAT]
    split, whole = (make_trainer(**arguments("llava", given, max_steps=1)) for given in (rows, CHAT))
    assert split.evaluate()["eval_log_p"] == whole.evaluate()["eval_log_p"]
    # The evaluation set is known as it was given, and as the baseline knows it.
    baseline = make_trainer(**arguments("llava", rows, max_steps=1, num_attempts=1))
    assert split._eval_log_p.fingerprints == baseline._eval_log_p.fingerprints != {}


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        (PLAIN, {"max_length": 1024}, "`max_length=1024` may cut answers to pictures.*Set `max_length=None`"),
        (
            [*PLAIN[:2], {**PLAIN[2], "completion": "7"}],
            {},
            "1 of 3 .* .first: row 2. have a completion that does not end with '<eos>'.*Append it: dataset.map",
        ),
        ([{**PLAIN[0], "completion": "  "}], {}, "1 of 1 rows of the train dataset .* have an empty `completion`"),
        ([{"images": PICTURES[:1], "text": "<image>7"}], {}, "do not tell the answer from the prompt"),
        (PLAIN, {"packing": True}, "Packing is not supported for vision datasets"),
        (PLAIN, {"padding_free": True}, "Padding-free training is yet not supported for vision datasets"),
    ],
)
def test_what_does_not_hold_for_pictures_is_refused(rows, settings, told):
    with pytest.raises(ValueError, match=told):
        make_trainer(**arguments("llava", rows, **settings))


def test_pictures_are_not_sampled():
    rows = [{**row, "answer": "7"} for row in PLAIN]
    with pytest.raises(ValueError, match="has pictures, and no sampler here shows them to a model"):
        make_cot_trainer(rows, max_length=None, **make("llava"))
    with pytest.raises(DataError, match="has the column 'images', but sampling and exact coverage show a model no"):
        problems_from_rows(rows)
