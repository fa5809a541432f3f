"""The page in a real browser fetches nothing, runs nothing that a model wrote, and has a working table."""

import re

import numpy as np
import pytest

from dco_trl.report import write_report
from dco_trl.report.tables import with_interval
from dco_trl.runs.results import AnswerCount, ProblemResult, RunResult

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ATTACK = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><b>bold</b>\x00\u202e"
PROBLEMS, SAMPLES = 500, 4096


def synthetic_run(name, seed):
    """A run of 500 x 4,096 with many duplicates, as real runs have, and a script in every text of one problem."""
    rng = np.random.default_rng(seed)
    problems = []
    for i in range(PROBLEMS):
        right = int(rng.binomial(SAMPLES, rng.beta(0.3, 1))) if i % 10 else 0
        counts = rng.multinomial(SAMPLES - right, rng.dirichlet(np.full(300, 0.03)))
        answers = [
            AnswerCount(f"\\frac{{{j}}}{{{i + 2}}}", int(c), False, "graded") for j, c in enumerate(counts) if c
        ]
        answers += [AnswerCount(str(i), right, True, "graded")] if right else []
        examples = tuple((j, f"sample {j} " + "thinking step by step " * 150, j % 2 == 1) for j in range(6))
        text = ATTACK if i == 10 else f"How much is {i} + 0?"
        if i == 10:
            answers, examples = [AnswerCount(ATTACK, SAMPLES, False, "graded")], ((0, ATTACK, False),)
        problems.append(
            ProblemResult(
                f"p{i:03d}", text, ATTACK if i == 10 else str(i), SAMPLES, right, 0,
                tuple(sorted(answers, key=lambda a: -a.count)), examples,
            )
        )  # fmt: skip
    return RunResult(name, {"model": ATTACK}, "math", tuple(problems))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = [synthetic_run("ce", 0), synthetic_run("dco <i>", 1)]
    return write_report(results, tmp_path_factory.mktemp("report"), k=(1, 64, 4096))


@pytest.fixture
def opened(browser, report):
    """The open page. At the end, it must have reported no error and used no network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    errors, requests = [], []
    tab.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(report.html.as_uri())
    yield tab
    assert errors == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [report.html.as_uri()]
    assert tab.evaluate("window.hacked") is None
    context.close()


def first_ids(tab, count=5):
    return tab.locator("button.open b").all_inner_texts()[:count]


def test_it_is_light_and_renders_on_demand(opened, report):
    assert report.html.stat().st_size < 13e6
    # The page opens quickly on any machine, because it shows 100 rows and no details.
    assert opened.locator("button.open").count() == 100
    assert opened.locator("tr.detail:not([hidden]), tr.detail pre").count() == 0
    assert opened.evaluate("document.querySelectorAll('*').length") < 8000
    assert opened.evaluate("document.querySelectorAll('script[id^=detail-]').length") == PROBLEMS


def test_policy_forbids_the_network(opened):
    policy = opened.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-inline" not in policy.split(";")[1]
    assert opened.locator("script[src], link[rel=stylesheet], iframe").count() == 0


def titles(tab, picture):
    """The titles of a picture's strips, from left to right, as lines, after a check that the pointer finds each."""
    tab.locator(".plot svg").nth(picture).scroll_into_view_if_needed()
    strips = tab.evaluate(
        """(i) => [...document.querySelectorAll(".plot")[i].querySelectorAll("title")].map((title) => {
          const box = title.parentNode.getBoundingClientRect();
          const found = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
          return [box.x, title.parentNode.contains(found), title.textContent];
        })""",
        picture,
    )
    assert all(under_pointer for _, under_pointer, _ in strips)
    return [text.split("\n") for _, _, text in sorted(strips)]


def test_coverage_is_drawn_and_read_off(opened, report):
    found = titles(opened, 0)
    curve = report.summary.runs[0].curve
    assert [head for head, *_ in found] == [f"pass@{entry.k:,}, 95 % interval" for entry in curve]
    for i in (0, len(curve) // 2, -1):
        expected = [f"{run.name}: {with_interval(run.curve[i])}" for run in report.summary.runs]
        assert found[i][1:] == expected
    assert {"ce", "dco <i>", "pass@k"} <= set(opened.locator(".plot svg").first.locator("text").all_text_contents())


def test_histograms_hold_every_problem(opened, report):
    confidence, success = titles(opened, 1), titles(opened, 2)
    counts = np.array([re.findall(r"\d+", line) for _, line in confidence]).astype(int)
    right = [sum(problem.top_correct for problem in run.problems) for run in report.summary.runs]
    assert len(counts) == 40 and counts.sum(axis=0).tolist() == [sum(right), 2 * PROBLEMS - sum(right)]
    never = [f"{run.name}: {run.never_solved['count']} problems" for run in report.summary.runs]
    assert success[0] == ["never solved", *never]


def test_sort_by_click_and_by_keyboard(opened):
    heading = opened.locator("table.problems th", has_text="ce: success rate")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert {"p000", "p010", "p020"} <= set(first_ids(opened, 100))
    assert opened.locator("table.problems tbody td:nth-child(3)").first.inner_text().startswith("0.0 %")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    rates = [
        float(text.split(" %")[0])
        for text in opened.locator("table.problems tbody tr:not(.detail) td:nth-child(3)").all_inner_texts()
    ]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1] and len(rates) == 100
    opened.locator("table.problems th button").first.focus()
    opened.keyboard.press("Enter")
    assert first_ids(opened, 3) == ["p000", "p001", "p002"]
    assert heading.get_attribute("aria-sort") is None


def test_search_and_more(opened):
    opened.get_by_label("Search").fill("P12")
    assert first_ids(opened, 20) and all(name.startswith("p12") for name in first_ids(opened, 20))
    assert "10 match" in opened.get_by_role("status").inner_text()
    opened.get_by_label("Search").fill("")
    opened.get_by_role("button", name="Show 100 more").click()
    assert opened.locator("button.open").count() == 200


def test_a_problem_opens_by_keyboard_with_counts_and_verdicts(opened, report):
    opened.get_by_label("Search").fill("p123")
    button = opened.locator("button.open")
    assert opened.locator("tr.detail pre").count() == 0
    button.focus()
    opened.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    detail = opened.locator("tr.detail")
    assert "How much is 123 + 0?" in detail.inner_text() and "✓ right" in detail.inner_text()
    num_distinct = report.summary.runs[0].problems[123].num_distinct
    assert f", {num_distinct} distinct answers, 0 samples stopped" in detail.inner_text()
    counts = detail.locator("section").first.locator("tbody td:nth-child(2)").all_inner_texts()
    left_out = detail.locator("section").first.get_by_text("Not shown:").all_inner_texts()
    counts += [re.search(r"answers, ([\d,]+) samples", text)[1] for text in left_out]
    assert sum(int(count.replace(",", "")) for count in counts) == SAMPLES
    assert "sample 1 thinking" in detail.inner_text()
    opened.keyboard.press("Enter")
    assert not detail.is_visible()


def test_model_output_is_text(opened):
    opened.get_by_label("Search").fill("p010")
    opened.locator("button.open").click()
    detail = opened.locator("tr.detail")
    shown = ATTACK.replace("\x00", "␀")
    assert detail.locator("pre").last.text_content() == shown
    assert detail.locator("td.answer").first.text_content() == shown
    assert opened.locator("main img, main b b").count() == 0
    opened.locator("details summary").first.click()
    assert "<b>bold</b>" in opened.locator("details td").nth(1).text_content()


def test_narrow_and_dark(opened):
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != light
    opened.set_viewport_size({"width": 360, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
