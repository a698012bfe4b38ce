"use strict";
// values under the pointer; without this script the page shows all but these
(function () {
  function makeTip(box) {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    box.appendChild(tip);
    return tip;
  }

  function place(tip, box, x, y) {
    tip.hidden = false;
    const room = box.getBoundingClientRect();
    const left = x + 14 + tip.offsetWidth > room.width ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = Math.max(0, Math.min(left, room.width - tip.offsetWidth)) + "px";
    tip.style.top = Math.max(0, y - tip.offsetHeight - 8) + "px";
  }

  function addLine(tip, text, color) {
    const line = document.createElement("div");
    if (color !== undefined) {
      const dot = document.createElement("i");
      dot.style.background = "var(--c" + color + ")";
      line.appendChild(dot);
    }
    line.appendChild(document.createTextNode(text));
    tip.appendChild(line);
  }

  function nearest(values, wanted) {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle; else high = middle;
    }
    return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
  }

  function watchChart(figure) {
    const data = JSON.parse(figure.querySelector("script.points").textContent);
    const svg = figure.querySelector(":scope > svg");
    const cursor = svg.querySelector(".cursor");
    const tip = makeTip(figure);
    svg.addEventListener("pointermove", function (event) {
      const room = svg.getBoundingClientRect(), scale = room.width / data.width;
      const share = ((event.clientX - room.left) / scale - data.plot[0]) / (data.plot[1] - data.plot[0]);
      const wanted = data.x[0] + Math.min(1, Math.max(0, share)) * (data.x[1] - data.x[0]);
      let step = null;
      for (const series of data.series) {
        const found = series.x[nearest(series.x, wanted)];
        if (step === null || Math.abs(found - wanted) < Math.abs(step - wanted)) step = found;
      }
      tip.textContent = "";
      addLine(tip, "step " + step.toLocaleString("en"));
      for (const series of data.series) {
        const at = nearest(series.x, step), value = series.y[at];
        const where = series.x[at] === step ? "" : " (step " + series.x[at].toLocaleString("en") + ")";
        addLine(tip, series.name + ": " + (value === null ? "–" : value + (data.unit ? " " + data.unit : "")) + where, series.color);
      }
      const x = data.plot[0] + (step - data.x[0]) / (data.x[1] - data.x[0]) * (data.plot[1] - data.plot[0]);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
      const outer = figure.getBoundingClientRect();
      place(tip, figure, event.clientX - outer.left, event.clientY - outer.top);
    });
    svg.addEventListener("pointerleave", function () {
      tip.hidden = true;
      cursor.setAttribute("visibility", "hidden");
    });
  }

  function watchHeat(box) {
    const data = JSON.parse(box.querySelector("script.cells").textContent);
    const count = data.names.length, shares = new Map();
    data.true.forEach(function (row, place) { shares.set(row * count + data.pred[place], data.share[place]); });
    const picture = box.querySelector("img"), tip = makeTip(box);
    picture.addEventListener("pointermove", function (event) {
      const room = picture.getBoundingClientRect();
      const column = Math.min(count - 1, Math.max(0, Math.floor((event.clientX - room.left) / room.width * count)));
      const row = Math.min(count - 1, Math.max(0, Math.floor((event.clientY - room.top) / room.height * count)));
      const share = shares.get(row * count + column) || 0;
      tip.textContent = "";
      addLine(tip, "true: " + row + " " + data.names[row]);
      addLine(tip, "predicted: " + column + " " + data.names[column]);
      addLine(tip, (share ? (100 * share).toFixed(1) : "below 0.1") + " % of the true class's pixels");
      place(tip, box, event.clientX - room.left, event.clientY - room.top);
    });
    picture.addEventListener("pointerleave", function () { tip.hidden = true; });
  }

  document.querySelectorAll("figure.chart").forEach(function (figure) {
    if (figure.querySelector("script.points")) watchChart(figure);
  });
  document.querySelectorAll(".heat-box").forEach(watchHeat);
  document.documentElement.dataset.ready = "yes";
})();
