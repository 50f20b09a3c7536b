// The page: what the reader does becomes a question for the worker, its answer a drawing.
import {
  $, drawAttention, drawGuesses, drawHeads, drawLens, drawModel, drawTokens, drawTotal, make, markHead, markToken,
} from "./draw.js";
import { walk } from "./open.js";

const root = document.getElementById("explorer");
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();               // number of a question → what takes its answers
let number = 0;

function ask(what, details = {}, tell = null) {
  const mine = ++number;
  worker.postMessage({ ask: what, number: mine, ...details });
  return new Promise((resolve, reject) => waiting.set(mine, { resolve, reject, tell }));
}

worker.onmessage = ({ data }) => {
  const { resolve, reject, tell } = waiting.get(data.number) ?? {};
  if (!resolve) return;
  if (tell && !data.done && !data.problem) return tell(data);
  waiting.delete(data.number);
  data.problem ? reject(new Error(data.problem)) : resolve(data);
};
worker.onerror = () => alertReader("The model's part of this page did not start: load it again, in a browser of 2023 or later.");

function alertReader(sentence) {
  $("alert").textContent = sentence ?? "";
  $("alert").hidden = !sentence;
  if (sentence) $("alert").scrollIntoView({ block: "nearest" });  // it may have been dropped far below
}

// What is on the page: the model, the text in tokens, the chosen token and head, the token under the pointer.
const now = { model: null, text: null, p: 0, hover: null, head: { layer: 0, head: 0 }, writing: false, version: 0 };

// Sampling: name → what stands beside the slider, its range, and the value at which the rule is off.
const rules = {
  temperature: { name: "temperature", min: 0, max: 2, step: 0.05, value: 0.7 },
  top_k: { name: "top-k", min: 0, max: 50, step: 1, value: 0, off: 0 },
  top_p: { name: "top-p", min: 0.05, max: 1, step: 0.05, value: 1, off: 1 },
  min_p: { name: "min-p", min: 0, max: 0.5, step: 0.01, value: 0, off: 0 },
  repetition_penalty: { name: "repetition penalty", min: 1, max: 2, step: 0.05, value: 1, off: 1 },
};

function addInput(id, name, range) {      // its range first: a value outside would be cut off
  const slider = range.type === "range" ? [make("output", { id: `${id}-out`, htmlFor: id })] : [];
  $("sliders").append(make("div", {}, make("label", { htmlFor: id }, name), ...slider, make("input", { id, ...range })));
}

function buildSliders() {
  for (const [key, { name, min, max, step, value }] of Object.entries(rules))
    addInput(`x-${key}`, name, { type: "range", min, max, step, value });
  for (const [id, name, min, max, value] of [["seed", "seed", 0, 2 ** 32 - 1, 0], ["n", "tokens to write, at most", 1, 5000, 200]])
    addInput(`x-${id}`, name, { type: "number", min, max, step: 1, value });
  $("sliders").addEventListener("input", () => { drawSettings(); look(); });
  drawSettings();
}

function whole(id, low, high) {           // a number that somebody typed, or the nearest that makes sense
  const typed = Math.round(Number($(id).value) || 0);
  return Math.min(high, Math.max(low, typed));
}

function settings() {
  const chosen = { seed: whole("seed", 0, 2 ** 32 - 1) };
  for (const [key, { off }] of Object.entries(rules)) {
    const value = Number($(key).value);
    chosen[key] = value === off ? null : value;
  }
  return chosen;
}

function drawSettings() {
  const chosen = settings();
  for (const [key, { name }] of Object.entries(rules)) $(`${key}-out`).textContent = chosen[key] ?? "off";
  const on = Object.entries(rules).filter(([key]) => chosen[key] !== null).map(([key, { name }]) => `${name} ${chosen[key]}`);
  $("settings").textContent = [...on, `seed ${chosen.seed}`].join(", ");
}

// A new text, or a new model: everything is drawn anew.
async function show(text, { whole = true } = {}) {
  now.text = text;
  now.version++;
  now.p = Math.max(0, text.tokens.length - 1);
  now.hover = null;
  drawTokens(text);
  drawTotal(text);
  markToken(now.p);
  if (!whole) return;
  await look();
  const version = now.version, maps = await ask("maps");
  if (version === now.version) drawHeads(maps, now.model.config, now.head);
}

let looking = null;                       // one question at a time: the newest waits for the one that is asked
async function look() {
  if (!now.text?.tokens.length || now.writing) return;
  if (looking) { looking.again = true; return; }
  looking = { again: false };
  try {
    const p = now.hover ?? now.p, version = now.version, seen = await ask("look", { p, settings: settings() });
    if (version === now.version) {
      drawGuesses(seen, now.text.tokens[p]);
      drawLens(seen);
      drawAttention(seen, now.head, now.text.tokens);
      now.seen = { ...seen, version };
    }
  } catch (error) { alertReader(error.message); }
  const again = looking.again;
  looking = null;
  if (again) await look();
}

let reading = false, unread = null;      // one text at a time; of those that were typed meanwhile the last is read
async function read(text, ended = false) {
  unread = { text, ended };
  if (reading) return;
  reading = true;
  while (unread) {
    const asked = unread;
    unread = null;
    try {
      const answer = await ask("read", asked);
      if (!unread && !now.writing) { alertReader(); await show(answer); }
    } catch (error) { if (!unread) alertReader(error.message); }
  }
  reading = false;
}

