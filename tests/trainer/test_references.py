"""Several right answers to one prompt, against the sum of their probabilities."""

import math

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, IterableDataset
from test_equivalence import BATCHES, gradients
from test_metrics import log_probabilities
from tiny_models import make_model, make_tokenizer
from training import MANY, ROWS, assert_same_run, dataset, make_trainer, run

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.trainer.segments import PROMPT_OF_SEQUENCE, Segments

# One, two and three references; lengths differ.
ANSWERS = {"12=": ["2*6", "3*4", "4*3"], "7=": ["7"], "1/2=": ["2/4", "10/20"], "30=": ["5*6", "30", "15*2"]}
LISTS = [{"prompt": prompt, "completions": some} for prompt, some in ANSWERS.items()]
# The same rows, of a prompt not next to each other.
SINGLE = [
    {"prompt": prompt, "completion": some[i]} for i in range(3) for prompt, some in ANSWERS.items() if len(some) > i
]
# All prompts in one batch; of packs, two.
BATCH = {
    "padded": {"per_device_train_batch_size": 4},
    "padding-free": {"per_device_train_batch_size": 4, **BATCHES["padding-free"]},
    "packed": {"per_device_train_batch_size": 2, "packing": True, "max_length": 40},
}


def lists(rows=LISTS) -> dict:
    return {"trainer_kwargs": {"train_dataset": Dataset.from_list(rows)}}


def log_p_of_prompts(model) -> list[torch.Tensor]:
    """Log-probabilities of each prompt's references, one row at a time, with a gradient."""
    tokenizer, found = make_tokenizer(), []
    for prompt, answers in ANSWERS.items():
        start, of_prompt = len(tokenizer(prompt)["input_ids"]), []
        for answer in answers:
            ids = torch.tensor([[*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]])
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
            of_prompt.append(log_probs[start - 1 :].sum())
        found.append(torch.stack(of_prompt))
    return found


# ------------------------------------------------------------------ the naive formula


@pytest.mark.parametrize(
    "settings", [{}, {"num_required": 2}, {"num_attempts": 1}, {"loss_reduction": "token"}], ids=str
)
@pytest.mark.parametrize("batch", BATCH)
def test_gradient_is_autograds_of_the_summed_probability(batch, settings):
    settings = {"num_attempts": MANY, "loss_reduction": "sequence", **BATCH[batch], **settings}
    model = make_model().double()
    trainer = make_trainer(model=model, **lists(), **settings)
    trainer.current_gradient_accumulation_steps = 1
    (inputs,) = list(trainer.get_train_dataloader())
    num_items = trainer._get_num_items_in_batch([dict(inputs)], torch.device("cpu"))
    ours = gradients(trainer.compute_loss(model, dict(inputs), num_items_in_batch=num_items), model)

    p = torch.stack([log_p.exp().sum() for log_p in log_p_of_prompts(model)])
    n, m = settings["num_attempts"], settings.get("num_required", 1)
    loss = -torch.log(1 - sum(float(math.comb(n, j)) * p**j * (1 - p) ** (n - j) for j in range(m)))
    num_tokens = sum(len(answer) + 1 for some in ANSWERS.values() for answer in some)
    expected = gradients(loss.sum() / (num_tokens if settings["loss_reduction"] == "token" else len(p)), model)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-6 * largest.item(), msg=name)


def test_the_weights_of_that_test_matter():
    p = torch.stack([log_p.exp().sum() for log_p in log_p_of_prompts(make_model())])
    assert p.max() * MANY > 1
    shares = torch.cat([log_p.softmax(0) for log_p in log_p_of_prompts(make_model())])
    assert ((shares > 0.05) & (shares < 0.95)).sum() >= 3


# --------------------------------------------------------------- runs that are the same


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("given", ["completions", "grouped"])
def test_one_reference_is_todays_trainer_bit_for_bit(given, batches):
    settings = {"num_attempts": MANY, "shuffle_dataset": True, **BATCHES[batches]}
    expected = run(**settings)
    if given == "grouped":
        assert_same_run(run(references="grouped", **settings), expected)
        return
    rows = [{"prompt": row["prompt"], "completions": [row["completion"]]} for row in ROWS]
    assert_same_run(run(**lists(rows), **settings), expected)


def test_rows_of_one_prompt_are_a_list_of_references_bit_for_bit():
    settings = dict(num_attempts=MANY, per_device_train_batch_size=2)
    assert_same_run(run(references="grouped", **lists(SINGLE), **settings), run(**lists(), **settings))


def test_tokenised_rows_are_grouped_by_the_tokens_before_the_first_label():
    tokenizer, rows = make_tokenizer(), []
    for row in SINGLE:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    settings = dict(num_attempts=MANY, references="grouped", per_device_train_batch_size=2)
    assert_same_run(run(**lists(rows), **settings), run(**lists(SINGLE), **settings))


