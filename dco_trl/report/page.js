"use strict";
// All text from models, data sets and manifests reaches the page through textContent, never as markup.

const PAGE = 100; // rows added at a time
const report = JSON.parse(document.getElementById("report-data").textContent);
const percent = (share) => (100 * share).toFixed(share > 0 && share < 0.001 ? 3 : 1) + " %";
const count = (value) => value.toLocaleString("en-GB");
const runColour = (index) => `--run-${index % 7}`;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") for (const [key, set] of Object.entries(value)) node.style.setProperty(key, set);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Control characters are shown by their symbols; direction marks cannot reach outside the element.
const visible = (text) => text.replace(/[\x00-\x08\x0b-\x1f\x7f]/g,
  (c) => (c === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0))));
const isolated = (tag, attributes, text) => element(tag, { dir: "auto", ...attributes }, visible(text));

function problemTable(group, groupIndex) {
  const columns = [
    { label: "Problem", key: (p) => p.order },
    { label: "Reference", key: (p) => p.reference.toLowerCase() },
  ];
  group.runs.forEach((run, r) => {
    const name = group.runs.length > 1 ? `${run}: ` : "";
    const rate = (p) => p.runs[r].c / p.runs[r].n;
    columns.push({ label: `${name}success rate`, key: rate, number: true, cell: (p) => rateCell(p.runs[r], r) });
    columns.push({ label: `${name}most frequent answer`, key: (p) => p.runs[r].top, number: true,
      cell: (p) => topCell(p.runs[r]) });
  });
  const problems = group.problems.map((p, order) => ({ ...p, order,
    text: [p.id, p.prompt, p.reference].join("\n").toLowerCase() }));
  const state = { column: 2, down: false, query: "", shown: PAGE, open: new Set() };

  const search = element("input", { type: "search", id: `search-${groupIndex}`, autocomplete: "off", spellcheck: "false" });
  const status = element("span", { class: "note", role: "status" });
  const body = element("tbody");
  const more = element("button", { type: "button", class: "more" });
  const headers = columns.map((column, c) => {
    const button = element("button", { type: "button" });
    button.append(visible(column.label));
    button.addEventListener("click", () => {
      state.down = state.column === c ? !state.down : false;
      state.column = c;
      draw();
    });
    return element("th", { scope: "col", ...(column.number ? { class: "number-head" } : {}) }, button);
  });

  function draw() {
    const key = columns[state.column].key;
    const found = problems.filter((p) => p.text.includes(state.query));
    found.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const order = x < y ? -1 : x > y ? 1 : 0;
      return (state.down ? -order : order) || a.order - b.order;
    });
    headers.forEach((header, c) => {
      if (c === state.column) header.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    });
    const shown = found.slice(0, state.shown);
    body.replaceChildren(...shown.flatMap(rows));
    status.textContent = `${count(shown.length)} of ${count(problems.length)} problems shown` +
      (found.length < problems.length ? `, ${count(found.length)} match` : "");
    more.hidden = shown.length === found.length;
    more.textContent = `Show ${count(Math.min(PAGE, found.length - shown.length))} more`;
  }

  function rows(p) {
    const open = state.open.has(p.order);
    const id = `problem-${groupIndex}-${p.order}`;
    const button = element("button", { type: "button", class: "open", "aria-expanded": String(open), "aria-controls": id },
      isolated("b", {}, p.id), isolated("span", { class: "excerpt" }, p.prompt));
    const row = element("tr", {}, element("td", { class: "problem" }, button),
      isolated("td", { class: "reference answer" }, p.reference),
      ...columns.slice(2).map((column) => column.cell(p)));
    const detail = element("tr", { class: "detail", id, ...(open ? {} : { hidden: "" }) },
      element("td", { colspan: String(columns.length) }));
    if (open) detail.firstChild.append(detailBody(group, groupIndex, p));
    button.addEventListener("click", () => {
      const opening = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(opening));
      detail.hidden = !opening;
      if (opening) {
        state.open.add(p.order);
        if (!detail.firstChild.hasChildNodes()) detail.firstChild.append(detailBody(group, groupIndex, p));
      } else state.open.delete(p.order);
    });
    return [row, detail];
  }

  search.addEventListener("input", () => {
    state.query = search.value.trim().toLowerCase();
    state.shown = PAGE;
    draw();
  });
  more.addEventListener("click", () => { state.shown += PAGE; draw(); });
  draw();
  const label = element("label", { for: search.id }, "Search ");
  const heading = report.groups.length > 1 ? [element("h3", {}, visible(group.title))] : [];
  return [...heading, element("div", { class: "tools" }, label, search, status),
    element("div", { class: "scroll" }, element("table", { class: "problems" },
      element("caption", {}, "Choose a column's heading to sort by it, or a problem to see its answers."),
      element("thead", {}, element("tr", {}, ...headers)), body)), more];
}

