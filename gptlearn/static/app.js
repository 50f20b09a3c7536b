// The page of `gptlearn serve`: it speaks OpenAI's protocol, as any other client would. Five parts:
// settings, asking, tokens, the card of a token, keys and start. All text reaches the page as textContent.

const $ = id => document.getElementById(id);
const [form, output, card, run, stop] = ["form", "output", "card", "run", "stop"].map($);
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

// --- 1. Settings: the form holds them, and the address repeats the form -------------------------

const sliders = [...form.querySelectorAll("input[type=range]")];
const isOff = slider => slider.value === slider.dataset.off; // it changes nothing there, so it is not sent
const chatting = () => form.elements.mode.value === "chat";

function showSettings() {
  for (const slider of sliders) {
    const text = isOff(slider) ? "off" : slider.value;
    form.querySelector(`output[for=${slider.id}]`).value = text;
    slider.setAttribute("aria-valuetext", text);
  }
  $("hint").textContent = chatting() ? "The model answers what you say." :
    "The model continues this text. Leave it empty and it begins one of its own.";
  $("clear").hidden = !chatting();
}

function readAddress() {
  form.reset();
  const said = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of said) {
    const field = form.elements.namedItem(name);
    if (field) field.value = value;
  }
  $("fresh").checked = !said.has("seed"); // whoever follows a link wants its text again
  if (!form.elements.model.value) form.elements.model.selectedIndex = 0; // a link of another server
  if (!form.elements.seed.checkValidity()) form.elements.seed.value = 1;
  showSettings();
}

const writeAddress = () => history.replaceState(null, "", "#" + new URLSearchParams(new FormData(form)));

function request() {
  const body = { model: form.elements.model.value, stream: true, stream_options: { include_usage: true } };
  for (const slider of sliders) if (!isOff(slider)) body[slider.name] = Number(slider.value);
  body.seed = Number(form.elements.seed.value);
  return body;
}

// --- 2. Asking: one POST, whose answer arrives as events ----------------------------------------

let asking = null; // the AbortController of the answer that is arriving
let talk = []; // what was said in the chat

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("the answer has no end");
    const lines = (rest + value).split("\n");
    rest = lines.pop(); // perhaps half a line
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      if (line.slice(5).trim() === "[DONE]") return;
      yield JSON.parse(line.slice(5));
    }
  }
}

const post = (url, body) => fetch(url, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: asking.signal });

// Where prompt and text do not fit into the context together, the server says how many tokens would.
async function room(response) {
  const error = await response.clone().json().then(body => body.error, () => null);
  return error?.param === "max_tokens" && Number(error.message.match(/at most (\d+)/)?.[1]);
}

async function refusal(response) {
  const told = await response.json().then(body => body.error?.message, () => null);
  const wait = !told?.includes("again") && response.headers.get("Retry-After");
  const why = { 401: "The server wants its key: reload the page, and give the key as password.", 429: "The server is busy." };
  return [why[response.status], told?.replace(/\w$/, "$&.") ?? `The server answered ${response.status} ${response.statusText}.`,
    wait && `Try again in ${wait} s.`].filter(Boolean).join(" ");
}

function lost(error) {
  if (error.name === "AbortError") return ""; // the reader pressed Stop
  if (error.name !== "TypeError") return error.message;
  return "The connection to the server is lost" + (output.querySelector(".now") ? ": what had arrived stands here." :
    ". Is gptlearn serve still running?");
}

