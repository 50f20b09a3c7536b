// A GPT, forward only, one token at a time: chapters 03 (embeddings, positions), 04 (attention), 05 (block), 06 (the whole).
import { Problem } from "./safetensors.js";

// y = W x + b, chapter 03's Linear. W is (rows, x.length), a row after the other; four sums at a time keep the processor busy.
function linear({ weight, bias }, x) {
  const n = x.length, y = new Float32Array(weight.length / n);
  for (let row = 0; row < y.length; row++) {
    let at = row * n, a = 0, b = 0, c = 0, d = 0, i = 0;
    for (; i + 3 < n; i += 4, at += 4) {
      a += weight[at] * x[i];
      b += weight[at + 1] * x[i + 1];
      c += weight[at + 2] * x[i + 2];
      d += weight[at + 3] * x[i + 3];
    }
    for (; i < n; i++, at++) a += weight[at] * x[i];
    y[row] = a + b + c + d + (bias ? bias[row] : 0);
  }
  return y;
}

// Chapter 05's norms. LayerNorm: mean 0, variance 1; RMSNorm: mean square 1; then a learned scale (and shift).
function norm({ weight, bias }, x, kind, eps) {
  let mean = 0, square = 0;
  if (kind === "layernorm") for (const v of x) mean += v / x.length;
  for (const v of x) square += (v - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(square + eps);
  return x.map((v, i) => (v - mean) * scale * weight[i] + (bias ? bias[i] : 0));
}

// The error function, which JavaScript lacks: Chebyshev's fit from Numerical Recipes, right to 1.2e-7.
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const c = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
  const tail = t * Math.exp(-x * x + c.reduceRight((sum, coefficient) => coefficient + t * sum, 0));
  return x >= 0 ? 1 - tail : tail - 1;
}

const silu = (x) => x / (1 + Math.exp(-x));
const activations = {                 // chapter 05
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(0, x),
  relu2: (x) => Math.max(0, x) ** 2,
  silu,
};

export function softmax(scores) {     // chapter 04: subtract the largest, or exp overflows
  let largest = -Infinity, sum = 0;
  for (const s of scores) if (s > largest) largest = s;
  const shares = Float64Array.from(scores, (s) => Math.exp(s - largest));
  for (const s of shares) sum += s;
  return shares.map((s) => s / sum);
}

export class GPT {
  // config: the fields of chapter 06's GPTConfig, all of them; tensors: from readSafetensors; name: for messages.
  constructor(config, tensors, name) {
    Object.assign(this, { config, tensors, name, parameters: 0 });
    const { vocab_size: V, context_length: L, d_model: C, n_head: H, n_kv_head: K, d_head: D, d_ff: F } = config;
    const layerNorm = config.norm === "layernorm" && config.bias, gated = config.activation === "swiglu";
    if (!gated && !(config.activation in activations) || !["learned", "sinusoidal", "rope"].includes(config.position))
      throw new Problem(`${name} has activation ${config.activation} and positions ${config.position}, ` +
        `which this page does not know: open it in the explorer of the gptlearn that made it.`);
    const lin = (path, rows, columns) => this.part(path, [rows, columns], config.bias);
    this.embedding = this.part("token_embedding", [V, C]).weight;
    if (config.position === "learned") this.positions = this.part("position_embedding", [L, C]).weight;
    if (config.position === "sinusoidal") this.positions = this.waves(L, C, 10000, true);
    if (config.position === "rope") this.turns = this.waves(L, D, config.rope_base, false);
    this.blocks = Array.from({ length: config.n_layer }, (_, i) => ({
      norm1: this.part(`blocks.${i}.norm1`, [C], layerNorm),
      qkv: lin(`blocks.${i}.attention.qkv`, (H + 2 * K) * D, C),
      qNorm: config.qk_norm && this.part(`blocks.${i}.attention.q_norm`, [D]),
      kNorm: config.qk_norm && this.part(`blocks.${i}.attention.k_norm`, [D]),
      out: lin(`blocks.${i}.attention.out`, C, H * D),
      norm2: this.part(`blocks.${i}.norm2`, [C], layerNorm),
      gate: gated && lin(`blocks.${i}.feed_forward.gate`, F, C),
      up: lin(`blocks.${i}.feed_forward.up`, F, C),
      down: lin(`blocks.${i}.feed_forward.down`, C, F),
    }));
    this.norm = this.part("norm", [C], layerNorm);
    this.head = config.tie_weights ? { weight: this.embedding } : this.part("head", [V, C]);
  }

  part(path, shape, bias = false) {   // {weight, bias} of one layer, of the shape that the config asks for
    const get = (key, wanted) => {
      const found = this.tensors[key];
      if (found?.shape.join() !== wanted.join())
        throw new Problem(`${this.name}: ${key} is ${found ? `(${found.shape.join(", ")})` : "missing"} where the config wants ` +
          `(${wanted.join(", ")}); export the model again, or copy the run again.`);
      this.parameters += found.data.length;
      return found.data;
    };
    return { weight: get(`${path}.weight`, shape), bias: bias && get(`${path}.bias`, shape.slice(0, 1)) };
  }