def test_lists_of_one_prompt_are_grouped_too():
    halves = [LISTS[0] | {"completions": ["2*6"]}, *LISTS[1:], LISTS[0] | {"completions": ["3*4", "4*3"]}]
    settings = dict(num_attempts=MANY, per_device_train_batch_size=2)
    assert_same_run(run(references="grouped", **lists(halves), **settings), run(**lists(), **settings))


def test_messages_may_have_several_references():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if not add_generation_prompt %}<eos>{% endif %}"
    )

    def said(role, text):
        return [{"role": role, "content": text}]

    rows = [
        {"prompt": said("user", row["prompt"]), "completions": [said("assistant", a) for a in row["completions"]]}
        for row in LISTS
    ]
    kwargs = {**lists(rows)["trainer_kwargs"], "processing_class": tokenizer}
    trainer = make_trainer(num_attempts=MANY, trainer_kwargs=kwargs)
    plain = make_trainer(num_attempts=MANY, **lists())
    assert list(trainer.train_dataset) == list(plain.train_dataset)


@pytest.mark.parametrize("reduction", ["token", "sequence", "sequence_mean"])
def test_packed_is_padded_is_accumulated(reduction):
    settings = dict(num_attempts=MANY, loss_reduction=reduction, max_steps=2)
    expected = run(**lists(), **settings, **BATCH["padded"])
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    for batches in (BATCH["padding-free"], BATCH["packed"], small, {**small, **BATCHES["padding-free"]}):
        found = run(**lists(), **{**settings, **batches})
        if "packing" not in batches:
            torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected[0]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(expected[1]), rtol=1e-3, atol=1e-6)
        for name, weight in expected[2].items():
            torch.testing.assert_close(found[2][name], weight, rtol=1e-3, atol=2e-4, msg=name)


# --------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("batches", [{"per_device_eval_batch_size": 3}, BATCH["padding-free"], {"eval_packing": True}])
@pytest.mark.parametrize("num_attempts", [1, MANY])
def test_evaluation_counts_any_of_them(tmp_path, batches, num_attempts):
    model = make_model()
    settings = {"max_length": 40, **batches, "num_attempts": num_attempts, "coverage_at": [1, 50]}
    kwargs = {"eval_dataset": Dataset.from_list(LISTS)}
    trainer = make_trainer(model=model, trainer_kwargs=kwargs, output_dir=str(tmp_path), **settings)
    metrics = trainer.evaluate()
    with torch.no_grad():
        p = torch.stack([log_p.double().exp().sum() for log_p in log_p_of_prompts(model)])
    assert metrics["eval_log_p"] == pytest.approx(p.log().mean().item(), rel=1e-4)
    for k in (1, 50):
        assert metrics[f"eval_coverage@{k}"] == pytest.approx((1 - (1 - p) ** k).mean().item(), rel=1e-4)
    assert trainer.evaluate(trainer.eval_dataset)["eval_log_p"] == metrics["eval_log_p"]  # prepared already


def test_each_prompt_has_one_log_p_beside_the_checkpoint(tmp_path):
    trainer = make_trainer(
        output_dir=str(tmp_path),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=1,
        references="grouped",
        learning_rate=0.0,
        trainer_kwargs={"train_dataset": dataset(), "eval_dataset": Dataset.from_list(SINGLE)},
    )
    trainer.train()
    table = pq.read_table(tmp_path / "checkpoint-1" / "eval_log_p.parquet").to_pydict()
    assert table["row"] == [0, 1, 2, 3]  # where the first reference of each stands
    with torch.no_grad():
        expected = [log_p.double().logsumexp(0).item() for log_p in log_p_of_prompts(trainer.model)]
    assert table["log_p"] == pytest.approx(expected, rel=1e-4)


