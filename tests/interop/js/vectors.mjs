// usage: node vectors.mjs FILE    what this reader says about records.json other than what is written there, one a line

import { readFileSync } from 'node:fs'
import { Refused, verify } from './records.mjs'

const { vectors } = JSON.parse(readFileSync(process.argv[2], 'utf8'))
for (const { name, envelope, kind, id } of vectors) {
  let answer
  try {
    answer = verify(Buffer.from(envelope, 'hex'), kind).id
  } catch (error) {
    if (!(error instanceof Refused)) throw error
  }
  if (answer !== id) console.log(`${name}: ${answer} instead of ${id}`)
}
console.log(`${vectors.length} vectors`)
