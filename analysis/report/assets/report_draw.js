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
  // In the dark: what is ink, grid or paper in a figure takes the page's own; other colours stay, the darkest lighter.
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const DARK = { "#1F2933": "#E4E7EB", "#E4E7EB": "#3A4550", "#4D4D4D": "#A9B4BF", "#0072B2": "#4AA8E0", "#8A6D00": "#C9A227",
    "rgba(31,41,51,": "rgba(228,231,235,", "rgba(0,114,178,": "rgba(74,168,224,", "rgba(255,255,255,0.8)": "rgba(27,34,43,0.8)",
    '"white"': '"#1B222B"' };
  const pattern = new RegExp(Object.keys(DARK).map((text) => text.replace(/[().]/g, "\\$&")).join("|"), "g");
  let printing = false;
  const themed = (figure) =>
    night.matches && !printing ? JSON.parse(JSON.stringify(figure).replace(pattern, (found) => DARK[found])) : figure;
  const draw = (node, number) => {
    const figure = themed(groups[node.dataset.group][number]);
    Plotly.react(node, figure.data, fitted(figure.layout, node.clientWidth), config);
    node.dataset.drawn = number;
  };
  const again = () => nodes.filter((node) => "drawn" in node.dataset).forEach((node) => draw(node, Number(node.dataset.drawn)));
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
  night.addEventListener("change", again);
  window.addEventListener("beforeprint", () => {
    printing = true;
    if (night.matches) again();
    rest();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    if (night.matches) again();
  });
  for (const select of document.querySelectorAll("select[data-group]")) {
    select.addEventListener("change", () => {
      const node = nodes.find((plot) => plot.dataset.group === select.dataset.group);
      draw(node, Number(select.value));
      const { caption = "", alt = "" } = groups[node.dataset.group][select.value].layout.meta ?? {};
      node.setAttribute("aria-label", `${select.selectedOptions[0].textContent}. ${alt}`);
      const figure = node.closest("figure");
      figure.querySelector("figcaption").textContent = caption;
      figure.querySelector(".words").textContent = alt;
    });
  }
})();