async function ask() {
  if (asking || !form.reportValidity()) return;
  if ($("fresh").checked) form.elements.seed.value = Math.floor(Math.random() * 1e6);
  writeAddress();
  const prompt = form.elements.prompt.value, chat = chatting();
  const said = [...talk, { role: "user", content: prompt }];
  const url = chat ? "v1/chat/completions" : "v1/completions";
  const body = chat ? { ...request(), messages: said, logprobs: true, top_logprobs: 5 } : { ...request(), prompt, logprobs: 5 };
  const started = performance.now();
  let first, usage, end = "stopped", problem = "";
  busy(true);
  try {
    let response = await post(url, body);
    const less = response.status === 400 && await room(response);
    if (less) response = await post(url, { ...body, max_tokens: less });
    if (!response.ok) throw new Error(await refusal(response));
    newTurn(prompt, chat);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      first ??= performance.now();
      addTokens(choice.text ?? choice.delta?.content ?? "", stepsOf(choice.logprobs));
      end = choice.finish_reason ?? end;
    }
  } catch (error) { problem = lost(error); }
  busy(false);
  $("error").textContent = problem;
  $("error").hidden = !problem;
  const turn = output.querySelector(".now");
  if (!turn) return;
  addTokens("", [], true);
  turn.classList.remove("now");
  if (chat && !problem) talk = [...said, { role: "assistant", content: turn.textContent }];
  if (chat && !problem) form.elements.prompt.value = "";
  $("spoken").textContent = turn.textContent; // for a screen reader: once, when it is whole
  const count = usage?.completion_tokens ?? turn.querySelectorAll(".token").length;
  const seconds = (performance.now() - started) / 1000, why = { length: "cut at max tokens", stop: "ended by itself" };
  $("status").textContent = `${count} tokens in ${seconds.toFixed(1)} s (${Math.round(count / seconds)} tokens/s)` +
    (first ? `, the first after ${Math.round(first - started)} ms` : "") +
    (usage ? `, prompt of ${usage.prompt_tokens} tokens` : "") + `, ${why[end] ?? end}.`;
}

function busy(yes) {
  asking = yes ? new AbortController() : null;
  const held = document.activeElement; // a button that is disabled would lose the focus
  [run.disabled, stop.disabled, $("clear").disabled] = [yes, !yes, yes];
  $("status").textContent = yes ? "Writing …" : "";
  if (held === run && yes) stop.focus();
  if (held === stop && !yes) run.focus();
  output.setAttribute("aria-busy", yes);
  if (yes) $("error").hidden = true;
}

// --- 3. Tokens: each is a span that knows how it was chosen -------------------------------------

const chosen = new Map(); // span → its steps: one, or several where a character took several tokens
let held = []; // steps whose text has not come yet

// A step {token, logprob, top: [[token, logprob], …]}, from either of OpenAI's two formats.
function stepsOf(logprobs) {
  if (logprobs?.content) return logprobs.content.map(t =>
    ({ token: t.token, logprob: t.logprob, top: t.top_logprobs.map(other => [other.token, other.logprob]) }));
  return (logprobs?.tokens ?? []).map((token, i) =>
    ({ token, logprob: logprobs.token_logprobs[i], top: Object.entries(logprobs.top_logprobs?.[i] ?? {}) }));
}

function newTurn(prompt, chat) {
  if (!chat) clear();
  held = [];
  const turn = make("p", "", "turn now");
  if (chat) output.append(make("p", prompt, "turn you"));
  else turn.append(make("span", prompt, "given"));
  output.append(turn);
  closeCard();
}

function clear() {
  output.replaceChildren();
  chosen.clear();
  talk = [];
}

function addTokens(text, steps, last = false) {
  held.push(...steps);
  if (held.map(step => step.token).join("") === text) { // the usual case: each token is its own text
    for (const step of held) addToken(step.token, [step]);
  } else if (text || last && held.length) addToken(text, held);
  else return; // half a character: wait for the rest
  held = [];
}

function addToken(text, steps) {
  const span = make("span", text, "token");
  if (!text.trim()) span.classList.add(text.includes("\n") ? "newline" : text ? "space" : "end");
  const bits = -steps.reduce((sum, step) => sum + step.logprob, 0) / Math.LN2;
  span.dataset.surprise = Math.max(0, Math.min(5, Math.floor(bits))); // 0: likelier than 1/2 … 5: rarer than 1/32
  span.tabIndex = chosen.size ? -1 : 0; // one stop of the Tab key; arrows do the rest
  chosen.set(span, steps);
  output.querySelector(".now").append(span);
}

// --- 4. The card: a token's probability and its runners-up --------------------------------------

const percent = logprob => {
  const p = 100 * Math.exp(logprob);
  return (p >= 10 ? p.toFixed(0) : p >= 0.1 ? p.toFixed(1) : "< 0.1") + " %";
};
const visible = token => token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
const cannotBeTyped = /^<\|.*\|>$|^bytes:|\uFFFD/; // special tokens, and parts of a character

