"use strict";
// Heads of tables sort them. Without script the tables are whole, but not sorted.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
      const isNumber = head.classList.contains("number");
      const order = (a, b) => {
        if (!isNumber) return a.localeCompare(b, "en", { numeric: true }) * (descending ? -1 : 1);
        const [x, y] = [parseFloat(a), parseFloat(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return (x - y) * (descending ? -1 : 1);
      };
      rows.sort(([a], [b]) => order(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// Small screens begin with the answer, not with the contents; paper shows what is folded.
const contents = document.querySelector("details.contents");
if (contents && window.matchMedia("(max-width: 70rem)").matches) contents.open = false;
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
