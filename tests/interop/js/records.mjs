// Signed records, from docs/SPEC-manifest.md and docs/SPEC-records.md: is this one, and what does it say?

import { createHash, createPublicKey, verify as holds } from 'node:crypto'
import { Refused, decodeStrictly, encode } from './msgpack.mjs'

export { Refused }

// ---- the fields ------------------------------------------------------------------------------------------------

const number = (low, high) => value =>
  (typeof value === 'number' || typeof value === 'bigint') && value >= low && value <= high
const text = (low, high) => value => typeof value === 'string' && [...value].length >= low && [...value].length <= high
const data = size => value => value instanceof Uint8Array && value.length === size
const bool = value => value === true || value === false
const maybe = check => value => value === null || check(value)
const many = (check, low = 0, high = 2 ** 32) => value =>
  Array.isArray(value) && value.length >= low && value.length <= high && value.every(check)
const isMap = value =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array)
const fields = checks => value =>
  isMap(value) && Object.keys(value).length === Object.keys(checks).length &&
  Object.entries(checks).every(([name, check]) => name in value && check(value[name]))

const COUNT = number(0, 2 ** 53)
const DIGEST = data(32)
const LABEL = text(0, 120)
const PPM = number(0, 1_000_000)
const INTEGER = number(-(2n ** 63n), 2n ** 64n - 1n)

const MANIFEST = fields({
  name: text(1, 120), description: text(0, 4000), licence: LABEL, tags: many(LABEL), created_ms: COUNT, author: DIGEST,
  base: fields({ fingerprint: DIGEST, hint: LABEL, architecture: LABEL }),
  adapter: fields({
    format: value => value === 'peft-lora', rank: number(1, 1024), alpha_milli: number(0, 2 ** 40), rslora: bool,
    target_modules: many(LABEL), dtype: LABEL, parameters: COUNT, capabilities: many(LABEL)
  }),
  files: many(fields({
    path: LABEL, size: COUNT, sha256: DIGEST, chunk_size: number(4096, 2 ** 22), chunks: many(DIGEST)
  })),
  training: maybe(fields({
    method: LABEL, initial: maybe(DIGEST), relative_to: maybe(DIGEST), examples: COUNT, tokens: COUNT, steps: COUNT,
    seed: COUNT, software: LABEL, data_commitment: DIGEST
  })),
  evaluation: many(fields({
    metric: value => value === 'loss' || value === 'exact_match', value: COUNT, base_value: maybe(COUNT),
    examples: COUNT, split: LABEL
  })),
  leak: maybe(fields({ method: LABEL, auc_ppm: PPM, verdict: LABEL })),
  lineage: maybe(fields({
    recipe: DIGEST, method: LABEL, rank: number(1, 1024), strength_ppm: number(0, 10 ** 9),
    leaves: many(fields({ id: DIGEST, weight_ppm: number(-(10 ** 9), 10 ** 9) })), previous: maybe(DIGEST),
    outer: maybe(DIGEST), residual_ppm: PPM, tolerance_ppm: PPM
  })),
  round: maybe(fields({ federation: DIGEST, number: COUNT })),
  routing: maybe(fields({ layer: COUNT, scale: number(1, 2 ** 40), centroid: many(INTEGER), spread: many(INTEGER) })),
  supersedes: maybe(DIGEST),
  extra: isMap
})
const ANNOUNCEMENT = fields({
  manifest: DIGEST, base: DIGEST, author: DIGEST, topics: many(text(1, 120), 1, 16), size: COUNT, seq: COUNT,
  created_ms: COUNT, extra: isMap
})
const REVOCATION = fields({ manifest: DIGEST, author: DIGEST, reason: text(0, 4000), created_ms: COUNT, extra: isMap })
const ATTESTATION = fields({
  manifest: DIGEST, evaluator: DIGEST, metric: value => value === 'loss' || value === 'exact_match', value: COUNT,
  base_value: maybe(COUNT), examples: COUNT, interval: COUNT, created_ms: COUNT, extra: isMap
})
const rotationFields = fields({ old: DIGEST, new: DIGEST, created_ms: COUNT, extra: isMap })
const ROTATION = value => rotationFields(value) && Buffer.compare(value.old, value.new) !== 0
const FEDERATION = fields({
  topic: text(1, 120), base: DIGEST, author: DIGEST, rounds: number(1, 2 ** 32), min_members: number(1, 2 ** 32),
  cadence_s: COUNT, method: LABEL, rank: number(1, 1024), created_ms: COUNT, extra: isMap
})
const ENVELOPE = fields({
  payload: value => value instanceof Uint8Array, type: value => typeof value === 'string',
  signatures: many(fields({ key: DIGEST, sig: data(64) }), 1, 16)
})

