// An adapter of this client's own: the weights of another one with other numbers, and the manifest that describes it.

import { hex, sha256, sign } from './records.mjs'

const CONFIG = 'adapter_config.json'
const WEIGHTS = 'adapter_model.safetensors'
const CHUNK = 65_536

/** Chunks of a file, as bytes. */
export function chunksOf(bytes, size) {
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, n) => bytes.subarray(n * size, (n + 1) * size))
}

/** A float32 safetensors file with the same names and shapes, and numbers that `draw()` gives. */
function redrawn(weights, draw) {
  const size = Number(weights.readBigUInt64LE())
  const header = JSON.parse(weights.subarray(8, 8 + size).toString())
  for (const { dtype } of Object.values(header)) if (dtype !== undefined && dtype !== 'F32') throw new Error(dtype)
  const redone = Buffer.from(weights)
  for (let at = 8 + size; at < redone.length; at += 4) redone.writeFloatLE(draw(), at)
  return redone
}

/** `{manifest, files}` of an adapter like `model` (a manifest) and its `files` (by path), by the owner of `key`. */
export async function makeLike(model, files, name, key) {
  const made = new Map([[CONFIG, files.get(CONFIG)], [WEIGHTS, redrawn(files.get(WEIGHTS), () => Math.random() - 0.5)]])
  const manifest = await sign('manifest', {
    ...model,
    name,
    description: 'Made by a client that was written from the pages alone.',
    created_ms: Date.now(),
    author: key.publicKey.raw,
    files: [...made].map(([path, bytes]) => ({
      path,
      size: bytes.length,
      sha256: sha256(bytes),
      chunk_size: CHUNK,
      chunks: chunksOf(bytes, CHUNK).map(chunk => sha256(chunk))
    })),
    training: null,
    evaluation: [],
    leak: null,
    lineage: null,
    round: null,
    routing: null,
    supersedes: null,
    extra: {}
  }, key)
  return { manifest, files: new Map([...made.values()].map(bytes => [hex(sha256(bytes)), bytes])) }
}