function rateCell(run, r) {
  const share = run.c / run.n;
  return element("td", { style: { "--fill": `var(${runColour(r)})` } },
    `${percent(share)} `, element("span", { class: "interval nowrap" }, `${count(run.c)} of ${count(run.n)}`),
    element("span", { class: "bar", "aria-hidden": "true" }, element("i", { style: { width: `${100 * share}%` } })));
}

function topCell(run) {
  if (run.top < 0) return element("td", { class: "empty" }, "none");
  return element("td", {}, `${percent(run.top)} `, verdict(run.top_correct, "graded"));
}

function verdict(correct, status) {
  const text = correct ? "✓ right" : status === "graded" ? "✗ wrong" : `✗ ${status}`;
  return element("span", { class: correct ? "verdict-right" : "verdict-wrong" }, text);
}

function detailBody(group, groupIndex, p) {
  const source = document.getElementById(`detail-${groupIndex}-${p.order}`);
  if (!source) return element("p", { class: "note" }, "Left out to keep this file small; the run folder holds it.");
  const detail = JSON.parse(source.textContent);
  const body = element("div", { class: "detail-body" }, element("h4", {}, "Prompt"), raw(detail.prompt),
    element("h4", {}, "Reference answer"), raw(detail.reference));
  const runs = element("div", { class: "detail-runs" });
  detail.runs.forEach((run, r) => {
    const counts = p.runs[r];
    const section = element("section", { style: { "--fill": `var(${runColour(r)})` } },
      isolated("h4", {}, group.runs[r]),
      element("p", { class: "note" }, `${count(counts.c)} of ${count(counts.n)} samples right, ` +
        `${count(counts.distinct)} distinct answers, ${count(counts.cut)} samples stopped at the length limit.`));
    const rows = run.answers.map(([answer, cut, times, correct, status]) => element("tr", {},
      answer ? isolated("td", { class: "answer" }, answer + (cut ? ` … (${count(cut)} characters more)` : ""))
        : element("td", { class: "empty" }, "no answer found"),
      element("td", { class: "number" }, count(times)), element("td", { class: "number" }, percent(times / counts.n)),
      element("td", {}, verdict(correct, status))));
    section.append(element("div", { class: "answers", tabindex: "0", role: "group", "aria-label": "Distinct answers" },
      element("table", {}, element("thead", {}, element("tr", {}, ...["Answer", "Samples", "Share", "Verdict"].map((text, i) =>
        element("th", { scope: "col", class: i === 1 || i === 2 ? "number" : "" }, text)))), element("tbody", {}, ...rows))));
    const [distinct, samples] = run.left_out;
    if (distinct) section.append(element("p", { class: "note" },
      `Not shown: ${count(distinct)} rarer answers, ${count(samples)} samples together.`));
    section.append(element("h4", {}, run.samples.length ? "Some samples" : "No samples kept"));
    for (const [index, text, correct] of run.samples) {
      section.append(element("div", {}, element("span", { class: "note" }, `Sample ${count(index)} `),
        verdict(correct, "graded")), raw(text));
    }
    runs.append(section);
  });
  body.append(runs);
  return body;
}

function raw([text, cut]) {
  const pre = isolated("pre", { tabindex: "0" }, text || "(empty)");
  if (cut) pre.append(element("span", { class: "note" }, `\n… (${count(cut)} characters more)`));
  return pre;
}

document.getElementById("problem-tables").append(...report.groups.flatMap(problemTable));
