"use strict";
// Sorting and filtering are the table widget's, drawing is plotly's; here they are started and given the theme.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

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
    const lines = Math.ceil(figure.data.length / Math.max(1, Math.floor((width - 24) / (entry + 40))));
    layout.legend = { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom", entrywidth: entry };
    layout.height += 19 * lines;
    layout.margin.b += 10 + 19 * lines;
    for (const axis of ["xaxis", "yaxis"]) Object.assign(layout[axis], { gridcolor: colour("grid"), linecolor: colour("line") });
    for (const shape of layout.shapes ?? []) shape.line.color = colour("muted");
    return figure;
  }

  function draw() {
    root.classList.toggle("dark", dark.matches);
    for (const plot of document.querySelectorAll(".plot")) {
      const canvas = plot.querySelector(".canvas");
      const figure = themed(JSON.parse(plot.querySelector("script").textContent), canvas.clientWidth);
      const options = { responsive: true, displaylogo: false, displayModeBar: false };
      Plotly.react(canvas, figure.data, figure.layout, options);
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    new DataTable(table, {
      paging: false,
      info: true,
      order: [],
      autoWidth: false,
      columnDefs: [{ targets: "pick", columnControl: [{ extend: "dropdown", content: ["search"], text: "Filter by this column", icon: "search" }] }],
      layout: { topStart: "info", topEnd: "search", bottomStart: null, bottomEnd: null },
      language: { search: "Filter", info: "_TOTAL_ rows", infoFiltered: "of _MAX_", infoEmpty: "No rows", zeroRecords: "No row fits the filter" },
    });
  }
  draw();
  dark.addEventListener("change", draw);
  root.classList.add("ready");
})();
