// The demo's page. The server keeps what the network saw in the picture: weights and words are asked for again with the
// picture's key, the threshold is applied here. Of requests for boxes one is under way at a time, and the next asks for
// what the page says by then: a slider that is dragged does not queue up.
"use strict";

const VIEWS = ["fused", "detector", "vlm"];
const SVG = "http://www.w3.org/2000/svg";
const LETTERS = 13; // size of a label, CSS pixels
const PAUSE = 350; // ms without a key press after which words are looked for
const byId = (id) => document.getElementById(id);

let model = null;
let picture = null; // {file, key, width, height, shown}
let answer = { words: [], views: {} };
let wanted = new Set(); // views to ask for
let asking = false;
let uploads = 0; // counts them: an answer to an earlier one is dropped
let pause = null;

class Refused extends Error {
  constructor(line, status) {
    super(line);
    this.status = status;
  }
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("the demo does not answer; is it still running?", 0);
  }
  let content = null;
  try {
    content = await response.json();
  } catch {
    // no JSON: a fault of the server, told below
  }
  if (response.ok && content) return content;
  throw new Refused((content && content.error) || "the demo failed; its terminal says why", response.status);
}

function say(text, busy = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("busy", busy);
  byId("views").classList.toggle("stale", busy);
}

function complain(line) {
  byId("error").textContent = line || "";
  byId("error").hidden = !line;
  if (line) byId("views").classList.add("stale"); // what is still shown is no answer to what was asked
}

const words = () => byId("words").value.split(/[,\n]/).map((word) => word.trim()).filter(Boolean);

async function show(file, example = null) {
  for (const button of byId("examples").children) button.setAttribute("aria-pressed", button === example);
  const upload = ++uploads;
  complain("");
  if (file.size > model.limits.bytes) {
    return complain(`the picture: expected at most ${Math.floor(model.limits.bytes / 2 ** 20)} MiB; choose a smaller one`);
  }
  say("Looking at the picture…", true);
  try {
    const taken = await call("/picture", { method: "POST", body: file });
    if (upload !== uploads) return;
    picture = { file, key: taken.picture, width: taken.width, height: taken.height, shown: taken.shown };
    answer = { words: [], views: {} };
    await ask(VIEWS);
    const below = byId("views").getBoundingClientRect().top > window.innerHeight * 0.75;
    if (below) byId("weights").scrollIntoView(); // on a phone the boxes would be out of sight
  } catch (error) {
    if (upload !== uploads) return;
    say(picture ? "The picture before is still shown." : "");
    complain(error.message);
  }
}

async function ask(views) {
  views.forEach((view) => wanted.add(view));
  if (!picture || asking) return;
  asking = true;
  try {
    while (wanted.size) {
      const of = picture;
      const request = { picture: of.key, words: words(), alpha: +byId("alpha").value, beta: +byId("beta").value };
      request.views = [...wanted];
      wanted = new Set();
      if (!request.words.length) {
        answer = { words: [], views: {} };
        draw();
        complain("");
        say("Type what to look for.");
        continue;
      }
      if (request.views.length > 1) say("Looking for the words…", true);
      const found = await call("/boxes", { method: "POST", body: JSON.stringify(request) });
      if (of !== picture) continue;
      answer = { words: found.words, views: { ...answer.views, ...found.views } };
      complain("");
      draw();
    }
  } catch (error) {
    if (error.status === 410) {
      setTimeout(() => show(picture.file)); // kept no longer: looked at again
    } else {
      say("");
      complain(error.message);
    }
  } finally {
    asking = false;
  }
  if (wanted.size) ask([]); // asked for while an error was told
}

function draw() {
  if (!picture) return;
  byId("views").hidden = false;
  const least = +byId("threshold").value;
  const counts = VIEWS.map((view) => {
    const rows = (answer.views[view] || []).filter((row) => row[4] >= least);
    drawView(byId(view), rows);
    return rows.length;
  });
  byId("chips").replaceChildren(
    ...answer.words.map((word) => element("li", { class: group(word), title: group(word) }, word.name)),
  );
  if (answer.words.length) {
    const [fused, detector, vlm] = counts;
    const boxes = fused === 1 ? "1 box" : `${fused} boxes`;
    say(`${boxes} fused, ${detector} by the detector alone, ${vlm} by the VLM alone.`);
  }
}

const group = (word) => (word.supervised ? "known" : "novel");

