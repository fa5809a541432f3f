"""Exact coverage: equal to enumeration, to TRL's training, and to what sampling finds."""

import itertools
import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import make_model, make_tokenizer

from dco_trl.runs import DataError, Problem, evaluate
from dco_trl.sampling import SamplingParams, TransformersSampler, exact_coverage
from dco_trl.sampling.exact import _batches
from dco_trl.statistics import pass_at_k

CHAT = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<eos>\n' }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def problem(prompt, answer, name="0", **columns):
    return Problem(name, prompt, answer, columns)


def measure(model, tokenizer, *problems, **options):
    return exact_coverage(model, tokenizer, problems, progress=False, **options)


def naive(model, tokenizer, prompt_text, completion_ids, temperature=1.0):
    """Sum of log-softmax at each position, one row, no batch, no tricks; float64."""
    ids = tokenizer(prompt_text)["input_ids"]
    total = 0.0
    for token in completion_ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature
        total += (logits - logits.logsumexp(-1))[token].item()
        ids = ids + [token]
    return total


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma", "mixtral"])
def test_log_p_is_the_naive_sum_in_batches_of_any_size(family):
    model, tokenizer = make_model(family, initializer_range=0.2), make_tokenizer()
    problems = [
        problem("1+1=", "2", "a"),
        problem("what is 12*12?\nA: ", "144", "b"),
        problem("q", "a much longer answer, word by word", "c"),
        problem("10*10=", "100", "d"),
    ]
    expected = [
        naive(model, tokenizer, p.prompt, [*tokenizer(p.answer)["input_ids"], tokenizer.eos_token_id])
        for p in problems
    ]
    for batch_size in (1, 2, 64):
        exact = measure(model, tokenizer, *problems, batch_size=batch_size)
        np.testing.assert_allclose(exact.log_p, expected, rtol=1e-4)
        assert exact.log_p.dtype == np.float64 and exact.problem_ids == ("a", "b", "c", "d")
        assert exact.num_tokens.tolist() == [len(p.answer) + 1 for p in problems]
    # A temperature divides the logits of each token.
    warm = exact_coverage(model, tokenizer, problems[:1], temperature=2.0, progress=False)
    ids = [*tokenizer("2")["input_ids"], tokenizer.eos_token_id]
    np.testing.assert_allclose(warm.log_p, naive(model, tokenizer, "1+1=", ids, 2.0), rtol=1e-4)


def test_several_temperatures_come_from_one_forward_pass():
    model, tokenizer = make_model(initializer_range=0.2), make_tokenizer()
    problems = [problem("1+1=", "2", "a"), problem("what is 12*12?", "144", "b"), problem("q", "words", "c")]
    passes = []
    model.register_forward_hook(lambda *args: passes.append(1))
    temperatures = [1.0, 1.25, 3.0]
    together = measure(model, tokenizer, *problems, temperature=temperatures)
    assert len(passes) == 1
    alone = [measure(model, tokenizer, *problems, temperature=t) for t in temperatures]
    np.testing.assert_allclose(together.log_p, [one.log_p for one in alone], rtol=1e-6)
    assert together.log_p.shape == (3, 3) and alone[0].log_p.shape == (3,)
    ks = np.array([[1, 4], [16, 64]])
    np.testing.assert_allclose(together.pass_at_k(ks), [one.pass_at_k(ks) for one in alone], rtol=1e-6)
    assert together.pass_at_k(ks).shape == (3, 2, 2) and together.pass_at_k(4).shape == (3,)
    one_in_a_list = measure(model, tokenizer, *problems, temperature=[1.0])
    assert one_in_a_list.log_p.shape == (1, 3)


