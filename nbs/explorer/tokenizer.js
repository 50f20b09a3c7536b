// Text → ids → text: the three tokenizers of chapter 01, from the tokenizer.json that they save.
import { Problem } from "./safetensors.js";

const utf8 = new TextEncoder();
const fromUtf8 = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
const asKey = (bytes) => String.fromCharCode(...bytes);  // bytes as a string, to look them up in a Map

// A saved token is text; a byte that is no UTF-8 is written as U+DC00 + byte (Python's "surrogateescape").
function tokenBytes(text) {
  const bytes = [];
  for (const char of text) {
    const code = char.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) bytes.push(code - 0xdc00);
    else bytes.push(...utf8.encode(char));
  }
  return bytes;
}

// Python's pattern as JavaScript's. What they mean by \s differs in two characters; (?i:…) is written out for older browsers.
const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const alike = { s: "ſ", k: "\u212a" };  // what else is an s or a k when case is ignored
export function translate(pattern) {
  const anyCase = (letter) => `[${letter.toLowerCase()}${letter.toUpperCase()}${alike[letter.toLowerCase()] ?? ""}]`;
  pattern = pattern.replace(/\(\?i:([^()[\]\\]*)\)/g, (_, inside) => `(?:${inside.replace(/[a-z]/gi, anyCase)})`);
  let inClass = false;
  return pattern.replace(/\\[\s\S]|\[|\]/g, (part) => {
    if (part === "[" || part === "]") { inClass = part === "["; return part; }
    if (part === "\\s") return inClass ? SPACE : `[${SPACE}]`;
    if (part === "\\S" && !inClass) return `[^${SPACE}]`;
    if (part === "\\d") return "\\p{Nd}";
    if (/\\[\wSWDB]/.test(part) && !/\\[pPrntfvxu0]/.test(part)) throw new Error(`${part} means something else in JavaScript`);
    return /\\[^\w^$.*+?()[\]{}|\\/-]/.test(part) ? part[1] : part;  // \' is ', which JavaScript insists on
  });
}

class Tokenizer {
  constructor(bytes, special) {       // id → bytes, and text → id
    this.bytes = bytes;
    this.special = special;
    this.specialIds = new Map(Object.entries(special).map(([text, id]) => [id, text]));
    for (const [id, text] of this.specialIds) this.bytes[id] = [...utf8.encode(text)];
    this.vocabSize = this.bytes.length;
    this.eot = special["<|endoftext|>"];
    const names = Object.keys(special).sort((a, b) => b.length - a.length);  // an alternation takes the first that fits
    this.cut = names.length && new RegExp(`(${names.map((n) => n.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")).join("|")})`, "u");
  }
  encode(text) {
    const parts = this.cut ? text.split(this.cut) : [text];  // plain text at even places, special tokens at odd ones
    return parts.flatMap((part, i) => (i % 2 ? [this.special[part]] : this.encodeText(part)));
  }
  decode(ids) { return fromUtf8(new Uint8Array(ids.flatMap((id) => this.bytes[id] ?? []))); }
  length(id) { return this.specialIds.has(id) ? 0 : (this.bytes[id]?.length ?? 0); }  // a special token stands for no text
}

class ByteTokenizer extends Tokenizer {
  constructor() { super(Array.from({ length: 256 }, (_, i) => [i]), { "<|endoftext|>": 256 }); }
  encodeText(text) { return [...utf8.encode(text)]; }
}

class CharTokenizer extends Tokenizer {
  constructor({ chars, unk }) {
    const list = [...chars], special = { "<|endoftext|>": list.length };
    if (unk && !(unk in special)) special[unk] = list.length + 1;
    super(list.map((char) => [...utf8.encode(char)]), special);
    this.ids = new Map(list.map((char, id) => [char, id]));
    this.unk = unk ? special[unk] : undefined;
  }
  encodeText(text) {
    return Array.from(text, (char) => {
      const id = this.ids.get(char) ?? this.unk;
      if (id === undefined)
        throw new Problem(`This model reads characters and has never seen ${JSON.stringify(char)}: ` +
          `leave it out, or train with a BPE or byte tokenizer, which know all.`);
      return id;
    });
  }
}

// Byte-pair encoding: bytes, then the merges in the order in which they were learnt (chapter 01, "apply_merges").
class BPE extends Tokenizer {
  constructor({ pattern, merges, special_tokens, vocab }) {
    const tokens = Array.from({ length: 256 }, (_, i) => [i]);
    const number = new Map(tokens.map((bytes, i) => [asKey(bytes), i]));
    const rank = new Map();           // left · 2²⁰ + right → the token that the pair becomes; earlier merges have smaller numbers
    for (const [a, b] of merges) {
      const left = tokenBytes(a), right = tokenBytes(b), both = [...left, ...right];
      rank.set(number.get(asKey(left)) * 2 ** 20 + number.get(asKey(right)), tokens.length);
      number.set(asKey(both), tokens.length);
      tokens.push(both);
    }
    const bytes = [];
    if (vocab) for (const [id, text] of vocab) bytes[id] = tokenBytes(text);  // another tokenizer's ids, such as GPT-2's
    else tokens.forEach((token, id) => (bytes[id] = token));
    super(bytes, special_tokens);
    const special = new Set(Object.values(special_tokens)), id = new Map();
    bytes.forEach((token, i) => { if (!special.has(i)) id.set(asKey(token), i); });
    this.ids = tokens.map((token) => id.get(asKey(token)));
    this.rank = rank;
    try { this.pieces = new RegExp(`${translate(pattern)}|[^]`, "gu"); } catch (error) {
      throw new Problem(`The tokenizer's pattern ${pattern} does not run in this browser (${error.message}): ` +
        `train with gptlearn's own pattern, or use a newer browser.`);
    }
    this.words = new Map();           // word → ids, worked out when first seen
  }
  encodeText(text) {
    return (text.match(this.pieces) ?? []).flatMap((word) => {
      if (!this.words.has(word)) this.words.set(word, this.encodeWord(word));
      return this.words.get(word);
    });
  }
  encodeWord(word) {
    let row = [...utf8.encode(word)];
    const merged = (i) => this.rank.get(row[i] * 2 ** 20 + row[i + 1]) ?? Infinity;
    for (;;) {
      let first = Infinity;
      for (let i = 0; i + 1 < row.length; i++) first = Math.min(first, merged(i));  // the earliest learnt merge …
      if (first === Infinity) return row.map((token) => this.ids[token]);
      const next = [];
      for (let i = 0; i < row.length; i++) next.push(merged(i) === first ? (i++, first) : row[i]);  // … wherever it fits
      row = next;
    }
  }
}

// state: the object in tokenizer.json; name: for messages.
export function makeTokenizer(state, name) {
  const kinds = { bpe: BPE, char: CharTokenizer, byte: ByteTokenizer };
  if (!(state?.kind in kinds))
    throw new Problem(`${name} is no tokenizer that gptlearn saved: its "kind" is none of bpe, ` +
      `char, byte; take the tokenizer.json of the run.`);
  try { return new kinds[state.kind](state); } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(`${name} is damaged (${error.message}): export the model again, or copy the run again.`);
  }
}
