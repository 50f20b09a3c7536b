// What the explorer shows, drawn from the worker's answers. Nothing is computed here but colours and lengths.
export const $ = (id) => document.getElementById(`x-${id}`);
const LN2 = Math.LN2, FULL = 6;           // bits at which the colour is full

export function make(tag, settings = {}, ...children) {
  const { style = {}, data = {}, ...rest } = settings, node = document.createElement(tag);
  for (const [key, value] of Object.entries(rest)) key in node ? (node[key] = value) : node.setAttribute(key, value);
  for (const [key, value] of Object.entries(style)) node.style.setProperty(key, value);
  Object.assign(node.dataset, data);
  node.append(...children);
  return node;
}

export const visible = (text) =>
  text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
const percent = (p) => (p >= 0.9995 ? "100%" : p >= 0.1 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "<0.1%");
const bits = (nats, digits = 2) => (nats / LN2).toFixed(digits);
const count = (n) => n.toLocaleString("en-US");

export function drawModel({ about, config, parameters, steps }, home) {
  $("name").textContent = home ? "The site’s model" : about.name || "A model";
  const parts = [
    `${count(parameters)} parameters, ${config.n_layer} layers of ${config.n_head} heads, context ${config.context_length}`,
    about.corpus && `trained on ${about.corpus}`, about.step && `step ${count(about.step)}`,
    about.bits_per_byte && `${about.bits_per_byte.toFixed(4)} bits per byte` + (about.floor ? ` (floor ${about.floor.toFixed(4)})` : "")];
  $("about").textContent = parts.filter(Boolean).join(" · ");
  $("home").hidden = home;
  $("step-label").hidden = steps.length < 2;
  $("step").replaceChildren(...steps.map(({ step, val_loss }) =>
    new Option(`step ${count(step)}${val_loss === null ? "" : `, loss ${val_loss.toFixed(3)}`}`, step, false, step === about.step)));
}

// The tokens, as options of a list: one at a time can be reached with Tab, the arrows move among them.
export function drawTokens({ tokens, outside }) {
  $("tokens").replaceChildren(...tokens.flatMap(({ text, bytes, nats, floor }, i) => {
    const special = bytes === 0, known = Number.isFinite(floor ?? NaN);
    const about = i === 0 && special ? "the beginning" : `${bits(nats)} bits${known ? `, floor ${bits(floor)}` : ""}`;
    const classes = ["x-token", (special || text.startsWith("⟨")) && "x-mark", outside?.token === i && "x-outside"];
    const node = make("span", {
      className: classes.filter(Boolean).join(" "), role: "option", tabIndex: -1, "aria-selected": "false",
      title: `${visible(text)}: ${about}`, "aria-label": `${visible(text)}, ${about}`,
      style: { "--s": Math.min(1, nats / LN2 / FULL).toFixed(3) }, data: { p: i },
    }, special ? text : text.replaceAll("\n", "⏎"));
    return text.includes("\n") ? [node, "\n"] : [node];
  }));
  drawBars(tokens);
}

// Surprise of each token as a bar, the floor as a line across it.
function drawBars(tokens) {
  const first = tokens[0]?.bytes === 0 ? 1 : 0, shown = tokens.slice(first).slice(-400), width = Math.max(30, shown.length);
  const top = Math.max(4, ...shown.map((t) => t.nats / LN2)), y = (nats) => 100 - (100 * nats) / LN2 / top;
  const offset = tokens.length - shown.length;
  const rows = shown.map(({ nats, floor }, i) => {
    const known = Number.isFinite(floor ?? NaN) && Math.max(nats, floor) > 0.05;
    const line = known ? `<line x1="${i}" x2="${i + 1}" y1="${y(floor)}" y2="${y(floor)}"/>` : "";
    return `<rect data-p="${offset + i}" x="${i + 0.08}" width="0.84" y="${y(nats)}" height="${100 - y(nats)}"/>${line}`;
  });
  $("bars").innerHTML = `<svg viewBox="0 -2 ${width} 104" preserveAspectRatio="none" aria-hidden="true">
    <line class="x-zero" x1="0" x2="${width}" y1="100" y2="100"/>${rows.join("")}</svg>`;
  const most = shown.reduce((a, b) => (b.nats > a.nats ? b : a), shown[0] ?? { nats: 0, text: "" });
  const tallest = `The tallest: “${visible(most.text)}”, ${bits(most.nats)} bits.`;
  $("bars-note").textContent = shown.length ? `A bar for each token, in bits; the line across it is the floor. ${tallest}` : "";
}

