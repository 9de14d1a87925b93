// Two conveniences; the page can be read without them: choose the gallery's pictures, and draw one class's curve.
"use strict";
document.documentElement.classList.add("js");

const byId = (id) => document.getElementById(id);

function filterGallery() {
  const name = byId("gallery-class").value;
  const kind = byId("gallery-kind").value;
  let shown = 0;
  for (const figure of document.querySelectorAll("figure.picture")) {
    const names = JSON.parse(figure.dataset.names);
    figure.hidden = (name !== "" && !names.includes(name)) || (kind !== "" && figure.dataset.kind !== kind);
    shown += figure.hidden ? 0 : 1;
    for (const box of figure.querySelectorAll(".box")) {
      box.classList.toggle("other", name !== "" && box.dataset.name !== name);
    }
  }
  for (const group of document.querySelectorAll(".gallery-kind")) {
    group.hidden = group.querySelector("figure.picture:not([hidden])") === null;
  }
  byId("gallery-count").value = `${shown} ${shown === 1 ? "picture" : "pictures"}`;
}

function drawCurve() {
  const curves = JSON.parse(byId("curves-data").textContent)[byId("curve-class").value];
  const told = [];
  for (const line of document.querySelectorAll("#curve-plot polyline")) {
    const curve = curves[line.dataset.setting];
    line.setAttribute("points", curve ? curve.map((precision, recall) => `${40 + 4 * recall},${220 - 0.2 * precision}`).join(" ") : "");
    if (curve) {
      const average = curve.reduce((sum, precision) => sum + precision, 0) / curve.length / 10;
      told.push(`${line.dataset.setting} ${average.toFixed(1)}`);
    }
  }
  byId("curve-told").value = `AP50: ${told.join(", ")}`;
}

if (byId("gallery-class") !== null) {
  byId("gallery-class").addEventListener("change", filterGallery);
  byId("gallery-kind").addEventListener("change", filterGallery);
  filterGallery();
}
if (byId("curve-class") !== null) {
  byId("curve-class").addEventListener("change", drawCurve);
  drawCurve();
}
