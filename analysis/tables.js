"use strict";
// Tables sort by a click on a heading: numbers where the heading's class is "n", else text. A second click turns the
// order round. Cells that hold nothing stay last.
(() => {
  const textOf = (cell) => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("small, svg").forEach((part) => part.remove());
    return copy.textContent.trim();
  };

  const numberIn = (text) => {
    if (text === "not reached") return Infinity;
    const found = text.replaceAll("\u2212", "-").replaceAll(",", "").match(/^[+-]?\d[\d.]*(e[+-]?\d+)?/);
    return found ? Number(found[0]) : null;
  };

  const sort = (table, heading, column) => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const numeric = heading.classList.contains("n");
    const rows = [...table.tBodies[0].rows].map((row) => {
      const text = textOf(row.cells[column]);
      return { row, key: numeric ? numberIn(text) : text === "\u2013" || text === "" ? null : text };
    });
    const sign = descending ? -1 : 1;
    rows.sort((one, other) => {
      if (one.key === null || other.key === null) return (one.key === null) - (other.key === null);
      if (!numeric) return sign * one.key.localeCompare(other.key, undefined, { numeric: true });
      return one.key === other.key ? 0 : sign * (one.key < other.key ? -1 : 1);
    });
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    table.tBodies[0].append(...rows.map(({ row }) => row));
  };

  for (const table of document.querySelectorAll("table")) {
    if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, heading, column));
    });
  }
})();