  // Position t turns pair i by t · base^(-2i/d): sine and cosine, side by side (chapter 03). The table is made row by row.
  waves(n, d, base, inTurn) {
    const table = new Float32Array(n * d);
    for (let t = 0; t < n; t++)
      for (let i = 0; i < d / 2; i++) {
        const angle = t * base ** ((-2 * i) / d);
        table[t * d + (inTurn ? 2 * i : i)] = Math.sin(angle);
        table[t * d + (inTurn ? 2 * i + 1 : d / 2 + i)] = Math.cos(angle);
      }
    return table;
  }

  newCache() {                          // chapter 04's KVCache: a token's row is its position
    const { n_layer, n_kv_head: K, d_head: D, context_length: L } = this.config;
    const room = () => Array.from({ length: n_layer }, () => new Float32Array(L * K * D));
    return { k: room(), v: room(), length: 0 };
  }

  rotate(head, t) {                     // RoPE: channel i and channel i + D/2 are a pair
    const half = head.length / 2, at = t * head.length;
    for (let i = 0; i < half; i++) {
      const sin = this.turns[at + i], cos = this.turns[at + half + i], x = head[i], y = head[i + half];
      head[i] = x * cos - y * sin;
      head[i + half] = y * cos + x * sin;
    }
  }

  // Attention of one new token at position t: it looks at the cache's rows 0 to t, which is the causal mask.
  // weights: where the shares of every head go, for the page; (H, t + 1).
  attention(block, layer, x, cache, weights) {
    const { n_head: H, n_kv_head: K, d_head: D, norm_eps } = this.config, t = cache.length;
    const qkv = linear(block.qkv, x), mixed = new Float32Array(H * D);
    for (let h = 0; h < H + K; h++) {   // rows: all queries, then all keys, then all values
      const head = qkv.subarray(h * D, (h + 1) * D), its = h < H ? block.qNorm : block.kNorm;
      if (its) head.set(norm(its, head, "rmsnorm", norm_eps));
      if (this.turns) this.rotate(head, t);
    }
    const keys = cache.k[layer], values = cache.v[layer], width = K * D;
    keys.set(qkv.subarray(H * D, (H + K) * D), t * width);
    values.set(qkv.subarray((H + K) * D), t * width);
    for (let h = 0; h < H; h++) {
      const from = Math.floor(h / (H / K)) * D, scores = new Float64Array(t + 1);  // H / K queries share a key head
      for (let s = 0; s <= t; s++) {
        let score = 0;
        for (let i = 0, at = s * width + from; i < D; i++) score += qkv[h * D + i] * keys[at + i];
        scores[s] = score / Math.sqrt(D);
      }
      const shares = softmax(scores);
      weights?.set(shares, h * (t + 1));
      for (let s = 0; s <= t; s++)
        for (let i = 0, at = s * width + from; i < D; i++) mixed[h * D + i] += shares[s] * values[at + i];
    }
    return linear(block.out, mixed);
  }

  feedForward(block, x) {
    const up = linear(block.up, x);
    if (!block.gate) return linear(block.down, up.map(activations[this.config.activation]));
    const gate = linear(block.gate, x); // SwiGLU: a second set of neurons opens and closes the first
    return linear(block.down, up.map((v, i) => silu(gate[i]) * v));
  }

  // One more token. Returns what the page draws: the stream at every depth (n_layer + 1 of (C,)) and the attention
  // of every layer, (H, t + 1). The last depth, through `logits`, says what comes next.
  forward(id, cache) {
    const { d_model: C, n_layer, n_head: H, norm: kind, norm_eps } = this.config, t = cache.length;
    const x = this.embedding.slice(id * C, (id + 1) * C), add = (y) => y.forEach((v, i) => (x[i] += v));
    if (this.positions) add(this.positions.subarray(t * C, (t + 1) * C));
    const depths = [x.slice()], attention = [];
    this.blocks.forEach((block, layer) => {
      attention.push(new Float32Array(H * (t + 1)));
      add(this.attention(block, layer, norm(block.norm1, x, kind, norm_eps), cache, attention[layer]));
      add(this.feedForward(block, norm(block.norm2, x, kind, norm_eps)));
      depths.push(x.slice());
    });
    cache.length++;
    return { depths, attention };
  }

  logits(stream) {                      // final norm, head, soft cap: of the last depth the model's word, of others the logit lens
    const { norm: kind, norm_eps, logit_soft_cap: cap } = this.config;
    const z = linear(this.head, norm(this.norm, stream, kind, norm_eps));
    return cap ? z.map((v) => cap * Math.tanh(v / cap)) : z;
  }
}
