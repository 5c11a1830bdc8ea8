"use strict";
{
  const PRINTED_WIDTH = 680; // pixels that a sheet of A4 has between its margins
  const options = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // on by default: a button that gives the figure's data away
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };
  const plots = [];
  for (const figure of document.querySelectorAll("figure")) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot");
    Plotly.newPlot(plot, spec.data, spec.layout, options);
    plots.push(plot);
  }
  window.addEventListener("beforeprint", () => plots.forEach((plot) => Plotly.relayout(plot, { width: PRINTED_WIDTH })));
  window.addEventListener("afterprint", () => plots.forEach((plot) => Plotly.relayout(plot, { width: null, autosize: true })));
}
