// A model with a text in front of it: what it has read, what that surprised it by, and the text that it writes on.
import { softmax } from "./model.js";
import { darts, draw, filterLogits, penalize } from "./sample.js";
import { Problem } from "./safetensors.js";

// Where the window that the model sees begins, with n tokens so far: at 0; when it is full it leaps, keeping the last
// half of the context (chapter 07, "_window_start").
export function windowStart(n, L) {
  if (n <= L) return 0;
  const leap = L + 1 - Math.max(1, Math.floor(L / 2));
  return Math.ceil((n - L) / leap) * leap;
}

const best = (p, k) => Array.from(p.keys()).sort((a, b) => p[b] - p[a]).slice(0, k);

export class Reader {
  constructor(model, tokenizer, name) {
    if (tokenizer.vocabSize > model.config.vocab_size)
      throw new Problem(`${name}: the tokenizer has ${tokenizer.vocabSize} ids and the model ${model.config.vocab_size}; ` +
        `give the tokenizer that the model was trained with.`);
    const { n_layer, n_head, context_length: L } = model.config;
    Object.assign(this, { model, tokenizer, cache: model.newCache(), ids: [], steps: [], start: 0 });
    this.remembered = Math.max(64, Math.floor(2 ** 26 / (n_layer * n_head * L)));  // attention of so many tokens is kept
  }

  // The ids of a text: in training every document began after the end of another.
  encode(text, ended = false) {
    const { eot } = this.tokenizer, edge = eot === undefined ? [] : [eot];
    return [...edge, ...this.tokenizer.encode(text), ...(ended ? edge : [])];
  }

  // Read `ids`; what they share with what was read before is in the cache and is not read again.
  read(ids) {
    let same = 0;
    while (same < ids.length && ids[same] === this.ids[same]) same++;
    this.ids = [...ids];
    this.steps.length = Math.min(same, this.steps.length);
    this.cache.length = Math.max(0, Math.min(this.cache.length, same - this.start));  // forget the rest: set_length of chapter 04
    for (let p = this.steps.length; p < ids.length; p++) this.steps.push(this.step(p));
    return this.steps;
  }

  step(p) {
    const start = windowStart(p + 1, this.model.config.context_length);
    if (start !== this.start) { this.start = start; this.cache.length = 0; }
    for (let q = start + this.cache.length; q < p; q++) this.model.forward(this.ids[q], this.cache);
    const step = { start, nats: p && this.surprise(p), ...this.model.forward(this.ids[p], this.cache) };
    if (p > 1) delete this.steps[p - 2].logits;                       // large, and soon worked out again
    if (p >= this.remembered) delete this.steps[p - this.remembered].attention;
    return step;
  }

  // What comes after token p; (V,).
  logits(p) { return (this.steps[p].logits ??= this.model.logits(this.steps[p].depths.at(-1))); }

  // -ln of the probability that the model gave to token p, in nats (chapter 06's cross_entropy for one target).
  surprise(p) {
    const z = this.logits(p - 1);
    let largest = -Infinity, sum = 0;
    for (const v of z) if (v > largest) largest = v;
    for (const v of z) sum += Math.exp(v - largest);
    const nats = largest + Math.log(sum) - z[this.ids[p]];
    if (Number.isNaN(nats)) throw new Problem("The model's guesses are nan: its weights are broken, take an earlier checkpoint.");
    return nats;
  }

  // The next id under the settings; ids that the tokenizer does not know are never drawn.
  next(settings, dart) { return draw(this.chosen(this.ids.length - 1, settings), dart, settings); }

  chosen(p, settings) {
    const kept = this.logits(p).slice(0, this.tokenizer.vocabSize);
    return penalize(kept, new Set(this.ids.slice(0, p + 1)), settings.repetition_penalty ?? null);
  }

  // Go on writing, one id after the other, until the document ends or there are n more.
  *write(n, settings) {
    const luck = darts(settings.seed ?? 0);
    for (let i = 0; i < n; i++) {
      const id = this.next(settings, settings.temperature === 0 ? 0 : luck.next().value);
      this.read([...this.ids, id]);
      yield id;
      if (id === this.tokenizer.eot) return;
    }
  }

  label(id) {                            // what the page writes for a token
    const { eot, specialIds, bytes } = this.tokenizer;
    if (id === eot) return "⟨end⟩";
    if (specialIds.has(id)) return specialIds.get(id);
    const text = this.tokenizer.decode([id]);
    return text.includes("\ufffd") ? `⟨${(bytes[id] ?? []).map((b) => b.toString(16).padStart(2, "0")).join(" ")}⟩` : text;
  }

  // All that there is to see at position p: guesses, before and after the sampling settings; the logit lens (chapter 17);
  // the attention of every head, a row of `length` weights from position `start` on.
  look(p, settings) {
    const { depths, attention, start } = this.steps[p], { n_head: H } = this.model.config;
    const shares = softmax(this.logits(p)), drawn = softmax(filterLogits(this.chosen(p, settings), settings));
    const name = (id, share) => ({ id, text: this.label(id), p: share });
    const guesses = best(shares, 10).map((id) => ({ ...name(id, shares[id]), drawn: drawn[id] ?? 0 }));
    const lens = depths.map((stream) => {
      const q = softmax(this.model.logits(stream));
      return best(q, 3).map((id) => name(id, q[id]));
    });
    const heads = attention?.map((rows) => Array.from({ length: H }, (_, h) => rows.slice(h * (p - start + 1), (h + 1) * (p - start + 1))));
    return { p, start, guesses, lens, heads, left: drawn.filter((q) => q > 0).length };
  }

  // The maps of every head over the last `most` tokens, for small pictures: bytes, 255 for all of the attention.
  maps(most = 72) {
    const first = Math.max(0, this.ids.length - most), T = this.ids.length - first, { n_layer, n_head: H } = this.model.config;
    const maps = Array.from({ length: n_layer * H }, () => new Uint8Array(T * T));
    for (let p = first; p < this.ids.length; p++) {
      const { attention, start } = this.steps[p], width = p - start + 1;
      attention?.forEach((rows, layer) => {
        for (let h = 0; h < H; h++)
          for (let s = Math.max(start, first); s <= p; s++)
            maps[layer * H + h][(p - first) * T + s - first] = Math.round(255 * rows[h * width + s - start]);
      });
    }
    return { first, T, maps };
  }
}