function showCard(span) {
  output.querySelector(".shown")?.classList.remove("shown");
  span.classList.add("shown");
  card.replaceChildren();
  for (const { token, logprob, top } of chosen.get(span)) {
    const rows = top.some(([other]) => other === token) ? top : [...top, [token, logprob]];
    const title = make("h2");
    title.append(make("code", visible(token)), ` ${percent(logprob)}`);
    const list = make("ol");
    for (const [other, logp] of rows.toSorted((a, b) => b[1] - a[1])) list.append(rowOf(span, other, logp, other === token));
    card.append(title, list);
  }
  const close = make("button", "Close", "close");
  close.type = "button";
  close.onclick = closeCard;
  card.append(make("p", chatting() ? "" : "Choose another token to go on from there.", "quiet"), close);
  card.classList.add("open");
}

function rowOf(span, token, logprob, written) {
  const button = make("button"), bar = make("span", "", "bar"), item = make("li");
  button.type = "button";
  button.disabled = chatting() || chosen.get(span).length > 1 || cannotBeTyped.test(token);
  if (written) button.setAttribute("aria-current", "true");
  bar.style.width = `${100 * Math.exp(logprob)}%`;
  button.append(bar, make("code", visible(token)), make("span", percent(logprob)));
  button.onclick = () => goOn(span, token);
  item.append(button);
  return item;
}

// The other road: what stands before the span, and this token, are the prompt of a new text.
function goOn(span, token) {
  let before = "";
  for (let node = span.previousSibling; node; node = node.previousSibling) before = node.textContent + before;
  form.elements.prompt.value = before + token;
  ask();
}

function closeCard() {
  output.querySelector(".shown")?.classList.remove("shown");
  card.classList.remove("open");
}

function look(event) {
  const span = event.target.closest(".token");
  const pinned = card.classList.contains("open") && chosen.has(document.activeElement); // by a click or the keyboard
  if (!span || event.type === "pointerover" && (pinned || event.pointerType === "touch")) return;
  showCard(span);
  if (event.type !== "pointerover") span.scrollIntoView({ block: "nearest" }); // under a mouse nothing may move
  if (event.type !== "focusin") return;
  for (const token of chosen.keys()) token.tabIndex = token === span ? 0 : -1;
  const [step] = chosen.get(span), others = step.top.filter(([other]) => other !== step.token);
  $("spoken").textContent = `${visible(step.token)}, ${percent(step.logprob)}. Instead: ` +
    others.map(([other, logprob]) => `${visible(other)}, ${percent(logprob)}`).join("; ");
}

// --- 5. Keys, theme, start ----------------------------------------------------------------------

form.onsubmit = event => { event.preventDefault(); ask(); };
form.oninput = showSettings;
stop.onclick = () => asking?.abort();
$("clear").onclick = clear;
$("tinted").onchange = event => output.classList.toggle("plain", !event.target.checked);
for (const type of ["pointerover", "click", "focusin"]) output.addEventListener(type, look);

output.addEventListener("keydown", event => {
  const tokens = [...chosen.keys()], at = tokens.indexOf(document.activeElement);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  tokens[to]?.focus();
});

document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
  if (event.key === "Escape") asking ? asking.abort() : closeCard();
});

const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const showTheme = () => $("theme").setAttribute("aria-pressed", isDark());
const remembered = () => { try { return localStorage.theme; } catch { } }; // a browser may forbid a page to remember
if (remembered()) root.dataset.theme = remembered();
system.onchange = showTheme;
$("theme").onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.theme = root.dataset.theme; } catch { }
  showTheme();
};

async function start() {
  const response = await fetch("v1/models");
  if (!response.ok) throw new Error(await refusal(response));
  const models = (await response.json()).data;
  const select = form.elements.model;
  select.replaceChildren(...models.map(model => new Option(model.id, model.id)));
  const adapt = () => {
    const model = models[select.selectedIndex] ?? {};
    $("about").textContent = `vocabulary ${model.vocab_size}, context ${model.context_length}`;
    $("max_tokens").max = model.context_length ?? 200;
    $("max_tokens").defaultValue = Math.min(200, Math.floor($("max_tokens").max * 3 / 4)); // the rest is for the prompt
    $("modes").hidden = !model.chat;
    if (!model.chat) form.elements.mode.value = "text";
    showSettings();
  };
  adapt();
  readAddress();
  adapt();
  select.onchange = adapt;
  addEventListener("hashchange", () => { readAddress(); adapt(); });
}

if (matchMedia("(max-width: 50rem)").matches) $("settings").open = false;
showTheme();
showSettings();
start().catch(error => {
  $("error").textContent = lost(error);
  $("error").hidden = false;
});
