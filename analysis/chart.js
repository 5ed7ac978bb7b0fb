"use strict";
// Draws the metric that the reader picks, from the numbers that `analysis.chart` wrote into the page, with BokehJS.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const box = document.getElementById("chart");
  const place = document.getElementById("chart-plot");
  const picker = document.getElementById("chart-metric");
  const arms = [...box.querySelectorAll("input[name=arm]")];
  const withSeeds = document.getElementById("chart-seeds");

  const numbers = (text) => new Float32Array(Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0)).buffer);
  const grids = data.grids.map(numbers);

  const xRange = new Bokeh.Range1d();
  const yRange = new Bokeh.Range1d();
  const plot = Bokeh.Plotting.figure({
    x_range: xRange,
    y_range: yRange,
    x_axis_label: "policy updates",
    y_axis_label: "",
    height: 400,
    sizing_mode: "stretch_width",
    toolbar_location: "above",
    tools: "pan,box_zoom,wheel_zoom,reset,save",
    active_drag: matchMedia("(pointer: coarse)").matches ? null : "box_zoom", // a finger scrolls the page
    active_scroll: null,
  });
  plot.toolbar.logo = null;

  const layer = (line_width, line_alpha) => {
    const source = new Bokeh.ColumnDataSource({ data: { xs: [], ys: [], colour: [], dash: [], arm: [], seed: [] } });
    const lines = plot.multi_line({ field: "xs" }, { field: "ys" }, {
      source, line_width, line_alpha, line_color: { field: "colour" }, line_dash: { field: "dash" },
    });
    return { source, lines };
  };
  const thin = layer(1, 0.5);
  const bold = layer(2.5, 1);
  plot.add_tools(new Bokeh.HoverTool({
    renderers: [bold.lines, thin.lines],
    line_policy: "nearest",
    tooltips: [["arm", "@arm"], ["seed", "@seed"], ["step", "$snap_x{0,0.[0]}"], ["value", "$snap_y{0.[000000]}"]],
  }));

  const spread = (range, values) => {
    const low = values.reduce((least, value) => Math.min(least, value), Infinity);
    const high = values.reduce((most, value) => Math.max(most, value), -Infinity);
    const margin = 0.04 * (high - low) || 0.04 * Math.abs(high) || 1;
    const [start, end] = Number.isFinite(low) ? [low - margin, high + margin] : [0, 1];
    range.setv({ start, end, reset_start: start, reset_end: end });
  };

  const draw = () => {
    const shown = new Set(arms.filter((arm) => arm.checked).map((arm) => Number(arm.value)));
    const curves = data.metrics[picker.value]
      .filter(([arm]) => shown.has(arm))
      .map(([arm, seed, grid, values]) => ({ arm: data.arms[arm], seed, xs: grids[grid], ys: numbers(values) }));
    const means = new Set(curves.filter(({ seed }) => seed === null).map(({ arm }) => arm));
    const isBold = ({ arm, seed }) => seed === null || !means.has(arm);
    const columns = (lines) => ({
      xs: lines.map(({ xs }) => xs),
      ys: lines.map(({ ys }) => ys),
      colour: lines.map(({ arm }) => arm.colour),
      dash: lines.map(({ arm }) => arm.dash),
      arm: lines.map(({ arm }) => arm.name),
      seed: lines.map(({ seed }) => (seed === null ? "mean" : String(seed))),
    });
    const drawn = curves.filter((curve) => isBold(curve) || withSeeds.checked);
    thin.source.data = columns(drawn.filter((curve) => !isBold(curve)));
    bold.source.data = columns(drawn.filter(isBold));
    spread(xRange, drawn.flatMap(({ xs }) => [...xs]));
    spread(yRange, drawn.flatMap(({ ys }) => [...ys]));
    plot.yaxes[0].axis_label = picker.value;
    place.setAttribute("aria-label", `${picker.value} against policy updates`);
  };

  const colour = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, faint] = ["--ink", "--faint"].map((name) => style.getPropertyValue(name).trim());
    plot.setv({ background_fill_color: null, border_fill_color: null, outline_line_color: null });
    for (const axis of plot.axes) {
      axis.setv({
        axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: faint,
        major_tick_line_color: faint, minor_tick_line_color: null, axis_label_text_font_style: "normal",
        axis_label_text_font_size: "13px", major_label_text_font_size: "12px",
      });
    }
    plot.xgrids.forEach((grid) => grid.setv({ grid_line_color: null }));
    plot.ygrids.forEach((grid) => grid.setv({ grid_line_color: faint, grid_line_alpha: 0.25 }));
  };

  colour();
  draw();
  box.hidden = false; // before it is drawn: a hidden box has no width
  Bokeh.Plotting.show(plot, place);
  [picker, withSeeds, ...arms].forEach((control) => control.addEventListener("change", draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colour);
})();