def test_training_metrics_are_means_over_prompts():
    model = make_model()
    before = torch.stack([log_p.double().logsumexp(0) for log_p in log_p_of_prompts(model)])
    trainer = make_trainer(
        model=model, num_attempts=MANY, learning_rate=0.0, max_steps=2, logging_steps=2, **lists(),
        per_device_train_batch_size=2,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["log_p"] == pytest.approx(before.mean().item(), rel=1e-4)


def test_a_sum_of_one_is_the_rows_own():
    model = make_model()
    trainer = make_trainer(model=model, references="grouped", trainer_kwargs={"eval_dataset": dataset()})
    assert trainer.evaluate()["eval_log_p"] == pytest.approx(log_probabilities(model, ROWS).mean().item(), rel=1e-4)


def test_sums_of_edge_cases():
    log_p = torch.tensor([-1e4, -1e4 - 1, -0.0, -torch.inf, -2.0, 0.0], dtype=torch.float64)
    mask = torch.tensor([[True]] * 5 + [[False]])
    batch = {"attention_mask": mask, PROMPT_OF_SEQUENCE: torch.tensor([0, 0, 1, 1, 2])}
    segments = Segments.of_batch(batch, mask)
    total = segments.log_sum_exp(log_p)
    assert total[0] == total[1] == pytest.approx(-1e4 + math.log1p(math.exp(-1)))
    assert total[2:5].tolist() == [0.0, 0.0, -2.0]
    assert segments.share(log_p)[:5].tolist() == pytest.approx([0.7310585786, 0.2689414214, 1.0, 0.0, 1.0])
    assert segments.counted.tolist() == [True, False, True, False, True, False]
    nothing = Segments.of_batch({**batch, PROMPT_OF_SEQUENCE: torch.zeros(6, dtype=torch.long)}, mask)
    assert nothing.log_sum_exp(torch.full((6,), -torch.inf, dtype=torch.float64)).isinf().all()


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("none", [[], None])
def test_prompts_without_a_reference_are_counted(none):
    with pytest.raises(
        ValueError, match=r"1 of 5 rows of the train dataset have no list of references .*row 4.*Remove the rows"
    ):
        make_trainer(**lists([*LISTS, {"prompt": "5=", "completions": none}]))


def test_an_empty_reference_is_counted():
    with pytest.raises(ValueError, match="1 of 10 rows of the train dataset have an empty `completion`"):
        make_trainer(**lists([*LISTS, {"prompt": "5=", "completions": [""]}]))


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ([*LISTS, {"prompt": "5=", "completions": ["5", "5"]}], {}),
        ([*SINGLE, {"prompt": "7=", "completion": "7"}], {"references": "grouped"}),
        # Different texts, cut to the same tokens.
        ([{"prompt": "5=", "completions": ["5" * 20, "5" * 30]}, *LISTS], {"max_length": 16}),
    ],
)
def test_references_that_stand_twice_are_counted(rows, settings):
    with pytest.raises(
        ValueError, match=r"1 of \d+ references of the train dataset stand twice with their prompt .*Remove the rep"
    ):
        make_trainer(**lists(rows), **settings)


def test_a_prompt_that_fits_into_no_pack_is_counted():
    with pytest.raises(
        ValueError,
        match=r"2 of 4 prompts of the train dataset have references of more than `max_length=18` tokens together, "
        r"prompts included \(at most 21\), and a pack must hold all",
    ):
        make_trainer(packing=True, max_length=18, **lists())
    with pytest.raises(ValueError, match="`packing=True` needs a `max_length`, the tokens of a pack, and it is None"):
        make_trainer(packing=True, max_length=None, **lists())


def test_what_cannot_keep_references_together_is_refused():
    with pytest.raises(ValueError, match="has both `completion` and `completions`: it is unclear which are the answ"):
        make_trainer(**lists([{**LISTS[0], "completion": "2*6"}]))
    with pytest.raises(ValueError, match=r"The train dataset is streaming and has several references for a prompt"):
        make_trainer(
            trainer_kwargs={"train_dataset": IterableDataset.from_generator(lambda: iter(ROWS))}, references="grouped"
        )
    with pytest.raises(ValueError, match="`skip_prepare_dataset=True` leaves rows as they are, so the references"):
        make_trainer(**lists(), dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(
        ValueError, match="of which p is the sum, and `unit='turn'` asks for the p of each turn. Leave `unit`"
    ):
        make_trainer(**lists(), unit="turn")
    with pytest.raises(ValueError, match="and `references='grouped'` adds those of whole answers. Choose one of the"):
        make_trainer(references="grouped", unit="turn")
    with pytest.raises(ValueError, match=r"`references` must be one of \('separate', 'grouped'\), got 'all'"):
        make_trainer(references="all")


def test_chains_of_thought_have_a_grader_instead(tmp_path):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    with pytest.raises(
        ValueError, match="`references='grouped'` is for probabilities that are computed, and here p i"
    ):
        CoTDCOConfig(references="grouped", **settings)
    with pytest.raises(
        ValueError, match="The train dataset has a column `completions`: here one rationale is trained"
    ):
        CoTDCOTrainer(make_model(), args=CoTDCOConfig(**settings), train_dataset=Dataset.from_list(LISTS))


def test_the_warning_about_shared_prompts_names_the_way_out(caplog):
    make_trainer(**lists(SINGLE))
    assert "set `references='grouped'` to add them up." in caplog.text
    caplog.clear()
    make_trainer(references="grouped", **lists(SINGLE))
    assert "also comes with another" not in caplog.text
