// A user who sorts all runs by KL, filters them, and points at a mark of a figure.
window.used = () => {
  const table = document.getElementById("runs"), heads = [...table.querySelectorAll("thead th")];
  const at = heads.findIndex((head) => head.textContent === "KL");
  const shown = () => [...table.querySelectorAll("tr.run")].filter((row) => !row.hidden && row.offsetParent !== null);
  const kl = () => shown().map((row) => Number(row.cells[at].dataset.key));
  document.getElementById("grouped").click();
  const wide = document.documentElement.clientWidth;
  const flat = [...table.querySelectorAll("td, th")].filter((cell) => cell.getBoundingClientRect().right > wide + 0.5).length;
  heads[at].click();
  const up = kl();
  heads[at].click();
  const down = kl();
  const filter = document.getElementById("filter");
  filter.value = "quarot -w4a8";
  filter.dispatchEvent(new Event("input"));
  const names = shown().map((row) => row.textContent);
  const mark = document.querySelector("g.tip path, g.tip use");
  mark.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, clientX: 50, clientY: 50 }));
  const box = document.getElementById("tip");
  return { flat, up, down, names, count: document.getElementById("count").textContent, tip: box.hidden ? null : box.textContent };
};
