"use strict";
// Sorting and filtering big tables is the table widget's, drawing is plotly's; here they are started and given the theme.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const assets = new URL(".", document.currentScript.src);

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  function themed(drawn, width) {
    const figure = structuredClone(drawn);
    for (const trace of figure.data) {
      const own = colour(`k${trace.meta.series}`);
      trace.marker = { ...trace.marker, color: own };
      trace.line = { ...trace.line, color: own };
      for (const error of ["error_x", "error_y"]) if (trace[error]) trace[error].color = `${own}99`;
    }
    const layout = figure.layout;
    Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") };
    layout.hoverlabel = { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") }, align: "left" };
    if (width < 480) layout.yaxis.tickfont = { size: 10 };
    // The legend stands below, in as many columns as fit, and the plot keeps its height.
    const entry = 170;
    const lines = Math.ceil(figure.data.length / Math.max(1, Math.floor((width - layout.margin.l - layout.margin.r) / (entry + 40))));
    layout.legend = { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom", entrywidth: entry };
    layout.height += 19 * lines;
    layout.margin.b += 10 + 19 * lines;
    for (const axis of ["xaxis", "yaxis"]) Object.assign(layout[axis], { gridcolor: colour("grid"), linecolor: colour("line") });
    for (const shape of layout.shapes ?? []) shape.line.color = colour("muted");
    return figure;
  }

  function draw(plot) {
    const canvas = plot.querySelector(".canvas");
    const figure = themed(JSON.parse(plot.querySelector("script").textContent), canvas.clientWidth);
    Plotly.react(canvas, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
    plot.classList.add("drawn");
  }

  // plotly is large: it is loaded when the first plot comes near the window.
  let plotly;
  function library() {
    plotly ??= new Promise((loaded, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: new URL("plotly.js", assets), onload: loaded, onerror: failed });
      document.head.append(script);
    });
    return plotly;
  }
  const watch = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      library().then(() => draw(target));
    }
  }, { rootMargin: "400px" });
  for (const plot of document.querySelectorAll(".plot")) watch.observe(plot);

  function theme() {
    root.classList.toggle("dark", dark.matches);
    for (const plot of document.querySelectorAll(".plot.drawn")) draw(plot);
  }
  theme();
  dark.addEventListener("change", theme);

  for (const table of document.querySelectorAll("table.sortable")) {
    new DataTable(table, {
      paging: false,
      info: true,
      order: [],
      autoWidth: false,
      columnDefs: [{ targets: "pick", columnControl: [{ extend: "dropdown", content: ["search"], text: "Filter by this column", icon: "search" }] }],
      layout: { topStart: "info", topEnd: "search", bottomStart: null, bottomEnd: null },
      language: { search: "Filter", info: "Rows: _TOTAL_", infoFiltered: "of _MAX_", infoEmpty: "No rows", zeroRecords: "No row fits the filter" },
    });
  }

  // `?q=` in the address finds methods in all small tables, and what is typed goes to the address.
  const find = document.getElementById("Find");
  if (find) {
    const rows = [...document.querySelectorAll(".small tbody tr")];
    const apply = () => {
      const asked = find.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.querySelector("th").textContent.toLowerCase().includes(asked);
      root.classList.toggle("finding", asked !== "");
      const found = rows.filter((row) => !row.hidden).length;
      document.querySelector("output[for=Find]").textContent = asked ? `Rows: ${found} of ${rows.length}` : "";
    };
    find.value = new URLSearchParams(location.search).get("q") ?? "";
    find.closest("[hidden]").hidden = false;
    find.addEventListener("input", () => {
      apply();
      history.replaceState(null, "", `${find.value ? `?q=${encodeURIComponent(find.value)}` : location.pathname}${location.hash}`);
    });
    apply();
  }
  root.classList.add("ready");
})();
