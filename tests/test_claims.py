"""The headline figures of the README and the results pages, computed from the committed data."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dco_trl.coverage_numpy import coverage
from dco_trl.statistics import cross_fit_schedule
from research.schedules import pair, when_it_pays
from research.schedules.run import ARM_TEMPERATURES, Arms

ROOT = Path(__file__).parents[1]
MATH = ROOT / "research/schedules/results/smollm2-math"
CE_MATH, DCO_MATH = "cross-entropy_repeat-3_seed-1", "DCO_num_attempts-256_seed-1"
RESULTS = sorted((ROOT / "docs/results").glob("*.md"))
BEST, WEIGHT_1, FLOOR = "cross-entropy, best epoch", "weight 1, 4 own", "DCO, 4 own, floor"
SECOND, GSM8K = "chain_of_thought/results/second-round.json", "chain_of_thought/results/smollm2-gsm8k.json"


read = cache(when_it_pays.read)


@cache
def text_of(page: str) -> str:
    path = ROOT / "README.md" if page == "README" else next(ROOT.glob(f"docs/**/{page}.md"))
    return re.sub(r"\s+", " ", path.read_text().replace("&nbsp;", " "))


def claims(page: str, *sentences: str) -> None:
    for sentence in sentences:
        assert re.sub(r"\s+", " ", sentence) in text_of(page)


def per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(found: dict, mean: str = "mean", sign: str = "+") -> str:
    """`+5.0 [3.1, 7.0]`, of shares."""
    return f"{100 * found[mean]:{sign}.1f} [{per_cent(found['low'])}, {per_cent(found['high'])}]"


def difference(results: str, of: str, less: str, k: int) -> dict:
    stored = read(results)
    [found] = [row for row in stored["differences"] if (row["of"], row["from"]) == (of, less)]
    at = stored["k"].index(k)
    return {name: found[name][at] for name in ("mean", "difference", "low", "high") if name in found}


def math_by_epoch(run: str) -> list[list[str]]:
    """Test coverage at temperature 1 by epoch, per cent."""
    half = json.loads((MATH / f"{run}.json").read_text())["num_validation"]
    log_p = np.minimum(np.load(MATH / f"{run}.npz")["log_p"][:, 0, half:].astype(float), 0.0)
    return [[per_cent(coverage(of_epoch, k).mean()) for k in (1, 16, 256, 4096)] for of_epoch in log_p]


def test_table_1_on_math():
    rows = re.findall(r"\| (\d) \| " + r" \| ".join([r"([\d.]+) %"] * 4) + r" \|", text_of("fidelity"))
    published = {int(epoch): theirs for epoch, *theirs in rows}
    assert len(published) == 4
    by_epoch = zip(math_by_epoch(CE_MATH), math_by_epoch(DCO_MATH), strict=True)
    for epoch, (ce, dco) in enumerate(by_epoch, start=1):
        assert f"| {epoch} | {' | '.join(ce + dco)} |" in text_of("smollm2-math").replace("*", "")
        if epoch != 5:
            claims("README", f"| {epoch} | {' | '.join(ce + dco + published.get(epoch, [''] * 4))} |")


def test_schedules_of_multiplication():
    results = read("schedules/results/multiplication.json")
    at = results["k"].index(256)
    of = {
        name: {part: rows[at] for part, rows in family.items() if isinstance(rows, list)}
        for name, family in results["families"].items()
    }
    plain, both = of["cross-entropy"], of.pop("cross-entropy and DCO")
    gain, added = points(plain["gain"]), points(plain["ours_ahead"])
    claims("schedule", f"| 256 | {gain} | {added} |")
    claims("README", f"| 256 | [{gain.replace(' ', '](docs/results/schedule.md) ', 1)} |")
    claims("README", f"add {added[1:]} to the schedule of cross-entropy")
    last, dco = (
        results["ingredients"][f"one run of {run}: last epoch"][at]["mean"]
        for run in ("cross-entropy", "DCO, N = 256")
    )
    claims(
        "schedule",
        f"the *last* epoch ({per_cent(last)} %) comes from stopping at the best one "
        f"({per_cent(plain['best_arm']['mean'])} %); the schedule reaches {per_cent(plain['schedule']['mean'])} %",
        f"DCO with N = 256 alone has {per_cent(dco)} % at its last epoch, the schedule over cross-entropy and DCO "
        f"{per_cent(both['schedule']['mean'])} %, and the best single model of 20 runs, chosen for each k, "
        f"{per_cent(results['any_arm'][at]['mean'])} %",
    )
    gains = [family["gain"]["mean"] for family in of.values()]
    rivals = f"{per_cent(min(gains))} to {per_cent(max(gains))} points"
    claims("comparison", f"added {rivals}, over DCO's own {points(both['gain'])}")


def test_dco_against_its_baselines():
    results = read("baselines/results/multiplication.json")
    against = {rival: rows["256"] for rival, rows in results["differences"]["DCO"].items()}
    claims("README", f"| {points(against['cross-entropy, temperature tuned'])}, against tuned temperatures too |")
    assert min(found["low"] for found in against.values()) > 0
    assert 0.13 < min(found["mean"] for found in against.values()) < 0.14
    claims("README", "13 or more points ahead at pass@256")
    last = {
        s["setting"].get("num_attempts", 1): s["last_epoch"]["mean"]
        for s in results["settings"]
        if s["method"] in ("cross-entropy", "DCO")
    }
    ks = results["settings"][0]["k"]
    lost = {(n, k): 100 * (max(of[i] for of in last.values()) - last[n][i]) for n in last for i, k in enumerate(ks)}
    assert lost[256, 64] == 0
    claims(
        "baselines",
        f"{lost[256, 1]:.1f} points at k = 1, none at 64, {lost[256, 256]:.1f} at 256 and {lost[256, 1024]:.1f} at "
        f"1,024, where N = 16 loses {lost[16, 256]:.0f} at k = 256",
    )
    claims(
        "choosing-n",
        f"N = 256 loses {lost[256, 1]:.1f} points at k = 1 and {lost[256, 1024]:.1f} at k = 1,024; N = 16 loses "
        f"{lost[16, 1]:.1f} points at k = 1",
        f"and {lost[16, 256]:.0f} at k = 256",
    )


def test_chains_of_thought():
    def both_rounds(of: str, less: str) -> list[str]:
        first = difference("chain_of_thought/results/first-round.json", of, less, 64)
        of = of if of != "DCO, 4 own" else "DCO, 4 own, N = 64"
        return [points(first), points(difference(SECOND, of, less, 64))]

    dco, schedule = both_rounds("DCO, 4 own", BEST), both_rounds("schedule, cross-entropy", BEST)
    weight, floor = both_rounds("DCO, 4 own", WEIGHT_1), both_rounds(FLOOR, WEIGHT_1)
    claims("cot", *(f"| {' | '.join(row)} |" for row in (dco, schedule, weight)))
    claims("cot", f"| {floor[0]}, 3 seeds | {floor[1]} |")
    claims("README", f"| 64 | {', '.join(schedule)} | {', '.join(dco)} |", f"was {weight[0]}, then {weight[1]}")


def test_one_checkpoint_has_one_of_the_floors_two_figures():
    stored = read(SECOND)
    at = {k: stored["k"].index(k) for k in (1, 4, 64)}
    course = {
        (c["method"], c["num_attempts"], epoch): {k: per_cent(mean[i]) for k, i in at.items()}
        for c in stored["epochs"]
        for epoch, mean in zip(c["epochs"], c["mean"], strict=True)
    }
    at_16, at_32 = course[FLOOR, 64, 16], course[FLOOR, 64, 32]
    n_4, n_16 = course["DCO, 4 own", 4, 32], course["DCO, 4 own", 16, 32]
    chosen = {k: per_cent(stored["rows"][FLOOR]["mean"][i]) for k, i in at.items()}
    claims(
        "cot",
        f"its epoch 16 solves {at_16[1]} % with one attempt and {at_16[64]} % within 64; "
        f"its epoch 32 solves {at_32[1]} % and {at_32[64]} %",
        f"so {chosen[1]} and {chosen[64]} % are two checkpoints",
        f"({n_4[1]} and {n_4[4]} % at its last epoch)",
        f"N = 16 comes within about a point ({n_16[64]} %)",
    )
    page = text_of("cot").replace("+", "")
    for n, words in ((4, " points of pass@1"), (16, "")):
        found = [difference(SECOND, f"DCO, 4 own, N = {n}", "DCO, 4 own, N = 64", k) for k in (1, 64)]
        pass_1, pass_64 = (points(one, sign="") for one in found)
        assert f"N = {n} gains {pass_1.replace(' [', f'{words} [')} and is at" in page
        assert f"and is at {pass_64}".replace(" [", " at pass@64 [" if n == 4 else " [") in page


def test_math():
    names = {"plain": ("cross-entropy_repeat-2_seed-0", CE_MATH), "both": (CE_MATH, DCO_MATH)}
    arms = {
        name: Arms.join([Arms.read(MATH / f"{run}.json", 1, ARM_TEMPERATURES, False, False) for run in runs])
        for name, runs in names.items()
    }
    plain, both = (pair.along_schedule(arms[name]) for name in names)
    at = pair.KS.tolist().index(256)
    own, added = (
        points({name: ends[at] for name, ends in pair.paired(one, other, pair.KS).items()}, "difference")
        for one, other in ((pair.of_best_arm(arms["plain"]), plain), (plain, both))
    )
    stored = "schedules/results/smollm2-lora-16.json"
    found = difference(stored, "schedule, cross-entropy", "best epoch, cross-entropy", 256)
    lora = points(found, "difference")
    claims("schedule", f"one pair of runs | 256 | {own} | {added} |", f"2 seeds | 256 | {lora} |")
    gains = {row["task"]: row["gain"] for row in read("schedules/results/when-it-pays.json")["rows"]}
    level = f"level: {gains['MATH, 3,750 problems']:+.1f}, {gains['MATH, 256 problems, LoRA']:+.1f}"
    claims("README", f"| 256 | {own}, {lora} | {level} |")


def test_gsm8k():
    dco = points(difference(GSM8K, "DCO, own", "cross-entropy, best epoch", 16), "difference")
    counts = {run["seed"]: run["correct"] for run in read(GSM8K)["runs"] if run["method"] == "cross-entropy"}
    gains = []
    for seed in (0, 1):
        correct = np.array(list(counts[seed].values()))
        found = cross_fit_schedule([1, 4, 16], num_sampled=np.full(correct.shape, 16), num_correct=correct).best_arm
        gains.append(points({name: getattr(found, name)[-1] for name in ("difference", "low", "high")}, "difference"))
    claims("README", f"no gain: {', '.join(gains)} | no gain: {dco} |")
    claims("smollm2-gsm8k-cot", f"{gains[0].replace(' [', ' points [')} and {gains[1]} from the best epoch")


def test_the_demo():
    runs = read("baselines/results/demo.json")["runs"]
    at = runs[0]["k"].index(256)
    curves = {(run["num_attempts"], run["seed"]): np.array(run["coverage"])[:, at] for run in runs}
    ce, dco = (np.mean([curve for (n, _), curve in curves.items() if n == wanted], axis=0) for wanted in (1, 256))
    fall = f"falls from {100 * ce.max():.0f} to {100 * ce[-1]:.0f} %"
    claims("README", f"cross-entropy {fall}, DCO with N = 256 ends at {100 * dco[-1]:.0f} %")
    for check in (run["check"] for run in runs):
        off = (check["sampled"] - check["exact"]) / check["standard_error"]
        claims("demo", f"{per_cent(check['sampled'])} / {per_cent(check['exact'])} ({off:+.1f})")


def test_skipping_what_is_learnt():
    runs = read("options/results/skip-learnt.json")["runs"]
    at = read("options/results/skip-learnt.json")["k"].index(256)
    theirs = {r["seed"]: r["coverage"][-1][at] for r in read("baselines/results/demo.json")["runs"]
              if r["num_attempts"] == 256}  # fmt: skip
    ends = {r["seed"]: r["coverage"][-1][at] for r in runs if (r["method"], r["num_attempts"]) == ("all", 256)}
    gap = [theirs[seed] - ends[seed] for seed in ends]
    half = stats.t.ppf(0.975, len(gap) - 1) * stats.sem(gap)
    paired = points({"mean": np.mean(gap), "low": np.mean(gap) - half, "high": np.mean(gap) + half})
    mean, demo = (per_cent(np.mean(list(of.values()))) for of in (ends, theirs))
    claims("skip-learnt", f"ends at {mean} % with N = 256", f"end at {demo} % (paired {paired})")


def test_mazes():
    results, schedules = read("baselines/results/mazes.json"), read("schedules/results/mazes.json")
    for rival, rows in results["differences"]["DCO"].items():
        if rival.endswith(("tuned", "last epoch")):
            claims("mazes", f"| {rival} | {' | '.join(points(rows[k]) for k in ('1', '16', '256', '4096'))} |")
    at = schedules["k"].index(256)
    gain = points(schedules["families"]["cross-entropy"]["gain"][at])
    added = points(schedules["families"]["cross-entropy"]["ours_ahead"][at])
    claims("schedule", f"| 256 | {gain} | {added} |")
    level = points(results["differences"]["DCO"]["cross-entropy, best epoch"]["256"])
    claims("README", f"| [mazes](docs/results/mazes.md), tiny model, 5 seeds | 256 | {gain} | level: {level} |")
    assert all(found["high"] > 0 for found in schedules["ours_less_any_arm"])
    found = when_it_pays.baselines("mazes", "", "baselines/results/mazes.json")
    claims(
        "mazes",
        f"*given up* is {found['given up']:.2f}".replace("0.", "."),
        f"the gain is {found['gain']:+.1f} points",
    )
    for row in read("baselines/results/mazes-solved.json")["rows"]:
        cells = [per_cent(row[name]) for name in ("solved", "exact", "error")]
        claims("mazes", f"| {row['k']} | {' | '.join(cells)} |")


def test_countdown():
    for name, row in read("countdown/results/countdown.json")["rows"].items():
        means = [per_cent(at["mean"]) for at in row["pass_mean"]]
        seeds = ", ".join(per_cent(of_seed[-1]) for of_seed in row["pass"])
        claims(
            "countdown", f"| {name} | {' | '.join(means)} | {seeds} | {per_cent(row['reference_mean'][-1]['mean'])} |"
        )


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_every_results_page_says_how_it_was_made_and_what_it_does_not_show(page):
    raw, text = page.read_text(), text_of(f"results/{page.stem}")
    assert re.search(r"^```(sh|bash)\n.*\b(python|make|dco-trl) |`git show ", raw, re.MULTILINE), "no command"
    assert re.search(r"[Pp]ython 3\.1\d", text) and re.search(r"(torch|NumPy|numpy|pyarrow) 2", text), "no versions"
    assert re.search(r"x86-64|H100|EPYC|Xeon", text), "no processor"
    assert re.search(r"commit [0-9a-f]{7}\b", text), "no commit"
    assert re.search(r"^#+ What (this|it) does not show", raw, re.MULTILINE), "nothing of what it does not show"