function element(name, attributes, text = "", namespace = null) {
  const made = namespace ? document.createElementNS(namespace, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function drawView(figure, rows) {
  const { width, height, shown } = picture;
  const svg = figure.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  let image = svg.querySelector("image");
  if (!image) image = svg.appendChild(element("image", { x: 0, y: 0, preserveAspectRatio: "none" }, "", SVG));
  image.setAttribute("width", width);
  image.setAttribute("height", height);
  if (image.getAttribute("href") !== shown) image.setAttribute("href", shown);
  const matrix = svg.getScreenCTM();
  const unit = matrix && matrix.a > 0 ? 1 / matrix.a : 1; // pixels of the picture in a CSS pixel

  const named = rows.map((row) => ({ box: row.slice(0, 4), score: row[4].toFixed(2), word: answer.words[row[5]] }));
  const frames = element("g", { class: "boxes" }, "", SVG);
  for (const { box, word } of [...named].reverse()) {
    const [x0, y0, x1, y1] = box;
    const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
    frames.append(element("rect", { ...place, class: `frame ${group(word)}` }, "", SVG));
  }
  const taken = [];
  for (const { box, score, word } of named) frames.append(...label(`${word.name} ${score}`, box, group(word), unit, taken));
  svg.querySelector("g")?.remove();
  svg.append(frames);

  const count = rows.length === 1 ? "1 box" : `${rows.length} boxes`;
  figure.querySelector("figcaption span").textContent = `(${count})`;
  svg.setAttribute("aria-label", `The picture with ${count}; they are listed below`);
  const items = named.map(({ box, score, word }) => {
    const item = element("li", { class: group(word), title: `${group(word)}; x0 y0 x1 y1: ${box.join(" ")}` });
    item.append(element("span", {}, word.name), element("span", {}, score));
    return item;
  });
  if (!items.length) items.push(element("li", { class: "none" }, "Nothing above the threshold."));
  figure.querySelector("ol").replaceChildren(...items);
}

const ruler = document.createElement("canvas").getContext("2d");

/** A label at the place about its box where it hides the least of earlier labels. */
function label(text, [x0, y0, x1, y1], kind, unit, taken) {
  ruler.font = `${LETTERS}px ${getComputedStyle(document.body).fontFamily}`;
  if (text.length > 42) text = `${text.slice(0, 36)}…${text.slice(-5)}`;
  const width = (ruler.measureText(text).width + 8) * unit;
  const height = (LETTERS + 5) * unit;
  const places = [];
  for (const y of [y0 - height, y0, y1 - height, y1, (y0 + y1 - height) / 2]) {
    for (const x of [x0, x1 - width, (x0 + x1 - width) / 2]) {
      const left = Math.max(0, Math.min(x, picture.width - width));
      const top = Math.max(0, Math.min(y, picture.height - height));
      places.push([left, top, left + width, top + height]);
    }
  }
  const hidden = (a) => taken.reduce((sum, b) => sum + overlap(a, b), 0);
  const costs = places.map(hidden);
  const place = places[costs.indexOf(Math.min(...costs))];
  taken.push(place);
  const ground = element("rect", { x: place[0], y: place[1], width, height, class: `ground ${kind}` }, "", SVG);
  const ink = { x: place[0] + 4 * unit, y: place[1] + height / 2, "font-size": LETTERS * unit, class: kind };
  return [ground, element("text", ink, text, SVG)];
}

const overlap = (a, b) =>
  Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

function setSliders(values) {
  for (const name of ["alpha", "beta", "threshold"]) {
    byId(name).value = values[name];
    byId(`${name}-value`).textContent = (+byId(name).value).toFixed(2);
  }
}

function listen() {
  for (const name of ["alpha", "beta", "threshold"]) {
    byId(name).addEventListener("input", () => {
      byId(`${name}-value`).textContent = (+byId(name).value).toFixed(2);
      if (name === "threshold") draw();
      else ask(["fused"]);
    });
  }
  byId("reset").addEventListener("click", () => {
    setSliders(model);
    ask(["fused"]);
  });
  byId("words").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => ask(VIEWS), PAUSE);
  });
  byId("all-words").addEventListener("click", () => {
    byId("words").value = model.names.join(", ");
    ask(VIEWS);
  });
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) show(event.target.files[0]);
    event.target.value = ""; // so that the same file may be chosen again
  });
  // a picture that misses the field must not replace the page
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  const drop = byId("drop");
  drop.addEventListener("dragover", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
    else complain("expected a picture file, got something else; drop a file");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) show(event.clipboardData.files[0]);
  });
  new ResizeObserver(() => asking || draw()).observe(byId("views")); // labels keep their size
}

async function chooseExample(example, button) {
  const upload = ++uploads;
  say("Looking at the picture…", true);
  try {
    const response = await fetch(example.file);
    const file = await response.blob();
    if (upload === uploads) await show(file, button);
  } catch {
    say("");
    complain("the demo does not answer; is it still running?");
  }
}

async function begin() {
  try {
    model = await call("/model");
  } catch (error) {
    say("");
    return complain(error.message);
  }
  byId("setting").textContent = model.setting;
  byId("credit").textContent = model.credit;
  byId("words").value = [...new Set(model.examples.flatMap((example) => example.names))].join(", ");
  setSliders(model);
  for (const example of model.examples) {
    const button = element("button", { type: "button", "aria-pressed": "false" });
    const text = example.names.join(", ");
    button.append(element("img", { src: example.file, alt: `Example with ${text}`, title: text, width: 96, height: 96 }));
    button.addEventListener("click", () => chooseExample(example, button));
    byId("examples").append(button);
  }
  listen();
  say("Choose a picture to begin.");
}

begin();
