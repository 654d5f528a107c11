// usage: node main.mjs [RELAY]    a member that does as it is told, one that can be reached through a relay alone
//
// One JSON text a line: `{do, …}` in, `{done: …}` or `{failed: text}` out in the same order, and between them
// `{event: …}`. It ends with its input.

import { createInterface } from 'node:readline'
import { Member } from './member.mjs'
import { hex, sha256 } from './records.mjs'

const say = message => console.log(JSON.stringify(message))
const member = await Member.start(say, process.argv[2] ?? null)
/** By id in hex: what was fetched. */
const fetched = new Map()

const commands = {
  connect: ({ address }) => member.connect(address),
  ping: ({ peer }) => member.ping(peer),
  join: ({ topic, secret }) => member.join(topic, secret ? Buffer.from(secret, 'hex') : null),
  accept: ({ line }) => member.accept(line),
  announce: ({ topic }) => member.announce(topic),
  find: ({ topic }) => member.find(topic),
  fetch: async ({ adapter, peers, bulk }) => {
    const got = await member.fetch(adapter, peers, bulk)
    fetched.set(adapter, got)
    const digests = [...got.files].map(([path, bytes]) => [path, hex(sha256(bytes))])
    return { id: got.manifest.id, name: got.manifest.record.name, files: Object.fromEntries(digests) }
  },
  publish: ({ like, topic, name, push }) => member.publish(fetched.get(like), topic, name, push)
}

say({ event: 'started', peer: member.id, addresses: member.addresses })
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  try {
    say({ done: await commands[order.do](order) ?? null })
  } catch (error) {
    say({ failed: `${error.name}: ${error.message}` })
  }
}
await member.stop()
