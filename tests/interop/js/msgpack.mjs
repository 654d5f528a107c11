// msgpack in one form for each value: "Bytes" of docs/SPEC-manifest.md, from that page and the msgpack specification.

/** This is not what the page says; the message says why. */
export class Refused extends Error {}

const MOST_VALUES = 65_536
const DEEPEST = 16
const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Any value as bytes. Maps are objects, sorted by the bytes of their keys; large integers may be BigInt. */
export function encode(value) {
  const parts = []
  write(value, parts)
  return Buffer.concat(parts)
}

function write(value, parts) {
  if (value === null) parts.push(Buffer.of(0xc0))
  else if (value === false || value === true) parts.push(Buffer.of(value ? 0xc3 : 0xc2))
  else if (typeof value === 'number' || typeof value === 'bigint') parts.push(integer(BigInt(value)))
  else if (typeof value === 'string') {
    const bytes = Buffer.from(value)
    parts.push(bytes.length < 32 ? Buffer.of(0xa0 | bytes.length) : length(bytes.length, 0xd9, 0xda, 0xdb), bytes)
  } else if (value instanceof Uint8Array) parts.push(length(value.length, 0xc4, 0xc5, 0xc6), value)
  else if (Array.isArray(value)) {
    parts.push(value.length < 16 ? Buffer.of(0x90 | value.length) : length(value.length, null, 0xdc, 0xdd))
    for (const item of value) write(item, parts)
  } else {
    const keys = Object.keys(value).map(key => [Buffer.from(key), key]).sort((a, b) => Buffer.compare(a[0], b[0]))
    parts.push(keys.length < 16 ? Buffer.of(0x80 | keys.length) : length(keys.length, null, 0xde, 0xdf))
    for (const [, key] of keys) {
      write(key, parts)
      write(value[key], parts)
    }
  }
}

function length(count, one, two, four) {
  if (one !== null && count < 0x100) return Buffer.of(one, count)
  const packed = Buffer.alloc(count < 0x10000 ? 3 : 5)
  packed[0] = count < 0x10000 ? two : four
  if (count < 0x10000) packed.writeUInt16BE(count, 1)
  else packed.writeUInt32BE(count, 1)
  return packed
}

function integer(value) {
  if (value >= -32n && value < 128n) return Buffer.of(Number(value) & 0xff)
  const forms = value < 0n
    ? [[0xd0, 1, 7n], [0xd1, 2, 15n], [0xd2, 4, 31n], [0xd3, 8, 63n]].filter(([, , bits]) => value >= -(1n << bits))
    : [[0xcc, 1, 8n], [0xcd, 2, 16n], [0xce, 4, 32n], [0xcf, 8, 64n]].filter(([, , bits]) => value < 1n << bits)
  if (forms.length === 0) throw new Refused('an integer that is too large')
  const [first, size] = forms[0]
  const packed = Buffer.alloc(1 + size)
  packed[0] = first
  let rest = BigInt.asUintN(8 * size, value)
  for (let at = size; at > 0; at--, rest >>= 8n) packed[at] = Number(rest & 0xffn)
  return packed
}

/** The value of some bytes, however they are encoded. Throws `Refused`. */
export function decode(bytes) {
  const reader = new Reader(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length))
  const value = reader.value(0)
  if (reader.left > 0) throw new Refused('something follows the value')
  return value
}

/** The value of bytes that are in the one form. Throws `Refused`. */
export function decodeStrictly(bytes) {
  const value = decode(bytes)
  if (Buffer.compare(encode(value), bytes) !== 0) throw new Refused('not the deterministic form')
  return value
}

class Reader {
  #bytes
  #at = 0
  #values = 0

  constructor(bytes) {
    this.#bytes = bytes
  }

  get left() {
    return this.#bytes.length - this.#at
  }

  value(depth, isKey = false) {
    if (depth > DEEPEST) throw new Refused('nested too deeply')
    if (!isKey && ++this.#values > MOST_VALUES) throw new Refused('too many values')
    const first = this.#number(1)
    if (isKey && !(first >> 5 === 5 || (first >= 0xd9 && first <= 0xdb))) throw new Refused('a key that is no text')
    if (first < 0x80) return first
    if (first < 0x90) return this.#map(first & 0x0f, depth)
    if (first < 0xa0) return this.#list(first & 0x0f, depth)
    if (first < 0xc0) return this.#text(first & 0x1f)
    if (first >= 0xe0) return first - 0x100
    switch (first) {
      case 0xc0: return null
      case 0xc2: return false
      case 0xc3: return true
      case 0xc4: case 0xc5: case 0xc6: return this.#take(this.#number(1 << (first - 0xc4)))
      case 0xcc: case 0xcd: case 0xce: return this.#number(1 << (first - 0xcc))
      case 0xcf: return small(this.#take(8).readBigUInt64BE())
      case 0xd0: return this.#take(1).readInt8()
      case 0xd1: return this.#take(2).readInt16BE()
      case 0xd2: return this.#take(4).readInt32BE()
      case 0xd3: return small(this.#take(8).readBigInt64BE())
      case 0xd9: case 0xda: case 0xdb: return this.#text(this.#number(1 << (first - 0xd9)))
      case 0xdc: case 0xdd: return this.#list(this.#number(2 << (first - 0xdc)), depth)
      case 0xde: case 0xdf: return this.#map(this.#number(2 << (first - 0xde)), depth)
      default: throw new Refused('a float, an extension or nothing at all')
    }
  }

  #take(count) {
    if (count > this.left) throw new Refused('it ends too early')
    this.#at += count
    return this.#bytes.subarray(this.#at - count, this.#at)
  }

  #number(size) {
    return this.#take(size).readUIntBE(0, size)
  }

  #text(size) {
    let text
    try {
      text = UTF8.decode(this.#take(size))
    } catch (error) {
      throw error instanceof Refused ? error : new Refused('text that is not UTF-8')
    }
    if (text.normalize('NFC') !== text) throw new Refused('text that is not NFC')
    if (/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/.test(text)) throw new Refused('text with control characters')
    return text
  }

  #list(count, depth) {
    const items = []
    for (let number = 0; number < count; number++) items.push(this.value(depth + 1))
    return items
  }

  #map(count, depth) {
    const map = Object.create(null)
    for (let number = 0; number < count; number++) {
      const key = this.value(depth + 1, true)
      if (key in map) throw new Refused('a key twice')
      map[key] = this.value(depth + 1)
    }
    return map
  }
}

function small(value) {
  return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value
}
