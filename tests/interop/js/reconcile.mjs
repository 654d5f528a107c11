// **reconcile** of docs/SPEC-exchange.md: which records does the other side know that we don't, and which do we know?

import { Refused } from './msgpack.mjs'
import { sha256 } from './records.mjs'

const SAME = 0
const SUM = 1
const LISTED = 2
const DIFFERS = 3
const FEW = 32
const BRANCHES = 16

const before = (a, b) => Buffer.compare(a, b) < 0
const isIn = (id, start, end) => !before(id, start) && (end.length === 0 || before(id, end))
const lacks = (ids, id) => !ids.some(other => Buffer.compare(other, id) === 0)

/** `ids` of records: each 32 bytes, ascending. */
export function inOrder(ids) {
  return [...ids].sort(Buffer.compare)
}

function fingerprint(ids) {
  const sum = ids.reduce((total, id) => total + BigInt('0x' + id.toString('hex')), 0n) % (1n << 256n)
  const count = Buffer.alloc(8)
  count.writeBigUInt64BE(BigInt(ids.length))
  return sha256(Buffer.from(sum.toString(16).padStart(64, '0'), 'hex'), count).subarray(0, 16)
}

/** What to say of a range that is not the same. */
function split(mine, end) {
  if (mine.length <= FEW) return [[LISTED, end, mine]]
  const cuts = Array.from({ length: BRANCHES + 1 }, (_, number) => Math.floor(mine.length * number / BRANCHES))
  return Array.from({ length: BRANCHES }, (_, number) => {
    const stop = number === BRANCHES - 1 ? end : mine[cuts[number + 1]]
    return [SUM, stop, fingerprint(mine.slice(cuts[number], cuts[number + 1]))]
  })
}

function compared(mine, end, theirs) {
  return Buffer.compare(fingerprint(mine), theirs) === 0 ? [[SAME, end]] : split(mine, end)
}

/** The first question about `ids`. */
export function first(ids) {
  return [[SUM, Buffer.alloc(0), fingerprint(ids)]]
}

/** The answer to a question. */
export function respond(ids, parts) {
  return walk(ids, parts, (mine, [kind, end, theirs]) => {
    if (kind === SAME) return [[SAME, end]]
    if (kind === SUM) return compared(mine, end, theirs)
    if (kind !== LISTED) throw new Refused('a question that tells what only an answer can')
    const wanted = theirs.filter(id => lacks(mine, id))
    const offered = mine.filter(id => lacks(theirs, id))
    return wanted.length + offered.length > 0 ? [[DIFFERS, end, wanted, offered]] : [[SAME, end]]
  })
}

/** The next question after an answer; empty when nothing is left. What it has found is added to `need` and `have`. */
export function next(ids, parts, need, have) {
  const question = walk(ids, parts, (mine, [kind, end, theirs, offered]) => {
    if (kind === SUM) return compared(mine, end, theirs)
    if (kind === LISTED) {
      need.push(...theirs.filter(id => lacks(mine, id)))
      have.push(...mine.filter(id => lacks(theirs, id)))
    } else if (kind === DIFFERS) {
      have.push(...theirs.filter(id => !lacks(mine, id)))
      need.push(...offered.filter(id => lacks(mine, id)))
    }
    return [[SAME, end]]
  })
  return question.some(([kind]) => kind !== SAME) ? question : []
}

function walk(ids, parts, say) {
  const said = []
  let start = Buffer.alloc(0)
  for (const part of parts) {
    const end = part[1]
    said.push(...say(ids.filter(id => isIn(id, start, end)), part))
    start = end
  }
  return said
}