export function drawTotal({ tokens, outside }) {
  const read = tokens.filter((_, i) => i || tokens[0].bytes), sum = (key) => read.reduce((total, t) => total + t[key], 0);
  const bytes = sum("bytes"), nats = sum("nats"), per = (n) => `${bits(n, 1)} bits, ${(n / LN2 / Math.max(1, bytes)).toFixed(3)} a byte`;
  let text = "Type, or let the model begin.";
  if (read.length) text = `${count(read.length)} tokens, ${count(bytes)} bytes. The model pays ${per(nats)}`;
  if (read.length && !outside) {
    const floor = sum("floor"), above = `${bits(Math.abs(nats - floor), 1)} bits`;
    text += `; the floor is ${per(floor)}. `;
    text += `The model is ${above} ${nats >= floor ? "above it." : "below it: luck on this text, for over many nobody can be."}`;
  } else if (outside) {
    const { at = 0, allowed = [], text: whole } = outside, some = allowed.slice(0, 4).map((a) => (a ? `“${a.slice(0, 20)}”` : "the end"));
    const more = allowed.length > 4 ? ` or ${allowed.length - 4} others` : "";
    text += `. No floor: this is no tale from “${visible(whole.slice(at, at + 12)) || "the end"}” on, ` +
      `where the grammar allows ${some.join(", ")}${more}.`;
  }
  $("total").textContent = text;
}

export function drawGuesses({ guesses, left }, token) {
  $("after").textContent = token ? visible(token.text) : "";
  $("left").textContent = "Blue: as the model believes. Orange: after the sampling settings, which leave " +
    `${count(left)} token${left === 1 ? "" : "s"} to draw from. A click puts a guess into the text.`;
  const bar = (share) => make("i", { style: { width: `${100 * share}%` } });
  $("guesses").replaceChildren(...guesses.map(({ id, text, p, drawn }) => {
    const title = `after sampling ${percent(drawn)}: put it into the text`;
    return make("li", { className: drawn ? "" : "x-cut" }, make("button", { type: "button", data: { id }, title },
      make("span", { className: "x-word" }, visible(text)),
      make("span", { className: "x-tracks" }, bar(p), bar(drawn)),
      make("span", { className: "x-share" }, percent(p))));
  }));
}

export function drawLens({ lens }) {
  const names = lens.map((_, i) => (i ? `block ${i - 1}` : "embedding"));
  const cell = ({ text, p }) => make("td", { title: visible(text), style: { "--p": p.toFixed(3) } },
    make("div", { className: "x-word" }, visible(text)), make("small", {}, percent(p)));
  const rows = lens.map((row, i) => make("tr", {}, make("th", { scope: "row" }, names[i]), ...row.map(cell)));
  $("lens").tBodies[0].replaceChildren(...rows.reverse());
}

// A square for each head. Its picture has a row for each token; the colour is laid on by opacity, so that it fits both themes.
export function drawHeads({ T, maps }, { n_layer, n_head }, chosen) {
  const box = $("heads"), blue = getComputedStyle($("tokens").closest(".explorer")).getPropertyValue("--blue").trim();
  if (box.querySelectorAll("button").length !== n_layer * n_head || box.dataset.heads !== String(n_head)) {
    box.dataset.heads = n_head;
    box.classList.toggle("x-many", n_layer * n_head > 32);
    const square = (layer, head) => make("button", {
      type: "button", role: "radio", data: { layer, head }, "aria-label": `layer ${layer}, head ${head}`,
    }, make("canvas"), `${layer}.${head}`);
    box.replaceChildren(...Array.from({ length: n_layer }, (_, layer) =>
      make("div", { className: "x-layer" }, ...Array.from({ length: n_head }, (_, head) => square(layer, head)))));
  }
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(blue.slice(i, i + 2), 16));
  box.querySelectorAll("canvas").forEach((canvas, n) => {
    canvas.width = canvas.height = Math.max(1, T);
    if (!T) return;
    const image = new ImageData(T, T);
    maps[n].forEach((weight, i) => image.data.set([r, g, b, Math.round(255 * (weight / 255) ** 0.45)], 4 * i));
    canvas.getContext("2d").putImageData(image, 0, 0);
  });
  markHead(chosen);
}

export function markHead({ layer, head }) {
  $("head-name").textContent = `head ${layer}.${head}`;
  for (const button of $("heads").querySelectorAll("button")) {
    const on = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
  }
}

// Where one head looks from one token: bars under the tokens, and a sentence.
export function drawAttention({ p, start, heads }, { layer, head }, tokens) {
  const row = heads?.[layer]?.[head], nodes = $("tokens").querySelectorAll(".x-token");
  nodes.forEach((node, i) => {
    node.style.setProperty("--a", row && i >= start && i <= p ? row[i - start].toFixed(3) : 0);
    node.classList.toggle("x-gone", i < start);
  });
  const most = row ? Array.from(row.keys()).sort((a, b) => row[b] - row[a]).slice(0, 3).filter((s) => row[s] >= 0.02) : [];
  const seen = most.map((s) => `“${visible(tokens[start + s].text)}” (${percent(row[s])})`).join(", ");
  $("looks").textContent = row ? `From “${visible(tokens[p].text)}” head ${layer}.${head} looks at ${seen}.` : "";
}

export function markToken(p) {
  for (const node of $("tokens").querySelectorAll(".x-token")) {
    const on = Number(node.dataset.p) === p;
    node.setAttribute("aria-selected", on);
    node.tabIndex = on ? 0 : -1;
  }
  for (const bar of $("bars").querySelectorAll("rect")) bar.classList.toggle("x-chosen", Number(bar.dataset.p) === p);
}
