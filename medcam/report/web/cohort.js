"use strict";
// Sorts and filters the table of cases. Without it the table stands in the order of the user's own.
(() => {
  const table = document.getElementById("case-table");
  if (!table) return;
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const words = document.getElementById("filter"), verdict = document.getElementById("filter-verdict");
  const told = document.getElementById("filter-told");

  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? (cell.dataset.value === "" ? NaN : Number(cell.dataset.value)) : cell.textContent.trim();
  };

  function sort(column, descending) {
    const numeric = rows.some((row) => "value" in row.cells[column].dataset);
    const sign = descending ? -1 : 1;
    const ordered = [...rows].sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
      // What is not defined stands last, whichever way the others run.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (x - y);
    });
    body.append(...ordered);
    heads.forEach((head, n) => head.setAttribute("aria-sort", n !== column ? "none" : descending ? "descending" : "ascending"));
  }

  function filter() {
    const wanted = words.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.textContent.toLowerCase().includes(wanted) && (!verdict.value || row.dataset.verdict === verdict.value);
      row.hidden = !fits;
      shown += fits;
    }
    told.textContent = `${shown} of ${rows.length} cases shown`;
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending"));
  });
  for (const each of [words, verdict]) each.addEventListener("input", filter);
  document.getElementById("filters").hidden = false;
  filter();
  document.body.dataset.table = "ready";
})();
