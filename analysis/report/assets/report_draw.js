"use strict";
// Each figure is drawn when it comes near the window, and all of them before printing.
(() => {
  const groups = JSON.parse(document.getElementById("figure-data").textContent);
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg" } };
  // On a phone: smaller type, and of a logarithmic axis the powers of ten alone.
  const fitted = (layout, width) => {
    if (width >= 520) return layout;
    const small = JSON.parse(JSON.stringify(layout));
    small.font.size = 10;
    small.margin = { ...small.margin, l: 40, r: 8 };
    for (const note of small.annotations ?? []) note.font = { ...note.font, size: 10 };
    for (const axis of Object.values(small)) {
      if (axis?.type !== "log" || !axis.ticktext) continue;
      axis.ticktext = axis.ticktext.map((text, i) => (Number.isInteger(Math.log10(axis.tickvals[i])) ? text : ""));
    }
    return small;
  };
  const draw = (node, number) => {
    const figure = groups[node.dataset.group][number];
    Plotly.react(node, figure.data, fitted(figure.layout, node.clientWidth), config);
    node.dataset.drawn = number;
  };
  const nodes = [...document.querySelectorAll(".plot")];
  const rest = () => nodes.filter((node) => !("drawn" in node.dataset)).forEach((node) => draw(node, 0));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      if (!("drawn" in entry.target.dataset)) draw(entry.target, 0);
    }
  }, { rootMargin: "600px" });
  nodes.forEach((node) => watcher.observe(node));
  window.addEventListener("beforeprint", rest);
  for (const select of document.querySelectorAll("select[data-group]")) {
    select.addEventListener("change", () => {
      const node = nodes.find((plot) => plot.dataset.group === select.dataset.group);
      draw(node, Number(select.value));
      node.setAttribute("aria-label", select.selectedOptions[0].textContent);
    });
  }
})();
