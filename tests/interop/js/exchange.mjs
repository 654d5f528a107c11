// `/orchd/exchange/1` of docs/SPEC-exchange.md: frames over a stream (of libp2p, or the TLS socket of `bulk`).

import { connect } from 'node:tls'
import { Refused, decode, encode } from './msgpack.mjs'
import { hex, sha256 } from './records.mjs'

export const PROTOCOL = '/orchd/exchange/1'
/** Also through a relay, which carries so many bytes and no more. */
export const LIMITED = { runOnLimitedConnection: true }
export const LONGEST_RANGE = 4_194_304
const LONGEST_QUESTION = 528_896
const LONGEST_ANSWER = 1_052_672
const PIECE = 65_536

/** The peer says that it does not answer; `reason` says why. */
export class Failed extends Error {
  constructor(reason) {
    super(`the peer answers: ${reason}`)
    this.reason = reason
  }
}

/** Whether somebody is to blame: not for a peer that left, or had no use for the rest of a stream. */
export function isTrouble(error) {
  return error instanceof Refused || error instanceof TypeError || error instanceof RangeError ||
    (error instanceof Failed && ['malformed', 'failed'].includes(error.reason))
}

/** Whole frames, and raw bytes after them, over `stream`: what can be iterated, written to and closed. */
export class Channel {
  #pieces
  #stream
  #longest
  #waiting = Buffer.alloc(0)

  constructor(stream, longest = LONGEST_ANSWER) {
    this.#pieces = stream[Symbol.asyncIterator]()
    this.#stream = stream
    this.#longest = longest
  }

  async send(message, ...raw) {
    const body = encode(message)
    const header = Buffer.alloc(4)
    header.writeUInt32BE(body.length)
    const bytes = Buffer.concat([header, body, ...raw])
    for (let at = 0; at < bytes.length; at += PIECE) {
      if (!this.#stream.send(bytes.subarray(at, at + PIECE))) await this.#stream.onDrain()
    }
  }

  /** The next message, null at the end. */
  async receive() {
    if (!await this.#fill(4, true)) return null
    const size = this.#waiting.readUInt32BE()
    if (size > this.#longest) throw new Refused(`a frame of ${size} bytes`)
    this.#take(4)
    const message = decode(await this.raw(size))
    if (typeof message?.op !== 'string') throw new Refused('a frame without op')
    return message
  }

  async raw(size) {
    await this.#fill(size)
    return this.#take(size)
  }

  /** The answer to the question that was put first of those that have none. Throws `Failed`. */
  async answer(wanted) {
    const message = await this.receive()
    if (message === null) throw new Failed('nothing')
    if (message.op === 'failed') throw new Failed(message.reason)
    if (message.op !== wanted) throw new Refused(`${message.op} instead of ${wanted}`)
    return message
  }

  close() {
    return this.#stream.close()
  }

  #take(size) {
    const taken = this.#waiting.subarray(0, size)
    this.#waiting = this.#waiting.subarray(size)
    return taken
  }

  async #fill(size, mayEnd = false) {
    const pieces = [this.#waiting]
    let have = this.#waiting.length
    while (have < size) {
      const { value, done } = await this.#pieces.next()
      if (done) {
        if (mayEnd && have === 0) return false
        throw new Failed('half a message')
      }
      pieces.push(Buffer.from(value.subarray()))
      have += value.length
    }
    if (pieces.length > 1) this.#waiting = Buffer.concat(pieces)
    return true
  }
}

/** A stream to a peer. */
export async function open(host, peer) {
  return new Channel(await host.dialProtocol(peer, PROTOCOL, LIMITED))
}

/** One question on a stream of its own. */
export async function ask(host, peer, question, wanted) {
  const channel = await open(host, peer)
  try {
    await channel.send(question)
    return await channel.answer(wanted)
  } finally {
    await channel.close()
  }
}

/** Answer a peer until it closes the stream. `answer(question)` gives a message, maybe with raw bytes. */
export async function serve(stream, answer) {
  const channel = new Channel(stream, LONGEST_QUESTION)
  for (let question; (question = await channel.receive()) !== null;) await channel.send(...await answer(question))
  await channel.close()
}

/** A channel for ranges outside of libp2p, as `bulk_at` offers it. `host` is the peer's IP address. */
export async function openBulk(host, { port, token, certificate }) {
  const socket = connect({ host, port, minVersion: 'TLSv1.3', rejectUnauthorized: false })
  await new Promise((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject))
  if (hex(sha256(socket.getPeerCertificate().raw)) !== hex(certificate)) {
    socket.destroy()
    throw new Refused('another certificate')
  }
  socket.write(token)
  return new Channel({
    [Symbol.asyncIterator]: () => socket[Symbol.asyncIterator](),
    send: bytes => socket.write(bytes),
    onDrain: () => new Promise(resolve => socket.once('drain', resolve)),
    close: async () => socket.destroy()
  })
}
