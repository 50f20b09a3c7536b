// Runs beside the page, so that the page stays live while the model computes. A message {ask, number, …} is answered by
// {number, …} or {number, problem}; `write` answers many times, and stops when the page asks for something that changes the text.
import { choose, load, pick } from "./open.js";
import { Problem } from "./safetensors.js";
import { Grammar } from "./tales.js";

let grammar, reader, found, writing = 0;

const here = (name) => new URL(name, import.meta.url);
const pause = () => new Promise((resolve) => setTimeout(resolve));

async function download(name) {
  const answer = await fetch(here(name));
  if (!answer.ok) throw new Problem(`${name} did not arrive (${answer.status} ${answer.statusText}): load the page again.`);
  return answer;
}

// Tokens with the model's surprise and the floor's, in nats; and the sentence that says where a text leaves the grammar.
function state() {
  const { ids, steps, tokenizer } = reader;
  const eot = (i) => ids[i] === tokenizer.eot;
  const tokens = ids.map((id, i) => ({
    id, text: i || !eot(0) ? reader.label(id) : "⟨start⟩", bytes: tokenizer.length(id), nats: steps[i].nats,
  }));
  const skip = eot(0) ? 1 : 0;            // nobody is asked to guess the first token
  const pieces = ids.slice(skip).map((id, i) => ({ text: tokenizer.decode([id]), ends: eot(i + skip) }));
  const floors = grammar.floors(pieces);
  floors.forEach((floor, i) => { tokens[i + skip].floor = floor; });
  const wrong = floors.indexOf(Infinity), written = ids.filter((id) => id !== tokenizer.eot);
  let outside = null;
  if (wrong >= 0) {
    const begin = pieces.slice(0, wrong).findLastIndex((piece) => piece.ends) + 1;  // of the tale that leaves the grammar
    const upTo = (n) => pieces.slice(begin, n).map((piece) => (piece.ends ? "" : piece.text)).join("");
    outside = { token: wrong + skip, ...grammar.surprise(upTo(wrong + 1), !pieces[wrong].ends), text: upTo(wrong + 8) };
  }
  return { tokens, outside, text: tokenizer.decode(written), ended: ids.length > 1 && eot(ids.length - 1) };
}

const answers = {
  async open({ files, step }) {          // files of the reader; without any the site's own model
    grammar ??= new Grammar(await (await download("tales.json")).json());
    let chosen = found;
    if (files) chosen = await choose(files);
    else if (step !== undefined) chosen = { ...found, ...pick(found.checkpoints.find((c) => c.step === step)) };
    else chosen = { name: "demo.safetensors", file: await (await download("demo.safetensors")).blob() };
    const opened = await load(chosen);   // only when this went well the model before it is let go
    [reader, found] = [opened.reader, chosen];
    const { config, parameters } = reader.model;
    const steps = (found.checkpoints ?? []).map((c) => ({ step: c.step, val_loss: c.val_loss }));
    return { about: opened.about, config, parameters, steps, vocab: reader.tokenizer.vocabSize };
  },
  read({ text, ended }) { reader.read(reader.encode(text, ended)); return state(); },
  look({ p, settings }) { return reader.look(Math.min(p, reader.ids.length - 1), settings); },
  maps() { return reader.maps(); },
  continue({ ids, id }) {                // a text, and one token more
    const { tokenizer } = reader, ended = id === tokenizer.eot;
    return { text: tokenizer.decode(ended ? ids : [...ids, id]), ended };
  },
  tale() { return { text: grammar.sample() }; },
  stop() { return {}; },

  // Writes on, and says so about 20 times a second.
  async write({ text, n, settings }, mine, tell) {
    reader.read(reader.encode(text));
    if (!reader.ids.length) throw new Problem("This tokenizer has no <|endoftext|>, " +
      "so the text cannot begin from nothing: type a beginning.");
    const begun = performance.now();
    let spent = 0, count = 0, told = begun;
    for (const steps = reader.write(n, settings); ;) {
      const before = performance.now(), { done } = steps.next();
      spent += performance.now() - before;
      if (done) break;
      count++;
      if (performance.now() - told < 50) continue;
      tell({ ...state(), speed: (1000 * count) / spent });
      await pause();                      // messages of the page come in here
      if (writing !== mine) break;        // it wants something else by now
      told = performance.now();
    }
    return { ...state(), speed: (1000 * count) / spent, done: true };
  },
};

onmessage = async ({ data: { ask, number, ...rest } }) => {
  if (["open", "read", "write", "stop"].includes(ask)) writing = number;
  const tell = (answer) => postMessage({ number, ...answer });
  try { tell(await answers[ask](rest, number, tell)); } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    const unknown = `Something went wrong that this page did not expect (${error.message}): load it again.`;
    tell({ problem: error instanceof Problem ? error.message : unknown });
  }
};
