// A member of topics, on js-libp2p: docs/SPEC-exchange.md as a program.

import { createHmac } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import { create as multihash } from 'multiformats/hashes/digest'

import { chunksOf, makeLike } from './adapter.mjs'
import { Failed, LIMITED, LONGEST_RANGE, PROTOCOL, ask, isTrouble, open, openBulk, serve } from './exchange.mjs'
import { decode } from './msgpack.mjs'
import { first, inOrder, next, respond } from './reconcile.mjs'
import { Refused, base32, hex, sha256, sign, verify } from './records.mjs'

const RAW = 0x55
const SHA2_256 = 0x12
const MESH = '/orchd/1/'
const INVITATION = 'orchd-topic-1.'
const RECORDS_AT_ONCE = 64
const BUSY_MS = 250

const topicKey = name => sha256('orchd/topic/' + name)
const topicCid = name => CID.createV1(RAW, multihash(SHA2_256, topicKey(name)))

/** HMAC-SHA256(secret, "orchd/topic/member/" length sender receiver), of the bytes of two peer ids. */
function proof(secret, sender, receiver) {
  const [from, to] = [sender, receiver].map(peer => Buffer.from(peer.toMultihash().bytes))
  const size = Buffer.alloc(2)
  size.writeUInt16BE(from.length)
  return createHmac('sha256', secret).update('orchd/topic/member/').update(size).update(from).update(to).digest()
}

/** Name, secret and members' addresses of the private topic to which a line invites. Throws `Refused`. */
function invitation(line) {
  if (!line.startsWith(INVITATION)) throw new Refused('no invitation')
  const raw = Buffer.from(line.slice(INVITATION.length), 'base64url')
  const [check, body] = [raw.subarray(0, 4), raw.subarray(4)]
  if (Buffer.compare(sha256('orchd/topic/invite/', body).subarray(0, 4), check) !== 0) throw new Refused('damaged')
  const [label, secret, addresses] = decode(body)
  const tag = createHmac('sha256', secret).update('orchd/topic/tag/' + label).digest().subarray(0, 16)
  return { name: `private/${label}/${base32(tag)}`, secret, addresses }
}

export class Member {
  /** By name: `{key, secret}`, the secret null for open topics. */
  #topics = new Map()
  /** By peer id: the hello that it said last. */
  #said = new Map()
  /** By id in hex: `{envelope, under}`, `under` the keys in hex of the topics that a record stands under. */
  #records = new Map()
  /** By id in hex: `{manifest, files, topics}` of what is given; files by digest in hex. */
  #adapters = new Map()
  #tell
  #key
  #host

