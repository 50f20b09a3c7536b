// Weights in, numbers out. Chapter 10 saves a model as a .safetensors file; this reads one, without a library.
// The file: 8 bytes with the length n of the header; n bytes of JSON, name → {dtype, shape, data_offsets}; the numbers.

export class Problem extends Error {}  // one sentence for the reader: what is wrong, the rule, what to do

const bytesOf = { F64: 8, F32: 4, F16: 2, BF16: 2 };

// 16 bits that stand for a number: 1 of sign, 5 of exponent, 10 of fraction. A table of all 65,536 is quickest.
const halves = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

// The numbers of one tensor as float32, whatever they were stored as.
function toFloat32(bytes, dtype) {
  if (dtype === "F32") return new Float32Array(bytes);
  if (dtype === "F64") return Float32Array.from(new Float64Array(bytes));
  const short = new Uint16Array(bytes);
  if (dtype === "F16") return Float32Array.from(short, (bits) => halves[bits]);
  return new Float32Array(Uint32Array.from(short, (bits) => bits << 16).buffer);  // bfloat16: the upper half of a float32
}

// buffer: ArrayBuffer of the whole file; name: for messages.
// Returns {tensors: {name: {shape, data: Float32Array}}, metadata: {key: text}}.
export function readSafetensors(buffer, name) {
  const again = "export or copy it again";
  if (buffer.byteLength < 8)
    throw new Problem(`${name} is no safetensors file: it has ${buffer.byteLength} bytes, ` +
      `and the length of the header alone takes 8; ${again}.`);
  const size = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + size;
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, size)));
    if (typeof header !== "object" || !header || Array.isArray(header)) throw new Error("no object");
  } catch (error) {
    throw new Problem(`${name} is no safetensors file, or is torn: its header cannot be read; ${again}.`);
  }
  const { __metadata__: metadata = {}, ...entries } = header, tensors = {};
  for (const [key, entry] of Object.entries(entries)) {
    const { dtype, shape, data_offsets: [from, to] = [] } = entry ?? {};
    if (!(dtype in bytesOf))
      throw new Problem(`${name}: ${key} is of type ${dtype}, ` +
        `and weights are one of ${Object.keys(bytesOf).join(", ")}; save the model in float32.`);
    const count = shape.reduce((a, b) => a * b, 1);
    if (!(to - from === count * bytesOf[dtype] && from >= 0 && start + to <= buffer.byteLength))
      throw new Problem(`${name} is torn: ${key} should end at byte ${start + to}, and the file has ${buffer.byteLength}; ${again}.`);
    tensors[key] = { shape, data: toFloat32(buffer.slice(start + from, start + to), dtype) };
  }
  return { tensors, metadata };
}
