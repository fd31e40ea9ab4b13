// What a page answers: is it wider than its window, what cannot be reached in it, and can its text be read.
addEventListener("load", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const wide = document.documentElement.clientWidth;
  const right = (node) => node.getBoundingClientRect().right;
  const scrolling = (node) => {
    for (let at = node.parentElement; at; at = at.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return at;
    }
    return null;
  };
  const lost = [...document.querySelectorAll("td, th, p, li, pre, h1, h2, summary, svg, input, select")]
    .filter((node) => node.getBoundingClientRect().width > 0 && right(node) > wide + 0.5)
    .filter((node) => { const frame = scrolling(node); return !frame || right(frame) > wide + 0.5; })
    .map((node) => node.textContent.trim().slice(0, 40));
  const outside = [...document.querySelectorAll("#runs td, #runs th")].filter((node) => right(node) > wide + 0.5).length;
  const lightness = (text) => {
    const [red, green, blue] = text.match(/[\d.]+/g).map(Number);
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
  };
  const paper = lightness(getComputedStyle(document.body).backgroundColor);
  const words = [...document.querySelectorAll("p, td, th, svg text")].filter((node) => node.textContent.trim());
  const contrast = words.map((node) => {
    const style = getComputedStyle(node);
    return Math.abs(lightness(node.tagName === "text" ? style.fill : style.color) - paper);
  });
  parent.postMessage(JSON.stringify({
    page: document.documentElement.scrollWidth, wide, lost, outside, paper, contrast: Math.min(...contrast),
    texts: document.querySelectorAll("svg text").length, ...(window.used ? window.used() : {}),
  }), "*");
});
