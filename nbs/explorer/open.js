// From dropped or picked files to a model: one file of `gptlearn export --to explorer`, a folder with one, or the folder of a run.
import { GPT } from "./model.js";
import { Reader } from "./reader.js";
import { Problem, readSafetensors } from "./safetensors.js";
import { makeTokenizer } from "./tokenizer.js";

const EXPORT = "gptlearn export --run RUN --to explorer --out my.safetensors";

// The sections of a run's config.yaml: `name:`, then two blanks and `key: value`. No more of YAML is needed here.
export function readConfig(text) {
  const sections = {};
  let section = {};
  for (const line of text.split(/\r?\n/)) {
    const found = line.match(/^(  )?([\w-]+): *(.*)$/);
    if (!found) continue;
    const [, inside, key, value] = found;
    if (!inside) section = sections[key] = {};
    else section[key] = scalar(value);
  }
  return sections;
}

function scalar(text) {
  if (["null", "~", ""].includes(text)) return null;
  if (["true", "false"].includes(text)) return text === "true";
  return Number.isNaN(Number(text)) ? text.replace(/^'(.*)'$|^"(.*)"$/, "$1$2") : Number(text);
}

async function json(file, name) {
  try { return JSON.parse(await file.text()); } catch (error) {
    throw new Problem(`${name} is torn or is no JSON: copy it again, or export the model again.`);
  }
}

// The files below what was dropped, as the browser's file system shows it.
export async function walk(entry, path = "") {
  if (entry.isFile) return [{ path: path + entry.name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader(), found = [];
  for (;;) {                              // it hands them out a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map((each) => walk(each, `${path}${entry.name}/`)))).flat();
    found.push(...some);
  }
}

// files: [{path, file}], path with folders in it. Returns what `load` takes:
// {name, file, config?, tokenizer?, about, checkpoints?}, and nothing has been read but the small files.
export async function choose(files) {
  const seen = files.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  const configs = seen.filter(({ path }) => /(^|\/)config\.yaml$/.test(path));
  if (configs.length > 1)
    throw new Problem(`There are ${configs.length} runs in this folder, such as ${folder(configs[0].path)}: drop one of them.`);
  if (configs.length) return run(seen, configs[0]);
  const weights = seen.filter(({ path }) => path.endsWith(".safetensors"));
  if (weights.length === 1) return { name: weights[0].path.split("/").pop(), file: weights[0].file };
  const what = seen.length === 1 ? seen[0].path : seen.length ? "This folder" : "What was dropped";
  if (weights.length > 1) throw new Problem(`${what} holds ${weights.length} files of weights and no config.yaml: ` +
    `drop the folder of one run, or one exported file.`);
  throw new Problem(`${what} is no model: drop the folder of a run, or the file that ${EXPORT} writes.`);
}

const folder = (path) => path.split("/").slice(0, -1).join("/") || "this folder";

async function run(files, { path, file }) {
  const root = path.slice(0, -"config.yaml".length), at = (name) => files.find((f) => f.path === root + name)?.file;
  const { model: config, data = {} } = readConfig(await file.text()), name = folder(path);
  if (!config?.vocab_size) throw new Problem(`${path} does not describe a model: is it the config.yaml of a run of gptlearn?`);
  if (!at("tokenizer.json")) throw new Problem(`${name} has no tokenizer.json: drop the whole folder of the run.`);
  const checkpoints = [];
  for (const f of files) {
    const found = f.path.slice(root.length).match(/^checkpoints\/step_(\d+)\/model\.safetensors$/);
    if (!found || !f.path.startsWith(root)) continue;
    const state = at(`checkpoints/step_${found[1]}/state.json`);
    const { val_loss = null, val_tokens } = state ? await json(state, `the state.json of step ${Number(found[1])}`) : {};
    checkpoints.push({ step: Number(found[1]), val_loss, val_tokens, file: f.file });
  }
  if (!checkpoints.length) throw new Problem(`${name} has no checkpoints/step_…/model.safetensors: ` +
    `drop the whole folder of the run after its first checkpoint, or what ${EXPORT} writes.`);
  checkpoints.sort((a, b) => a.step - b.step);
  // as `gptlearn generate` chooses: the least loss among those evaluated on as many tokens as the newest, else the newest
  const newest = checkpoints.findLast((c) => c.val_loss !== null);
  const alike = checkpoints.filter((c) => c.val_loss !== null && c.val_tokens === newest.val_tokens);
  const best = newest ? alike.reduce((a, b) => (b.val_loss < a.val_loss ? b : a)) : checkpoints.at(-1);
  const tokenizer = await json(at("tokenizer.json"), `${name}/tokenizer.json`);
  return { name, config, tokenizer, about: { name, corpus: data.corpus }, checkpoints, ...pick(best) };
}

export const pick = ({ file, step }) => ({ file, step });  // of a run: the checkpoint that is opened

// What `choose` found → {reader, about}. Weights may hold the config and the tokenizer themselves, as an exported file does.
export async function load({ name, file, config, tokenizer, about, step }) {
  const where = step === undefined ? name : `${name}, step ${step}`;
  let buffer;
  try { buffer = await file.arrayBuffer(); } catch (error) {
    throw new Problem(`${where} cannot be read (${error.message}): has it changed since it was chosen? Choose it again.`);
  }
  const { tensors, metadata } = readSafetensors(buffer, where);
  if (!config) {
    if (!metadata["gptlearn.config"] || !metadata["gptlearn.tokenizer"])
      throw new Problem(`${where} holds weights, but not how the model is built nor its tokenizer: ` +
        `drop the whole folder of the run, or write one file with ${EXPORT}.`);
    try {
      [config, tokenizer, about] = ["config", "tokenizer", "about"].map((key) => JSON.parse(metadata[`gptlearn.${key}`] ?? "{}"));
    } catch (error) { throw new Problem(`${where} is damaged (${error.message}): export it again.`); }
  }
  const model = new GPT(config, tensors, where);
  return { reader: new Reader(model, makeTokenizer(tokenizer, where), where), about: { name, step, ...about } };
}
