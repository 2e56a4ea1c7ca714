"use strict";
// A table sorts by the column whose header is clicked: upwards, then downwards; missing values last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const compare = (a, b) =>
    "number" in a.dataset ? a.dataset.number - b.dataset.number : a.textContent.localeCompare(b.textContent, "en");
  for (const [column, head] of heads.entries()) {
    head.querySelector("button")?.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const missing = ({cells}) => (cells[column].dataset.number ?? cells[column].textContent) === "";
      body.append(...[...body.rows].sort((a, b) =>
        missing(a) - missing(b) || (missing(a) ? 0 : (up ? 1 : -1) * compare(a.cells[column], b.cells[column]))));
    });
  }
}
