(() => {
  "use strict";
  const key = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.order === undefined ? null : Number(cell.dataset.order);
  };
  const compare = (one, other, place, sign) => {
    const a = key(one, place), b = key(other, place);
    if (a !== null && b !== null) return sign * (a - b);
    if (a !== null || b !== null) return a === null ? 1 : -1;
    const left = one.cells[place].textContent, right = other.cells[place].textContent;
    return sign * left.localeCompare(right, undefined, { numeric: true });
  };
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((one, other) => compare(one, other, head.cellIndex, sign));
      body.append(...rows);
    });
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