  /** `tell(event)` hears what happens. With the address of a `relay` we can be reached through that alone. */
  static async start(tell, relay = null) {
    const member = new Member()
    member.#tell = tell
    member.#key = await generateKeyPair('Ed25519')
    member.#host = await createLibp2p({
      privateKey: member.#key,
      addresses: { listen: [relay === null ? '/ip4/127.0.0.1/tcp/0' : relay + '/p2p-circuit'] },
      transports: [tcp(), circuitRelayTransport()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: {
        identify: identify(),
        ping: ping(),
        dht: kadDHT({ protocol: '/ipfs/kad/1.0.0', clientMode: false, peerInfoMapper: passthroughMapper }),
        pubsub: gossipsub({ allowPublishToZeroTopicPeers: true })
      }
    })
    const { pubsub } = member.#host.services
    pubsub.addEventListener('gossipsub:message', ({ detail }) => member.#heard(detail.msg))
    await member.#host.handle(PROTOCOL, (stream, connection) =>
      member.#quietly(`answering ${connection.remotePeer}`,
        serve(stream, question => member.#answer(connection.remotePeer, question))), LIMITED)
    member.#host.addEventListener('peer:identify', ({ detail }) => {
      if (detail.protocols.includes(PROTOCOL)) member.#quietly('identified', member.#greet(detail.peerId))
    })
    return member
  }

  get id() {
    return this.#host.peerId.toString()
  }

  get addresses() {
    return this.#host.getMultiaddrs().map(String)
  }

  stop() {
    return this.#host.stop()
  }

  async connect(address) {
    await this.#host.dial(multiaddr(address))
  }

  ping(peer) {
    return this.#host.services.ping.ping(peerIdFromString(peer))
  }

  // ---- topics --------------------------------------------------------------------------------------------------

  async join(name, secret = null) {
    this.#topics.set(name, { key: topicKey(name), secret })
    if (secret === null) {
      const { pubsub } = this.#host.services
      pubsub.topicValidators.set(MESH + name, (_, message) => this.#judge(message))
      pubsub.subscribe(MESH + name)
    }
    await Promise.all([...this.#host.getPeers()].map(peer => this.#quietly('joined', this.#greet(peer))))
  }

  /** Take part in the private topic to which a line invites; its name. */
  async accept(line) {
    const { name, secret, addresses } = invitation(line)
    for (const address of addresses) await this.connect(address)
    await this.join(name, secret)
    return name
  }

  /** Put our address under a topic. */
  async announce(name) {
    const taken = []
    for await (const event of this.#host.services.dht.provide(topicCid(name))) {
      if (event.name === 'PEER_RESPONSE') taken.push(event.from.toString())
    }
    return taken
  }

  /** Ids of those who have announced themselves under a topic; each is connected to. */
  async find(name) {
    const found = new Map()
    for await (const event of this.#host.services.dht.findProviders(topicCid(name))) {
      if (event.name === 'PROVIDER') for (const { id, multiaddrs } of event.providers) found.set(String(id), multiaddrs)
    }
    found.delete(this.id)
    for (const addresses of found.values()) await this.#host.dial(addresses)
    return [...found.keys()]
  }

  #hello(peer) {
    const topics = [...this.#topics.values()]
    return {
      op: 'hello',
      topics: topics.filter(({ secret }) => secret === null).map(({ key }) => key),
      proofs: topics.filter(({ secret }) => secret !== null)
        .map(({ secret }) => proof(secret, this.#host.peerId, peer))
    }
  }

  async #greet(peer) {
    this.#said.set(peer.toString(), await ask(this.#host, peer, this.#hello(peer), 'hello'))
    const shared = this.#shared(peer)
    this.#tell({ event: 'member', peer: peer.toString(), topics: shared })
    for (const name of shared) await this.#compare(peer, name)
  }

  /** Names of the topics that a peer and we take part in. */
  #shared(peer) {
    const said = this.#said.get(peer.toString())
    if (said === undefined) return []
    const has = (list, digest) => (list ?? []).some(one => Buffer.compare(one, digest) === 0)
    return [...this.#topics].filter(([, { key, secret }]) => secret === null
      ? has(said.topics, key)
      : has(said.proofs, proof(secret, peer, this.#host.peerId))
    ).map(([name]) => name)
  }

  // ---- records -------------------------------------------------------------------------------------------------

  #judge(message) {
    try {
      return verify(message.data).kind === 'manifest' ? 'reject' : 'accept'
    } catch (error) {
      return error instanceof Refused ? 'reject' : 'ignore'
    }
  }

  #heard(message) {
    if (message.topic.startsWith(MESH)) this.#keep(message.data, message.topic.slice(MESH.length), 'mesh')
  }

  /** Take a record that came under a topic. Throws `Refused`. */
  #keep(envelope, name, way) {
    const { kind, digest, id, record } = verify(envelope)
    if (kind === 'manifest') throw new Refused('a manifest is no news')
    const under = record.topics ?? [record.topic ?? name]
    if (!under.some(one => this.#topics.has(one))) return
    if (this.#records.has(hex(digest))) return
    this.#records.set(hex(digest), { envelope: Buffer.from(envelope), under: under.map(one => hex(topicKey(one))) })
    this.#tell({ event: kind, id, way, manifest: hex(record.manifest ?? digest), topics: under })
  }

  #idsUnder(key) {
    return inOrder([...this.#records].filter(([, { under }]) => under.includes(hex(key)))
      .map(([id]) => Buffer.from(id, 'hex')))
  }

  /** Learn what a peer knows under a topic, and tell it what it does not. */
  async #compare(peer, name) {
    const topic = topicKey(name)
    const [need, have] = [[], []]
    const ids = this.#idsUnder(topic)
    let rounds = 0
    for (let parts = first(ids); parts.length > 0; rounds++) {
      const { sets } = await ask(this.#host, peer, { op: 'reconcile', sets: [[topic, parts]] }, 'reconciled')
      parts = next(ids, sets[0]?.[1] ?? [], need, have)
    }
    for (let at = 0; at < need.length; at += RECORDS_AT_ONCE) {
      const wanted = need.slice(at, at + RECORDS_AT_ONCE)
      const question = { op: 'get_records', topics: [topic], ids: wanted }
      const { records } = await ask(this.#host, peer, question, 'records_are')
      for (const envelope of records) this.#keep(envelope, name, 'repair')
    }
    await this.#push(peer, have.map(id => this.#records.get(hex(id)).envelope), true)
    const [learned, told] = [need.length, have.length]
    this.#tell({ event: 'repaired', peer: peer.toString(), topic: name, learned, told, rounds })
  }

  async #push(peer, envelopes, repair) {
    for (let at = 0; at < envelopes.length; at += RECORDS_AT_ONCE) {
      const records = envelopes.slice(at, at + RECORDS_AT_ONCE)
      await ask(this.#host, peer, { op: 'push', records, repair }, 'done')
    }
  }

  // ---- answers -------------------------------------------------------------------------------------------------

  async #answer(peer, question) {
    switch (question.op) {
      case 'hello':
        this.#said.set(peer.toString(), question)
        this.#tell({ event: 'member', peer: peer.toString(), topics: this.#shared(peer) })
        return [this.#hello(peer)]
      case 'push':
        for (const envelope of question.records) this.#keep(envelope, this.#shared(peer)[0], 'push')
        return [{ op: 'done' }]
      case 'reconcile': {
        const shared = this.#shared(peer).map(name => hex(topicKey(name)))
        const sets = question.sets.filter(([topic]) => shared.includes(hex(topic)))
          .map(([topic, parts]) => [topic, respond(this.#idsUnder(topic), parts)])
        return [{ op: 'reconciled', sets }]
      }
      case 'get_records': {
        const shared = this.#shared(peer).map(name => hex(topicKey(name)))
        const wanted = question.topics.map(hex).filter(key => shared.includes(key))
        const found = question.ids.map(id => this.#records.get(hex(id)))
          .filter(record => record?.under.some(key => wanted.includes(key)))
        return [{ op: 'records_are', records: found.map(({ envelope }) => envelope) }]
      }
      case 'manifest': {
        const found = this.#given(peer, question.adapter)
        return [found ? { op: 'manifest_is', envelope: found.manifest.envelope } : unknown]
      }
      case 'range': {
        const bytes = this.#given(peer, question.adapter)?.files.get(hex(question.blob))
        if (bytes === undefined) return [unknown]
        const raw = bytes.subarray(question.offset, question.offset + question.length)
        this.#tell({ event: 'gave', peer: peer.toString(), bytes: raw.length })
        return [{ op: 'bytes', length: raw.length }, raw]
      }
      case 'bulk': return [unknown]
      default: return [{ op: 'failed', reason: 'malformed' }]
    }
  }

  /** What we have of an adapter that a peer may have. */
  #given(peer, id) {
    const found = this.#adapters.get(hex(id))
    const shared = this.#shared(peer)
    return found?.topics.some(name => this.#topics.get(name)?.secret === null || shared.includes(name)) ? found : null
  }

  // ---- adapters ------------------------------------------------------------------------------------------------

  /** Manifest and files (by path) of an adapter, in turn from all of `peers`; by `bulk` outside of libp2p. */
  async fetch(adapter, peers, bulk = false) {
    const id = Buffer.from(adapter, 'hex')
    const from = peers.map(peerIdFromString)
    const { envelope } = await ask(this.#host, from[0], { op: 'manifest', adapter: id }, 'manifest_is')
    const manifest = verify(envelope, 'manifest')
    if (Buffer.compare(manifest.digest, id) !== 0) throw new Refused('the manifest of another adapter')
    const channels = await Promise.all(from.map(peer => this.#openFor(id, peer, bulk)))
    try {
      const files = new Map()
      for (const entry of manifest.record.files) files.set(entry.path, await bring(id, entry, channels))
      return { manifest, files }
    } finally {
      await Promise.all(channels.map(channel => channel.close()))
    }
  }

  async #openFor(adapter, peer, bulk) {
    if (!bulk) return await open(this.#host, peer)
    const offer = await ask(this.#host, peer, { op: 'bulk', adapter }, 'bulk_at')
    const [connection] = this.#host.getConnections(peer)
    return await openBulk(connection.remoteAddr.toString().split('/')[2], offer)
  }

  /** Make an adapter like one that was fetched and tell of it under a topic, by the mesh or by `push`. */
  async publish({ manifest, files }, topic, name, push = false) {
    const made = await makeLike(manifest.record, files, name, this.#key)
    this.#adapters.set(hex(made.manifest.digest), { ...made, topics: [topic] })
    const announcement = await sign('announcement', {
      manifest: made.manifest.digest,
      base: made.manifest.record.base.fingerprint,
      author: this.#key.publicKey.raw,
      topics: [topic],
      size: [...made.files.values()].reduce((size, bytes) => size + bytes.length, 0),
      seq: Date.now(),
      created_ms: Date.now(),
      extra: {}
    }, this.#key)
    this.#keep(announcement.envelope, topic, 'own')
    if (!push) await this.#host.services.pubsub.publish(MESH + topic, announcement.envelope)
    else for (const peer of this.#members(topic)) await this.#push(peer, [announcement.envelope], false)
    return made.manifest.id
  }

  #members(topic) {
    return this.#host.getPeers().filter(peer => this.#shared(peer).includes(topic))
  }

  async #quietly(what, work) {
    try {
      await work
    } catch (error) {
      if (isTrouble(error)) this.#tell({ event: 'trouble', text: `${what}: ${error.name}: ${error.message}` })
    }
  }
}

const unknown = { op: 'failed', reason: 'unknown' }

/** The bytes of a file: every other chunk from every other channel, each hashed before it is kept. Throws `Refused`. */
async function bring(adapter, entry, channels) {
  const bytes = Buffer.alloc(entry.size)
  const chunks = chunksOf(bytes, entry.chunk_size)
  if (chunks.length !== entry.chunks.length) throw new Refused('more or fewer chunks than its size has')
  await Promise.all(channels.map(async (channel, number) => {
    const left = [...chunks.keys()].filter(chunk => chunk % channels.length === number)
    const asked = []
    while (left.length + asked.length > 0) {
      while (left.length > 0 && (asked.length + 1) * entry.chunk_size <= LONGEST_RANGE) {
        const chunk = left.shift()
        const [offset, length] = [chunk * entry.chunk_size, chunks[chunk].length]
        await channel.send({ op: 'range', adapter, blob: entry.sha256, offset, length })
        asked.push(chunk)
      }
      const chunk = asked.shift()
      try {
        const { length } = await channel.answer('bytes')
        if (length !== chunks[chunk].length) throw new Refused(`${length} bytes instead of ${chunks[chunk].length}`)
        const raw = await channel.raw(length)
        if (Buffer.compare(sha256(raw), entry.chunks[chunk]) !== 0) throw new Refused('a chunk with another hash')
        raw.copy(chunks[chunk])
      } catch (error) {
        if (!(error instanceof Failed) || error.reason !== 'busy') throw error
        await new Promise(resolve => setTimeout(resolve, BUSY_MS))
        left.push(chunk)
      }
    }
  }))
  if (Buffer.compare(sha256(bytes), entry.sha256) !== 0) throw new Refused('a file with another hash')
  return bytes
}
