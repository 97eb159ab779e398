"use strict";
// The table of stage runs: filtered, sorted and cut into pages here, so that ten thousand rows stay quick.
// All text goes in through textContent; nothing from a study is ever parsed as HTML.
(() => {
  const data = JSON.parse(document.getElementById("run-data").textContent);
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);
  const make = (tag, text, cls) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };
  const column = (name) => data.columns.indexOf(name);
  const shown = ["phase", "stage", "cell", "seed", "outcome", "seconds"];
  const runs = data.rows.map((row, i) => ({ row, values: data.values[i], text: row.join("\u0000").toLowerCase() }));
  const state = { sort: -1, down: false, page: 0, open: new Set() };

  for (const name of ["phase", "stage", "outcome"]) {
    const names = [...new Set(runs.map((run) => run.row[column(name)]))];
    for (const value of names) {
      const option = make("option", value);
      option.value = value;
      byId(name).append(option);
    }
  }
  data.metrics.forEach((name, i) => {
    const option = make("option", name);
    option.value = i;
    option.selected = name === data.first_metric;
    byId("metric").append(option);
  });

  const metric = () => Number(byId("metric").value || 0);
  const key = (run) => (state.sort === shown.length ? run.values[metric()] : run.row[column(shown[state.sort])]);
  const missing = (value) => value === null || value === undefined || value === "";
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (missing(x) || missing(y)) return missing(x) - missing(y); // always last
    const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
    return state.down ? -order : order;
  };
  const chosen = () => {
    const words = byId("contains").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = ["phase", "stage", "outcome"].map((name) => [column(name), byId(name).value]).filter((f) => f[1]);
    const found = runs.filter((run) =>
      wanted.every(([at, value]) => run.row[at] === value) && words.every((word) => run.text.includes(word)));
    return state.sort < 0 ? found : found.sort(compare);
  };
  const number = (value) => (missing(value) ? "–" : String(Number(Number(value).toPrecision(4))));

  const head = () => {
    const row = make("tr");
    [...shown, data.metrics[metric()] || "metric"].forEach((name, i) => {
      const cell = make("th", undefined, ["phase", "stage", "cell", "outcome"].includes(name) ? "text" : ""), button = make("button", name);
      cell.scope = "col";
      button.type = "button";
      cell.setAttribute("aria-sort", state.sort !== i ? "none" : state.down ? "descending" : "ascending");
      button.addEventListener("click", () => {
        state.down = state.sort === i && !state.down;
        state.sort = i;
        state.page = 0;
        render();
      });
      cell.append(button);
      row.append(cell);
    });
    return row;
  };
  const detail = (run) => {
    const row = make("tr", undefined, "detail"), cell = make("td"), list = make("dl");
    cell.colSpan = shown.length + 1;
    for (const name of ["cause", "chosen", "fingerprint"]) {
      if (run.row[column(name)]) cell.append(make("div", `${name}: ${run.row[column(name)]}`));
    }
    data.metrics.forEach((name, i) => {
      if (missing(run.values[i])) return;
      const pair = make("div");
      pair.append(make("dt", name), make("dd", String(run.values[i])));
      list.append(pair);
    });
    cell.append(list);
    row.append(cell);
    return row;
  };
  const line = (run) => {
    const row = make("tr", undefined, "run");
    row.tabIndex = 0;
    for (const name of shown) {
      const value = run.row[column(name)];
      const failed = name === "outcome" && value !== "finished" ? " failed" : "";
      const text = name === "cell" && !value ? "shared by cells" : name === "seconds" ? number(value) : value;
      row.append(make("td", text, (typeof value === "number" || name === "seconds" ? "number" : "text") + failed));
    }
    row.append(make("td", number(run.values[metric()]), "number"));
    const toggle = () => {
      state.open.has(run) ? state.open.delete(run) : state.open.add(run);
      render();
    };
    row.addEventListener("click", toggle);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
    return row;
  };
  // On a phone a row is a card, and each value stands behind the name of its column.
  const label = (table) => {
    const names = [...table.querySelectorAll("thead tr:last-child > *")].map((cell) => cell.textContent);
    for (const row of table.querySelectorAll("tbody tr:not(.detail)")) {
      [...row.children].forEach((cell, i) => { if (names[i]) cell.dataset.label = names[i]; });
    }
  };
  const render = () => {
    const found = chosen(), pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const body = document.createDocumentFragment();
    for (const run of found.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
      body.append(line(run));
      if (state.open.has(run)) body.append(detail(run));
    }
    document.querySelector("#runs-table thead").replaceChildren(head());
    document.querySelector("#runs-table tbody").replaceChildren(body);
    label(byId("runs-table"));
    byId("count").textContent = `${found.length} of ${runs.length} stage runs; click a heading to sort, a row for all of its metrics`;
    byId("page").textContent = `page ${state.page + 1} of ${pages}`;
    byId("before").disabled = state.page === 0;
    byId("after").disabled = state.page === pages - 1;
  };
  const restart = () => { state.page = 0; render(); };
  byId("filters").addEventListener("input", restart);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("before").addEventListener("click", () => { state.page -= 1; render(); });
  byId("after").addEventListener("click", () => { state.page += 1; render(); });
  document.querySelectorAll(".wide table:not(.panels)").forEach(label);
  render();
  if (data.reload_seconds) setTimeout(() => location.reload(), 1000 * data.reload_seconds);
})();
