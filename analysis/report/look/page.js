"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column], key = cell.dataset.key;
    if (key === undefined) return cell.textContent || null;
    return key !== "" && !Number.isNaN(Number(key)) ? Number(key) : key;
  };
  const compare = (column, sign) => (a, b) => {
    const x = value(a, column), y = value(b, column);
    if (x === null || y === null) return (x === null) - (y === null); // blanks last, both ways
    if (typeof x === typeof y) return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
    return typeof x === "number" ? -1 : 1; // numbers before words such as "failed"
  };
  const rows = (body) => [...body.rows].filter((row) => !row.classList.contains("group"));
  const sort = (table, column, sign) => {
    table.querySelectorAll("thead th").forEach((head, place) => {
      if (place === column) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    for (const body of table.tBodies) body.append(...rows(body).sort(compare(column, sign)));
  };
  const clicked = (table, sorts) => {
    table.classList.add("js");
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.tabIndex = 0;
      const act = () => sorts(column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
      head.addEventListener("click", act);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") act(); });
    });
  };
  document.querySelectorAll("table.sortable").forEach((table) => clicked(table, (column, sign) => sort(table, column, sign)));

  const table = document.getElementById("runs");
  if (table) {
    const [filter, chosen, grouped, count] = ["filter", "sort", "grouped", "count"].map((id) => document.getElementById(id));
    const groups = [...table.tBodies], flat = document.createElement("tbody");
    const home = groups.map(rows), all = home.flat();
    document.querySelector(".tools").hidden = false;
    const arrange = () => {
      table.classList.toggle("grouped", grouped.checked);
      if (grouped.checked) { flat.remove(); groups.forEach((body, place) => { table.append(body); body.append(...home[place]); }); }
      else { groups.forEach((body) => body.remove()); flat.append(...all); table.append(flat); }
    };
    let sign = 1;
    const update = () => {
      arrange();
      if (chosen.value !== "") sort(table, Number(chosen.value), sign);
      else table.querySelectorAll("thead th").forEach((head) => head.removeAttribute("aria-sort"));
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of all) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => word.length > 1 && word[0] === "-" ? !text.includes(word.slice(1)) : text.includes(word));
        shown += !row.hidden;
      }
      groups.forEach((body) => { body.hidden = rows(body).every((row) => row.hidden); });
      count.textContent = shown === all.length ? `${all.length} runs` : `${shown} of ${all.length} runs`;
    };
    clicked(table, (column, way) => { chosen.value = String(column); sign = way; update(); });
    chosen.addEventListener("change", () => { sign = 1; update(); });
    grouped.addEventListener("change", update);
    filter.addEventListener("input", update);
  }

  const box = document.createElement("div");
  box.id = "tip"; box.hidden = true; document.body.append(box);
  document.querySelectorAll("g.tip > title").forEach((title) => {
    const mark = title.parentNode;
    mark.dataset.tip = title.textContent; mark.setAttribute("aria-label", title.textContent); title.remove();
  });
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest && event.target.closest("g.tip");
    box.hidden = !mark;
    if (!mark) return;
    box.textContent = mark.dataset.tip;
    const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
    box.style.left = `${Math.max(8, left)}px`; box.style.top = `${event.clientY + 16}px`;
  });
})();
