"use strict";
// plotly.js is packed in the page. Once it is there, each chart is drawn in the colors of the style sheet, and drawn
// again in the others when the reader's system goes from light to dark.
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(unpacked).text();
  document.head.append(library);

  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const byTouch = matchMedia("(pointer: coarse)").matches; // a finger on a chart scrolls the page
  const settings = { displayModeBar: false, responsive: true };

  const template = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { gridcolor: color("grid"), linecolor: color("line"), tickcolor: color("line"), showline: true,
      zerolinecolor: color("line"), tickfont: { color: color("muted") } };
    const scale = [[0, color("wrong-cell")], [0.5, color("raised")], [1, color("right-cell")]];
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
        font: { color: color("ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
        hoverlabel: { bgcolor: color("raised"), bordercolor: color("line"), font: { color: color("ink") }, align: "left" },
      },
      data: { heatmap: [{ colorscale: scale }] },
    };
  };
  const draw = () => Promise.all(charts.map(({ data, layout }, n) => Plotly.react(`chart-${n}`,
    structuredClone(data), { ...structuredClone(layout), template: template(), ...(byTouch && { dragmode: false }) },
    settings)));
  dark.addEventListener("change", draw);
  await draw();
  document.documentElement.dataset.drawn = charts.length;
})();