def test_a_tokenizer_without_an_end_takes_the_generation_configs():
    model, tokenizer = make_model(initializer_range=0.2), make_tokenizer()
    expected = measure(model, tokenizer, problem("1+1=", "2"))
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = 1
    endless = measure(model, tokenizer, problem("1+1=", "2"))
    assert (endless.log_p, endless.num_tokens) == (expected.log_p, expected.num_tokens)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no eos_token and the generation config names none.*Set `tokenizer.eos"):
        measure(model, tokenizer, problem("1+1=", "2"))


@pytest.mark.slow
def test_probabilities_of_all_answers_sum_to_one():
    # Every string of one or two characters with its end, and everything else.
    model, tokenizer = make_model(initializer_range=0.3), make_tokenizer()
    characters = [t for t in tokenizer.get_vocab() if len(t) == 1]
    one = [problem("5*5=", c, c) for c in characters]
    two = [problem("5*5=", a + b, a + b) for a, b in itertools.product(characters, repeat=2)]
    total = np.exp(exact_coverage(model, tokenizer, one + two, progress=False).log_p).sum()
    # The rest, from one forward pass each: empty answers, special tokens, and continuations after two characters.
    vocabulary = range(len(tokenizer))
    prompt = tokenizer("5*5=")["input_ids"]
    plain = {tokenizer.convert_tokens_to_ids(c) for c in characters}
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        second = model(torch.tensor([[*prompt, t] for t in vocabulary])).logits[:, -1].double().softmax(-1)
        pairs = [(a, b) for a in plain for b in plain]
        third = model(torch.tensor([[*prompt, a, b] for a, b in pairs])).logits[:, -1].double().softmax(-1)
    eos = tokenizer.eos_token_id
    rest = sum(first[t] for t in vocabulary if t not in plain)
    rest += sum(first[a] * second[a, t] for a in plain for t in vocabulary if t not in plain and t != eos)
    rest += sum(first[a] * second[a, b] * (1 - third[i, eos]) for i, (a, b) in enumerate(pairs))
    assert total + float(rest) == pytest.approx(1.0, abs=1e-5)


@pytest.fixture(scope="module")
def trained():
    """A model that answers `7*7=` with 4, 49, 94 or 449, with probabilities of about 1/2, 1/4, 1/8 and 1/8."""
    model, tokenizer = make_model(seed=3), make_tokenizer()
    texts = [f"7*7={answer}<eos>" for answer in ("4", "4", "4", "4", "49", "49", "94", "449")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


@pytest.mark.slow
def test_sampled_pass_at_k_lies_around_exact_coverage(trained, tmp_path):
    model, tokenizer = trained
    problems = [problem("7*7=", "4", "a"), problem("7*7= ", "9", "b"), problem(" 7*7=", "449", "c")]
    exact = measure(model, tokenizer, *problems)
    sampler = TransformersSampler(model, tokenizer=tokenizer, batch_size=1_000, progress=False)
    result = evaluate(
        tmp_path / "run", problems, sampler, "exact", 2_000, SamplingParams(max_tokens=6), progress=False
    )
    correct = np.array([p.num_correct for p in result.problems])
    p = np.exp(exact.log_p)
    assert p[0] > 0.2
    for k in (1, 4, 16, 64):
        # To first order, each problem's estimate has the standard deviation of k (1-p)^(k-1) times the rate's.
        spread = np.sqrt(((k * (1 - p) ** (k - 1)) ** 2 * p * (1 - p) / 2_000).sum()) / len(p)
        assert abs(pass_at_k(2_000, correct, k).mean() - exact.pass_at_k(k)) < 5 * spread + 2e-3


def test_pass_at_k_is_the_mean_coverage_at_any_k():
    model, tokenizer = make_model(initializer_range=0.3), make_tokenizer()
    exact = measure(model, tokenizer, *(problem("1+1=", c, c) for c in "0123"))
    p = np.exp(exact.log_p)
    ks = np.array([1, 7, 4096, 10**9])
    expected = [(1 - (1 - p) ** float(k)).mean() for k in ks]
    np.testing.assert_allclose(exact.pass_at_k(ks), expected, rtol=1e-6)
    assert exact.pass_at_k(7).shape == () and exact.pass_at_k(7) == pytest.approx(expected[1])


def test_adapters_and_modes():
    model, tokenizer = make_model(initializer_range=0.2), make_tokenizer()
    problems = [problem("1+1=", "2")]
    plain = measure(model, tokenizer, *problems).log_p
    lora = get_peft_model(make_model(initializer_range=0.2), LoraConfig(init_lora_weights=False, lora_dropout=0.5))
    lora.train()
    changed = measure(lora, tokenizer, *problems).log_p
    assert abs(changed - plain).max() > 1e-3
    assert lora.training and changed == measure(lora, tokenizer, *problems).log_p  # no dropout
    tuned = get_peft_model(
        make_model(initializer_range=0.2), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    tuned.eval()
    ids = torch.tensor([tokenizer("1+1=2<eos>")["input_ids"]])
    with torch.no_grad():
        logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :].double()
    expected = logits.log_softmax(-1)[range(3, 5), ids[0, 4:6]].sum()
    np.testing.assert_allclose(measure(tuned, tokenizer, *problems).log_p, expected, rtol=1e-4)


def test_completion_templates():
    model, tokenizer = make_model(), make_tokenizer()
    plain = measure(model, tokenizer, problem("1+1=", " 2 m")).log_p
    filled = measure(model, tokenizer, problem("1+1=", "2", unit="m"), completion_template=" {answer} {unit}")
    assert filled.log_p == plain
    # As in training, an end that is there already is not added again.
    assert measure(model, tokenizer, problem("1+1=", " 2 m<eos>")).log_p == plain


def test_an_answer_that_is_also_another_column_is_refused():
    """Prompt-completion rows have the reference ` 2`, and may have a column `answer` with `2`."""
    model, tokenizer = make_model(), make_tokenizer()
    row = Problem("0", "1+1=", " 2", {"answer": "2"})
    with pytest.raises(
        DataError, match="`answer_column` must .* ' {answer}' means: .*'0' the reference is ' 2', but .* has '2'. Name"
    ):
        measure(model, tokenizer, row, completion_template=" {answer}")
    as_it_is = measure(model, tokenizer, row)
    assert as_it_is.log_p == measure(model, tokenizer, problem("1+1=", " 2")).log_p


@pytest.mark.parametrize("template", ["{oops}", "{answer!x}", "{answer.oops}", "{0}", "{answer", "{answer:d}"])
def test_bad_templates_are_one_error(template):
    told = r"`completion_template` '.*' cannot be filled in for problem '0'.*it may name \['answer', 'unit'\]. Doub"
    with pytest.raises(DataError, match=told):
        measure(make_model(), make_tokenizer(), problem("a", "b", unit="m"), completion_template=template)


def test_templates_without_an_end_and_prompts_that_tokenise_otherwise_are_reported(caplog):
    model, tokenizer = make_model(), make_tokenizer()
    tokenizer.chat_template = CHAT.replace("<eos>", "").replace("{{ 'a:' }}", "{{ 'a-' }}")
    with caplog.at_level(logging.WARNING):
        exact = exact_coverage(model, tokenizer, [problem([{"role": "user", "content": "q"}], "2")], progress=False)
    assert "1 of 1 answers do not end with an end of sequence (first: '0')" in caplog.text
    assert "1 of 1 prompts tokenise differently alone and before their answer" in caplog.text
    assert exact.num_tokens == [3]  # ':', '2', line break: from where the two differ


@pytest.mark.parametrize(
    "problems, options, message",
    [
        ([], {}, "problems is empty: there is no answer to compute .*. Give at least one"),
        ([problem("a", "b")], {"temperature": 0}, "temperature must be above 0, got 0"),
        ([problem("a", "b")], {"temperature": []}, r"temperature must be above 0, got \[\]"),
        ([problem("a", "b")], {"temperature": [1.0, -1.0]}, "temperature must be above 0, got"),
        ([problem("a", "b")], {"temperature": [[1.0]]}, "temperature must be above 0, got"),
        ([problem("a", "b")], {"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ([problem("a", "b")], {"batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        (
            [problem("a", "b"), problem("1" * 8, "2" * 8, "x")],
            {},
            "problem 'x': prompt and answer have 17 tokens, more than the 16",
        ),
        ([problem("", "b", "x")], {}, "problem 'x': under .* no token of the prompt before the answer. Change its"),
        (
            [problem([{"role": "user", "content": "1"}], "", "x")],
            {},
            "problem 'x': under this tokenizer there is no token of the answer after the prompt. Change its text",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(problems, options, message):
    model, tokenizer = make_model(max_position_embeddings=16), make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=message):
        measure(model, tokenizer, *problems, **options)


def test_batches_are_bounded_by_their_logits():
    rows = [([0] * n, n - 3) for n in (10, 11, 400, 12, 13)]
    assert list(_batches(rows, 64, 1_000)) == [[0, 1, 3, 4, 2]]
    batches = list(_batches(rows, 64, 2**25))
    assert sorted(itertools.chain(*batches)) == list(range(5))
    for batch in batches:
        span = max(len(rows[i][0]) for i in batch) - min(rows[i][1] for i in batch)
        assert len(batch) == 1 or len(batch) * span * 2**25 <= 2**27
    assert max(len(batch) for batch in _batches(rows, 2, 10)) == 2
