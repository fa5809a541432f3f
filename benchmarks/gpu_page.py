"""What `gpu_check.py` found, as a page and as lines for the terminal."""

import textwrap
from typing import Any

HEAD = """# On a GPU

```sh
{command}
```

{environment}
"""
NOTE = "Weights are random throughout. Ratios are medians of interleaved pairs, with quartiles in brackets."
TITLES = {"qlora": "QLoRA", "vllm": "vLLM", "cot-window": "A window of chains of thought", "table-1": "Table 1"}


def page(record: dict[str, Any], descriptions: dict[str, str], command: str) -> str:
    """Markdown of a record: a section for each step, in their order."""
    parts = [HEAD.format(command=command, environment=wrap(f"{describe(record['environment'])} {NOTE}"))]
    for name, step in record["steps"].items():
        title = TITLES.get(name, name.replace("-", " ").capitalize())
        parts.append(f"## {title}\n\n{wrap(descriptions[name])}\n")
        if step["status"] != "done":
            parts.append(f"**{step['status'].capitalize()}**: {last_line(step['reason'])}\n")
            continue
        for found in step["tables"]:
            parts.append(f"{found['title']}:\n\n{table(found['rows'])}\n")
        failed = [check["what"] for check in step["checks"] if not check["passed"]]
        if step["checks"]:
            parts.append(f"{len(step['checks']) - len(failed)} of {len(step['checks'])} checks hold.\n")
        if failed:
            parts.append("\n".join(f"- **Does not hold**: {what}" for what in failed) + "\n")
    return "\n".join(parts)


def wrap(text: str) -> str:
    return textwrap.fill(text, 140, break_long_words=False, break_on_hyphens=False)


def last_line(text: str) -> str:
    return text.strip().split("\n")[-1]


def describe(environment: dict[str, Any]) -> str:
    """Device and versions, in one sentence."""
    device = environment["device"]
    where = f"{device['name']}, {device['memory_gib']:.0f} GiB, driver {device['driver']}" if device else "No GPU"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return f"{where}, {environment['cpu_cores']} CPU cores; {versions}."


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    if not rows:
        return "(none)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """One value, numbers with four digits at most."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"[{', '.join(map(cell, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
    return str(value)


def summary(record: dict[str, Any]) -> str:
    """A line for each step, for the terminal."""
    lines = []
    for name, step in record["steps"].items():
        failed = sum(not check["passed"] for check in step.get("checks", []))
        verdict = step["status"] if step["status"] != "done" else f"{failed} FAILED" if failed else "ok"
        text = step.get("headline") or last_line(step["reason"])
        lines.append(f"{name:18} {verdict:9} {step.get('seconds', 0):5.0f} s  {text}")
    return "\n".join(lines)