/** By word: the id's prefix, the most bytes of an envelope, the fields, and the fields of those who must sign. */
export const KINDS = {
  manifest: { prefix: 'adp_', limit: 1 << 20, check: MANIFEST, signers: ['author'] },
  announcement: { prefix: 'ann_', limit: 8 << 10, check: ANNOUNCEMENT, signers: ['author'] },
  revocation: { prefix: 'rev_', limit: 32 << 10, check: REVOCATION, signers: ['author'] },
  attestation: { prefix: 'att_', limit: 8 << 10, check: ATTESTATION, signers: ['evaluator'] },
  rotation: { prefix: 'rot_', limit: 8 << 10, check: ROTATION, signers: ['old', 'new'] },
  federation: { prefix: 'fed_', limit: 8 << 10, check: FEDERATION, signers: ['author'] }
}
const TYPE = /^application\/vnd\.orchd\.([a-z]+)\.v1\+msgpack$/

// ---- reading and signing ---------------------------------------------------------------------------------------

/** `{kind, digest, id, record, envelope}` of a record whose signatures hold. Throws `Refused`. */
export function verify(envelope, wanted = null) {
  if (envelope.length > KINDS.manifest.limit) throw new Refused('too large')
  const outer = decodeStrictly(envelope)
  if (!ENVELOPE(outer)) throw new Refused('no envelope')
  const kind = TYPE.exec(outer.type)?.[1]
  if (!Object.hasOwn(KINDS, kind ?? '') || (wanted !== null && kind !== wanted)) throw new Refused('another type')
  const { prefix, limit, check, signers } = KINDS[kind]
  if (envelope.length > limit) throw new Refused('too large')
  const message = preAuthentication(outer.type, outer.payload)
  for (const { key, sig } of outer.signatures) checkSignature(key, sig, message)
  const record = decodeStrictly(outer.payload)
  if (!check(record)) throw new Refused('a field is missing, unknown or out of bounds')
  const keys = new Set(outer.signatures.map(({ key }) => hex(key)))
  if (!signers.every(name => keys.has(hex(record[name])))) throw new Refused('somebody who must sign has not signed')
  const digest = sha256(outer.payload)
  return { kind, digest, id: prefix + base32(digest), record, envelope }
}

/** A record of this kind in an envelope, signed by `key`, a libp2p private key of Ed25519. */
export async function sign(kind, record, key) {
  const type = `application/vnd.orchd.${kind}.v1+msgpack`
  const payload = encode(record)
  const sig = await key.sign(preAuthentication(type, payload))
  return verify(encode({ payload, type, signatures: [{ key: key.publicKey.raw, sig }] }), kind)
}

function preAuthentication(type, payload) {
  const name = Buffer.from(type)
  return Buffer.concat([Buffer.from(`DSSEv1 ${name.length} ${name} ${payload.length} `), payload])
}

const P = 2n ** 255n - 19n
const ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022n
const SMALL_ORDER_Y = new Set([0n, 1n, P - 1n, P, P + 1n, ORDER_8, P - ORDER_8])

function checkSignature(key, signature, message) {
  const y = BigInt('0x' + hex(Buffer.from(key).reverse())) % 2n ** 255n
  if (SMALL_ORDER_Y.has(y)) throw new Refused('a key of small order')
  let good = false
  try {
    const jwk = { kty: 'OKP', crv: 'Ed25519', x: Buffer.from(key).toString('base64url') }
    good = holds(null, message, createPublicKey({ key: jwk, format: 'jwk' }), signature)
  } catch { /* no point of the curve */ }
  if (!good) throw new Refused('the signature does not hold')
}

// ---- small things ----------------------------------------------------------------------------------------------

export const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()
export const hex = bytes => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')

/** RFC 4648, lower case, without padding. */
export function base32(bytes) {
  let bits = ''
  for (const byte of bytes) bits += byte.toString(2).padStart(8, '0')
  return bits.match(/.{1,5}/g).map(five => 'abcdefghijklmnopqrstuvwxyz234567'[parseInt(five.padEnd(5, '0'), 2)]).join('')
}
