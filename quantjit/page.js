"use strict";
// Sorting and filtering; everything can be read without it.
const value = (cell) => cell.dataset.v ?? cell.textContent.trim();

function sort(table, column, descending) {
  const rows = [...table.tBodies[0].rows];
  const key = (row) => value(row.cells[column]);
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // unknown values come last
    const numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    const order = numbers ? x - y : x.localeCompare(y);
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : head.classList.contains("n");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
}

for (const place of document.querySelectorAll("[data-filter]")) {
  const items = [...place.querySelectorAll(place.dataset.filter)];
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  input.type = "search";
  label.className = "filter";
  label.append(`Filter ${place.dataset.noun}`, input, count);
  count.setAttribute("aria-live", "polite");
  place.before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const item of items) {
      const text = (item.dataset.text ?? item.textContent).toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
      shown += !item.hidden;
    }
    count.textContent = input.value ? `${shown} of ${items.length}` : "";
  });
}
