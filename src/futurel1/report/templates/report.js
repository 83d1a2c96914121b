"use strict";
const shown = JSON.parse(document.getElementById("contents").textContent);
const byId = (id) => document.getElementById(id);
const KINDS = {
  none: "own latents", zero: "zeros", mean: "mean latent", noise: "noise", other: "another video's",
  markers: "no latents", oracle: "true future", swap: "other future",
};
const FED = {
  zero: "zeros were fed here", mean: "the mean latent was fed here", noise: "noise was fed here",
  other: "latents of another video were fed here", markers: "nothing was fed here",
  oracle: "the features of the true frame were fed here", swap: "the features of another future were fed here",
};

/* Texts of models and records only ever become text nodes and attributes, never HTML. */
function el(tag, attributes, ...children) {
  const svg = ["svg", "rect", "circle", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const words = (tag, text, kind) => el(tag, { class: `words ${kind || ""}`.trim(), dir: "auto" }, text);
const number = (value, digits) => value.toFixed(digits === undefined ? 3 : digits);
const verdictOf = (told) => (told.right === null ? "unknown" : told.right ? "right" : "wrong");
const mark = (verdict) => ({ right: "✓", wrong: "✗", unknown: "·" })[verdict];
const own = (object, key) => (Object.hasOwn(object, key) ? object[key] : undefined);
const named = (kind) => own(KINDS, kind) || kind;
const phone = matchMedia("(max-width: 800px)");

// ---------------------------------------------------------------- theme and tabs

const THEMES = ["auto", "light", "dark"];
let theme = "auto";
function setTheme(name) {
  theme = THEMES.includes(name) ? name : "auto";
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}
function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  try { localStorage.setItem("futurel1-theme", theme); } catch { /* storage is switched off: the choice lasts as long as the page */ }
}
try { setTheme(localStorage.getItem("futurel1-theme")); } catch { setTheme("auto"); }
byId("theme").addEventListener("click", nextTheme);

const tabs = [...document.querySelectorAll("[data-tab]")];
let tab = "";
function openTab(name) {
  tab = name;
  for (const button of tabs) {
    if (button.dataset.tab === name) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== name;
}
for (const button of tabs) button.addEventListener("click", () => openTab(button.dataset.tab));

// ---------------------------------------------------------------- pictures

function picture(place, alt, caption, kind) {
  return el("figure", { class: kind || null },
    el("img", { src: shown.frames[place], alt, loading: "lazy", decoding: "async" }),
    el("figcaption", {}, caption));
}
function scene(shapes, caption) {
  const told = shapes.length ? `${shapes.length} shapes` : "no shape";
  return el("figure", {},
    el("svg", { viewBox: "0 0 100 100", role: "img", "aria-label": `Drawing of what a decoder reads: ${told}` },
      el("rect", { width: 100, height: 100, fill: "#181a20" }),
      el("line", { x1: 50, x2: 50, y1: 0, y2: 100, stroke: "#3a3e48" }),
      el("line", { x1: 0, x2: 100, y1: 50, y2: 50, stroke: "#3a3e48" }),
      shapes.map((shape) => el("circle", {
        cx: 100 * shape.x, cy: 100 * shape.y, r: 8, fill: shape.colour, "fill-opacity": 0.75, stroke: shape.colour,
        "stroke-dasharray": "3 2",
      }))),
    el("figcaption", {}, caption));
}

// ---------------------------------------------------------------- one response

function spanFacts(near) {
  if (!near || !near.true) return null;
  const found = near.true;
  const facts = [el("span", {}, "true frame is rank ", el("b", {}, `${found.rank} of ${found.of}`), ` (by chance first in ${number(100 / found.of, 1)}%)`)];
  if (found.own_of > 1) facts.push(el("span", {}, el("b", {}, `${found.own_rank} of ${found.own_of}`), ` in its own video (chance ${number(100 / found.own_of, 0)}%)`));
  facts.push(el("span", {}, "cosine to it ", el("b", {}, number(found.near.cosine)),
    near.other_mean === null ? "" : `, to other videos ${number(near.other_mean)} on average`));
  return el("div", { class: "facts" }, facts);
}
function nearPicture(near, alt, ofOwn, truth) {
  return picture(near.frame, `${alt}: ${near.label} of ${near.video}`,
    [el("b", {}, number(near.cosine)), el("br"), near.label, ofOwn ? null : [el("br"), near.video]].flat(),
    truth && truth.near.frame === near.frame ? "is-true" : null);
}
function neighbours(title, frames, ofOwn, truth) {
  if (!frames.length) return null;
  return el("div", {}, el("h5", {}, title), el("div", { class: "strip" },
    frames.map((near, place) => nearPicture(near, `${title}, number ${place + 1}`, ofOwn, truth))));
}
function trueFuture(shownAs) {
  return el("div", {}, el("h5", {}, "True future"), el("div", { class: "strip" }, shownAs));
}
function spanBox(place, span, kind) {
  const many = `${span.latents} latent${span.latents === 1 ? "" : "s"}`;
  const title = kind === "none" ? many : own(FED, kind) || `fed: ${kind}`;
  const box = el("div", { class: "span" }, el("h4", {}, `Imagined frame ${place + 1}: ${title}`));
  if (!span.near) return box;
  if (kind === "oracle") {
    const fed = span.near.true && span.near.true.near;
    if (fed) box.append(el("div", { class: "near" }, trueFuture(picture(fed.frame, "True future frame", fed.label))));
    return box;
  }
  const near = span.near;
  box.append(...[spanFacts(near)].filter(Boolean));
  const groups = [];
  if (near.true) {
    groups.push(trueFuture(nearPicture(near.true.near, "True future frame", true, near.true)));
  }
  const later = near.observed ? "Nearest observed frames of this video" : "Nearest later frames of this video";
  groups.push(neighbours(later, near.own, true, near.true), neighbours("Nearest frames of other videos", near.others, false, near.true));
  if (span.scene) {
    groups.push(el("div", {}, el("h5", {}, "A decoder's reading"), el("div", { class: "strip" },
      scene(span.scene, "of the latent"), span.true_scene ? scene(span.true_scene, "of the true frame") : null)));
  }
  if (near.true && near.true.latents.length > 1) {
    groups.push(el("div", {}, el("h5", {}, "Cosine of each latent to the true frame"),
      el("div", { class: "meter", role: "img", "aria-label": near.true.latents.map((value) => number(value, 2)).join(", ") },
        near.true.latents.map((value) => el("i", { style: `height:${Math.max(0, 100 * value)}%`, title: number(value) })))));
  }
  box.append(el("div", { class: "near" }, groups.filter(Boolean)));
  return box;
}
function response(told, kind, spans) {
  const box = el("div", { class: "told", "data-told": "" });
  let line = null; // text and tags between two spans are one paragraph
  for (const piece of told.pieces) {
    if (piece.kind === "span" && spans) {
      const near = kind === "oracle" && spans[piece.span] ? spans[piece.span].near : null;
      box.append(spanBox(piece.span, kind === "none" ? spans[piece.span] : { latents: piece.latents, near }, kind));
      line = null;
      continue;
    }
    if (!line) box.append(line = el("p", { class: "words", dir: "auto" }));
    const last = line.lastChild && line.lastChild.textContent;
    if (piece.kind === "tag") line.append(el("code", { class: "tag" }, piece.text));
    else if (piece.kind === "answer") line.append(words("b", piece.text.trim(), `answer ${verdictOf(told)}`));
    else if (piece.kind === "span") line.append(el("span", { class: "chip" }, piece.text.slice(1, -1)));
    else line.append(last ? piece.text : piece.text.trimStart());
  }
  return box;
}

// ---------------------------------------------------------------- samples

let visible = [];
let current = 0;
let kind = "none";
const told = (sample) => own(sample.told, kind) || sample.told.none;
const haystacks = shown.samples.map((sample) => [
  sample.id, sample.record_id, sample.split, sample.question, sample.expected, ...Object.values(sample.options),
  ...Object.values(sample.told).flatMap((one) => [one.answer, ...one.pieces.map((piece) => piece.text)]),
].join("\n").toLowerCase());

function matches(sample, place) {
  const value = (id) => (byId(id) ? byId(id).value : "");
  const search = value("search").trim().toLowerCase();
  const flipped = value("flipped");
  return (!value("split") || sample.split === value("split"))
    && (!value("verdict") || verdictOf(sample.told.none) === value("verdict"))
    && (!flipped || (flipped === "any" ? sample.flipped.length > 0 : flipped === "none" ? !sample.flipped.length : sample.flipped.includes(flipped)))
    && (!search || haystacks[place].includes(search));
}
function filter() {
  visible = shown.samples.map((_, place) => place).filter((place) => matches(shown.samples[place], place));
  const items = visible.map((place) => {
    const sample = shown.samples[place];
    const verdict = verdictOf(sample.told.none);
    return el("li", {}, el("button", { type: "button", "data-place": place, onclick: () => { show(place); closePicker(); } },
      el("span", { class: `mark ${verdict}`, "aria-label": verdict }, mark(verdict)),
      el("span", { class: "name", dir: "auto" }, sample.record_id || sample.id),
      el("span", { class: "badge" }, sample.split),
      el("span", { class: "ask", dir: "auto" }, sample.question || "(no question)")));
  });
  byId("list").replaceChildren(...(items.length ? items : [el("li", { class: "page muted" }, "No sample matches.")]));
  for (const node of document.querySelectorAll("[data-count]")) node.textContent = `${visible.length} of ${shown.samples.length} samples`;
  if (visible.length && !visible.includes(current)) show(visible[0]);
  else highlight();
}
function highlight() {
  for (const button of byId("list").querySelectorAll("button")) {
    if (Number(button.dataset.place) === current) {
      button.setAttribute("aria-current", "true");
      button.scrollIntoView({ block: "nearest" });
    } else button.removeAttribute("aria-current");
  }
}
function step(by) {
  const place = visible.indexOf(current) + by;
  if (place >= 0 && place < visible.length) show(visible[place]);
}
function show(place) {
  current = place;
  history.replaceState(null, "", `#sample-${place}`);
  draw();
  byId("sample").scrollTop = 0;
  if (phone.matches) byId("sample").scrollIntoView();
  highlight();
}
function optionList(sample) {
  const answer = told(sample);
  return el("ul", { class: "options" }, Object.entries(sample.options).map(([letter, text]) => {
    const share = own(answer.votes, letter);
    const tags = [];
    if (letter === sample.expected) tags.push(el("span", { class: "badge right" }, "true"));
    if (letter === answer.answer) tags.push(el("span", { class: `badge ${verdictOf(answer)}` }, "answered"));
    if (share !== undefined && Object.keys(answer.votes).length > 1) tags.push(` ${number(100 * share, 0)}%`);
    return el("li", { class: `${letter === sample.expected ? "truth" : ""} ${letter === answer.answer ? "chosen" : ""}` },
      el("b", {}, letter), words("span", text), el("span", { class: "tag" }, tags));
  }));
}
function answerText(sample, one) {
  const option = own(sample.options, one.answer);
  return option ? `${one.answer}. ${option}` : one.answer || "no answer";
}
function latentSwitch(sample) {
  const kinds = shown.kinds.filter((name) => Object.hasOwn(sample.told, name));
  if (kinds.length < 2) return null;
  return el("fieldset", { class: "block" }, el("legend", { class: "sr" }, "Latents that the model is fed"),
    el("h3", { "aria-hidden": "true" }, "Latents that the model is fed"),
    el("div", { class: "switch" }, kinds.map((name) => {
      const one = sample.told[name];
      const radio = el("input", { type: "radio", name: "latents", value: name, checked: name === kind, onchange: () => {
        kind = name;
        draw();
      } });
      return el("label", { class: sample.flipped.includes(name) ? "flipped" : null }, radio,
        el("span", { class: "face" }, el("small", {}, named(name)),
          el("b", { class: verdictOf(one), dir: "auto" }, `${mark(verdictOf(one))} ${answerText(sample, one)}`)));
    })));
}
function facts(one) {
  const parts = [`${one.tokens} tokens`, one.finish_reason ? `ended by ${one.finish_reason}` : "", one.seconds === null ? "" : `${number(one.seconds, 2)} s`];
  return el("p", { class: "facts" }, parts.filter(Boolean).map((part) => el("span", {}, part)));
}
function flipsOf(sample) {
  const others = Object.keys(sample.told).length - 1;
  return sample.flipped.length > 2 ? `flipped by ${sample.flipped.length} of ${others} replacements`
    : `flipped by ${sample.flipped.map(named).join(", ")}`;
}
function votesOf(sample, one) {
  const votes = Object.entries(one.votes);
  if (votes.length < 2 || Object.keys(sample.options).length) return null;
  return el("p", { class: "small" }, el("span", { class: "muted" }, "votes: "),
    words("span", votes.map(([answer, share]) => `${answer || "no answer"} ${number(100 * share, 0)}%`).join(", ")));
}
/* What is drawn anew keeps the focus: the button, or the chosen latents. */
function keepFocus(redraw) {
  const before = document.activeElement;
  const was = before && (before.name === "latents" ? "latents" : before.id);
  redraw();
  if (was === "latents") document.querySelector("input[name=latents]:checked").focus();
  else if (was === "before" || was === "after") [byId(was), byId("before"), byId("after")].find((button) => !button.disabled)?.focus();
}
function draw() {
  keepFocus(drawSample);
}
function drawSample() {
  const sample = shown.samples[current];
  const one = told(sample);
  const fed = Object.hasOwn(sample.told, kind) ? kind : "none";
  const place = visible.indexOf(current);
  const verdict = verdictOf(one);
  const says = { right: "✓ right", wrong: "✗ wrong", unknown: "no truth known" }[verdict];
  const observed = el("div", { class: "strip" }, sample.shown.map((frame, at) => picture(
    frame.frame, `Observed ${frame.label}, ${at + 1} of ${sample.shown.length}`, frame.label)));
  byId("sample").replaceChildren(...[
    el("div", { class: "bar" }, el("h2", { dir: "auto" }, sample.record_id || sample.id),
      el("span", { class: "badge" }, sample.split), el("span", { class: `badge ${verdict}`, "data-verdict": verdict }, says),
      sample.flipped.length ? el("span", { class: "badge flip" }, flipsOf(sample)) : null,
      el("span", { class: "grow" }), el("span", { class: "keys" }, el("kbd", {}, "j"), " ", el("kbd", {}, "k"), " next, previous"),
      el("span", { class: "steps" },
        el("button", { type: "button", id: "before", disabled: place <= 0, onclick: () => step(-1) }, "Previous"),
        el("button", { type: "button", id: "after", disabled: place < 0 || place >= visible.length - 1, onclick: () => step(1) }, "Next"))),
    el("div", { class: "block ask-grid" },
      el("div", {}, el("h3", {}, `Observed${sample.note ? ` (${sample.note})` : ""}`), observed),
      el("div", {}, el("h3", {}, "Question"), words("p", sample.question || "(no question)"), optionList(sample),
        sample.expected && own(sample.options, sample.expected) === undefined ? el("p", { class: "small" }, "true answer: ", words("b", sample.expected)) : null)),
    latentSwitch(sample),
    el("div", { class: "block" }, el("h3", {}, fed === "none" ? "Reasoning" : `Reasoning, fed ${named(fed)}`),
      response(one, fed, sample.spans),
      el("p", { class: "small" }, el("span", { class: "muted" }, "counted answer: "), words("b", answerText(sample, one), verdict)),
      votesOf(sample, one), one.judge ? el("p", { class: "small" }, el("span", { class: "muted" }, "judge: "), words("span", one.judge)) : null,
      facts(one)),
    el("p", { class: "small muted" }, `record ${sample.id}`),
  ].filter(Boolean));
}
function closePicker() {
  if (phone.matches) document.querySelector(".picker").open = false;
}

// ---------------------------------------------------------------- rollouts

let group = 0;
function signed(value, most) {
  const width = most ? (50 * Math.abs(value)) / most : 0;
  return el("div", { class: "signed", "aria-hidden": "true" }, el("i", { class: value < 0 ? "minus" : "plus", style: `width:${width}%` }));
}
function rolloutCard(rollout, place, most) {
  const advantage = rollout.numbers.advantage;
  return el("article", { class: `rollout ${advantage > 0 ? "up" : advantage < 0 ? "down" : ""}`, "aria-label": `Rollout ${place + 1}` },
    el("h4", {}, `Rollout ${place + 1}`),
    el("table", {}, Object.entries(rollout.numbers).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name),
      el("td", {}, value === null ? "" : signed(value, most[name])), el("td", { class: "number" }, value === null ? "failed" : number(value, 2))))),
    response({ pieces: rollout.pieces, right: null }, "none", null),
    el("p", { class: "facts" }, `ended by ${rollout.finish_reason}`));
}
function showGroup(place) {
  group = Math.max(0, Math.min(shown.groups.length - 1, place));
  const one = shown.groups[group];
  byId("group").value = String(group);
  byId("group-before").disabled = group === 0;
  byId("group-after").disabled = group === shown.groups.length - 1;
  const most = {};
  for (const rollout of one.rollouts) {
    for (const [name, value] of Object.entries(rollout.numbers)) most[name] = Math.max(most[name] || 0, Math.abs(value || 0));
  }
  byId("rollouts").replaceChildren(
    el("div", { class: "block" }, el("h3", {}, `${one.id}, rollout batch ${one.batch}`), words("p", one.prompt),
      el("p", { class: "small" }, el("span", { class: "muted" }, "true answer: "), words("b", one.answer))),
    el("div", { class: "group", tabindex: 0, role: "group", "aria-label": "Rollouts side by side" },
      one.rollouts.map((rollout, at) => rolloutCard(rollout, at, most))));
}
if (shown.groups.length) {
  byId("group").append(...shown.groups.map((one, place) => el("option", { value: place }, `batch ${one.batch}: ${one.id}`)));
  byId("group").addEventListener("change", () => showGroup(Number(byId("group").value)));
  byId("group-before").addEventListener("click", () => showGroup(group - 1));
  byId("group-after").addEventListener("click", () => showGroup(group + 1));
  showGroup(0);
}

// ---------------------------------------------------------------- keys and start

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=radio]), select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const arrows = !event.target.matches("input[type=radio], .group");
  const by = event.key === "j" || (arrows && event.key === "ArrowRight") ? 1 : event.key === "k" || (arrows && event.key === "ArrowLeft") ? -1 : 0;
  if (by && tab === "samples") step(by);
  else if (by && tab === "rollouts") showGroup(group + by);
  else if (event.key === "t") nextTheme();
  else if (event.key === "/" && tab === "samples") byId("search").focus();
  else return;
  event.preventDefault();
});
if (shown.samples.length) {
  for (const id of ["split", "verdict", "flipped"]) if (byId(id)) byId(id).addEventListener("change", filter);
  byId("search").addEventListener("input", filter);
  const asked = /^#sample-(\d+)$/.exec(location.hash);
  current = asked && Number(asked[1]) < shown.samples.length ? Number(asked[1]) : 0;
  closePicker();
  draw();
  filter();
  draw();
}
if (tabs.length) openTab(tabs[0].dataset.tab);
const browser = document.querySelector(".browser");
if (browser && !browser.hidden) document.documentElement.style.setProperty("--above", `${browser.offsetTop}px`);
