// From logits to one token: chapter 07's filter_logits, penalize and sample, with PyTorch's luck.
import { softmax } from "./model.js";
import { Problem } from "./safetensors.js";

// settings: {temperature, top_k, top_p, min_p, repetition_penalty, seed}; null leaves a rule out.
// Returns the logits (Float64Array), -Infinity where a token was cut: temperature, top-k, top-p, min-p, in this order.
export function filterLogits(logits, { temperature = 1, top_k = null, top_p = null, min_p = null }) {
  const cut = (z, keep) => z.map((v, i) => (keep(v, i) ? v : -Infinity));
  if (temperature === 0) {
    const best = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
    return cut(Float64Array.from(logits), (_, i) => i === best);
  }
  let z = Float64Array.from(logits, (v) => v / temperature);
  if (top_k !== null && top_k < z.length) {
    const least = Float64Array.from(z).sort()[z.length - top_k];
    z = cut(z, (v) => v >= least);      // what ties with the last one stays
  }
  if (top_p !== null && top_p < 1) {
    const p = softmax(z), order = Array.from(z.keys()).sort((a, b) => p[b] - p[a] || a - b), kept = new Set();
    for (let sum = 0, n = 0; n < order.length && sum < top_p; n++) {  // the fewest that reach top_p together
      kept.add(order[n]);
      sum += p[order[n]];
    }
    z = cut(z, (_, i) => kept.has(i));
  }
  if (min_p) {
    const least = z.reduce((a, b) => Math.max(a, b)) + Math.log(min_p);
    z = cut(z, (v) => v >= least);
  }
  return z;
}

// Of ids that occurred, divide positive logits by the penalty, multiply others.
export function penalize(logits, seen, penalty) {
  if (penalty === null || penalty === 1) return logits;
  return logits.map((v, i) => (!seen.has(i) ? v : v > 0 ? v / penalty : v * penalty));
}

// One id; dart in [0, 1): all probabilities side by side on a line, the dart picks one.
export function draw(logits, dart, settings) {
  const p = softmax(filterLogits(logits, settings));
  if (!Number.isFinite(p[0]))
    throw new Problem("The largest logit is nan or infinite, so there is nothing to draw from: " +
      "the weights are broken, go back to an earlier checkpoint.");
  const total = p.reduce((a, b) => a + b, 0);
  let sum = 0;
  for (let id = 0; id < p.length; id++) if ((sum += p[id]) > dart * total) return id;
  return p.length - 1;
}

// The Mersenne Twister, which PyTorch uses on a CPU: so a seed tells the same story here as `gptlearn generate --seed`.
export function* darts(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;
  const next = () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11; y ^= (y << 7) & 0x9d2c5680; y ^= (y << 15) & 0xefc60000; y ^= y >>> 18;
    return y >>> 0;
  };
  for (;;) {                             // 53 bits make a double
    const high = next(), low = next();
    yield ((high & 0x1fffff) * 2 ** 32 + low) * 2 ** -53;
  }
}
