"use strict";
// Sorting by a click on a column's title, filters over all tables, and the fold of temperature-scaled rows.
const tools = document.getElementById("tools");
const tables = [...document.querySelectorAll("table")].map((table) => ({
  table, body: table.tBodies[0], rows: [...table.tBodies[0].rows],
}));

const number = (text) => {
  const plain = text.replaceAll("\u2212", "-");
  if (plain.includes("\u221e")) return plain.startsWith("-") ? -Infinity : Infinity;
  return parseFloat(plain);
};

function compare(a, b) {  // numbers in their order, then texts, missing values last
  const [x, y] = [number(a), number(b)];
  if (a === "\u2013" || b === "\u2013") return (a === "\u2013") - (b === "\u2013");
  if (Number.isNaN(x) || Number.isNaN(y)) return a.localeCompare(b, undefined, { numeric: true });
  return x === y ? 0 : x - y;
}

function sort(one, column, header) {
  const before = header.getAttribute("aria-sort");
  const order = { null: "ascending", ascending: "descending" }[before];  // a third click gives the first order back
  for (const other of one.table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  if (order) header.setAttribute("aria-sort", order);
  one.table.classList.toggle("sorted", Boolean(order));
  const text = (row) => row.cells[column].textContent;
  const missing = (row) => text(row) === "\u2013";
  const rows = !order ? one.rows : [...one.rows].sort((a, b) => {
    const found = compare(text(a), text(b));
    return order === "descending" && !missing(a) && !missing(b) ? -found : found;
  });
  one.body.append(...rows);
}

function filter() {
  const word = tools.querySelector("[type=search]").value.trim().toLowerCase();
  const shots = tools.querySelector("select").value;
  const scaled = tools.querySelector("[type=checkbox]");
  const folded = scaled !== null && !scaled.checked;
  for (const note of document.querySelectorAll(".fold")) note.hidden = !folded;
  for (const { rows } of tables) {
    for (const row of rows) {
      const [method, predictive, some] = [...row.cells].map((cell) => cell.textContent);
      row.hidden = !`${method} ${predictive}`.toLowerCase().includes(word)
        || (shots !== "" && some !== shots)
        || (folded && row.classList.contains("folded"));
    }
  }
}

for (const one of tables) {
  [...one.table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    button.type = "button";
    button.title = "sort";
    button.addEventListener("click", () => sort(one, column, header));
    header.append(button);
  });
}
tools.hidden = false;
tools.addEventListener("input", filter);
filter();