async function write(text) {
  unread = null;
  setWriting(true);
  const update = (answer) => {
    $("text").value = answer.text;
    $("status").textContent = `${Math.round(answer.speed).toLocaleString("en-US")} tokens a second`;
    return show(answer, { whole: false });
  };
  try {
    const answer = await ask("write", { text, n: whole("n", 1, 5000), settings: settings() }, update);
    await update(answer);
    alertReader();
  } catch (error) { alertReader(error.message); }
  setWriting(false);
  if (now.text) await show(now.text);
}

function setWriting(on) {
  now.writing = on;
  $("write").textContent = on ? "Stop" : "Write on";
  for (const id of ["new", "tale", "text"]) $(id).disabled = on;
}

async function open(details) {
  $("status").textContent = "Opening …";
  try {
    const model = await ask("open", details), text = now.text ? $("text").value : "Once there was a clever";
    alertReader();
    [now.model, now.head] = [model, { layer: model.config.n_layer - 1, head: 0 }];
    drawModel(model, !details.files && details.step === undefined);
    for (const id of ["write", "new", "tale"]) $(id).disabled = false;
    $("text").value = text;
    await read(text);
  } catch (error) { alertReader(error.message); }
  $("status").textContent = "";
}

// Files: dropped (a folder is walked through) or picked.
async function dropped(event) {
  event.preventDefault();
  root.classList.remove("x-drop");
  const entries = Array.from(event.dataTransfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const plain = Array.from(event.dataTransfer.files, (file) => ({ path: file.name, file }));  // read now: it is gone after an await
  try { await open({ files: entries.length ? (await Promise.all(entries.map((entry) => walk(entry)))).flat() : plain }); }
  catch (error) { alertReader(`What was dropped cannot be read (${error.message}): use the buttons above the text.`); }
}

function picked(event) {
  const files = Array.from(event.target.files, (file) => ({ path: file.webkitRelativePath || file.name, file }));
  event.target.value = "";                // so that the same file can be picked again
  if (files.length) open({ files });
}

// Tokens and heads: pointer, touch and keyboard lead to the same two functions.
function tokenAt(event) {
  const node = event.target.closest("[data-p]");
  return node ? Number(node.dataset.p) : null;
}

// A mouse that moves; not one that rests while the page scrolls below it.
const moved = ({ pointerType, movementX, movementY }) => pointerType === "mouse" && (movementX || movementY);

function hover(p) {
  if (p === now.hover) return;
  now.hover = p;
  look();
}

function choose(p, focus = false) {
  now.p = Math.max(0, Math.min(now.text.tokens.length - 1, p));
  now.hover = null;
  markToken(now.p);
  if (focus) $("tokens").querySelector(`[data-p="${now.p}"]`)?.focus();
  look();
}

function chooseHead(layer, head, focus = false) {
  now.head = { layer, head };
  markHead(now.head);
  if (now.seen?.version === now.version) drawAttention(now.seen, now.head, now.text.tokens);
  if (focus) $("heads").querySelector('[aria-checked="true"]')?.focus();
}

function headKeys(event) {
  const { n_layer, n_head } = now.model.config, { layer, head } = now.head;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: n_head, ArrowUp: -n_head }[event.key];
  if (!step) return;
  event.preventDefault();
  const n = (layer * n_head + head + step + n_layer * n_head) % (n_layer * n_head);
  chooseHead(Math.floor(n / n_head), n % n_head, true);
}

function tokenKeys(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
  if (!step) return;
  event.preventDefault();
  choose(now.p + step, true);
}

function take(event) {                    // a guess goes into the text, and what stood behind it goes
  const button = event.target.closest("button");
  if (!button || now.writing || now.seen?.version !== now.version) return;
  const kept = now.text.tokens.slice(0, now.seen.p + 1).filter((t) => t.bytes).map((t) => t.id);
  ask("continue", { ids: kept, id: Number(button.dataset.id) }).then(({ text, ended }) => {
    $("text").value = text;
    return read(text, ended);
  }).catch((error) => alertReader(error.message));
}

buildSliders();
let pause;
$("text").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(() => read($("text").value), 80); });
$("write").addEventListener("click", () => (now.writing ? ask("stop") : write($("text").value)));
$("new").addEventListener("click", () => write(""));
$("tale").addEventListener("click", async () => { const { text } = await ask("tale"); $("text").value = text; read(text, true); });
$("guesses").addEventListener("click", take);
$("tokens").addEventListener("click", (event) => choose(tokenAt(event) ?? now.p, true));
$("tokens").addEventListener("keydown", tokenKeys);
for (const id of ["tokens", "bars"]) {
  $(id).addEventListener("pointermove", (event) => { if (moved(event)) hover(tokenAt(event) ?? now.hover); });
  $(id).addEventListener("pointerleave", () => hover(null));
}
$("bars").addEventListener("click", (event) => choose(tokenAt(event) ?? now.p));
for (const type of ["click", "pointermove", "focusin"])
  $("heads").addEventListener(type, (event) => {
    const button = event.target.closest("button");
    if (button && (type !== "pointermove" || moved(event))) chooseHead(Number(button.dataset.layer), Number(button.dataset.head));
  });
$("heads").addEventListener("keydown", headKeys);
$("file").addEventListener("change", picked);
$("folder").addEventListener("change", picked);
$("folder-label").hidden = !("webkitdirectory" in $("folder"));  // some phones know no folders
$("step").addEventListener("change", () => open({ step: Number($("step").value) }));
$("home").addEventListener("click", () => open({}));
document.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("x-drop"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) root.classList.remove("x-drop"); });
document.addEventListener("drop", dropped);
new MutationObserver(() => now.text && show(now.text)).observe(document.body, { attributeFilter: ["class"] });  // the theme changed
open({});
