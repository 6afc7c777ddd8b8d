// An app that signs from afar with nostr-tools' BunkerSigner.
//
// usage: node main.js bunker <bunker:// URI>     uses a URI that the key's owner gave
//        node main.js offer <relay>              shows a nostrconnect:// URI of its own, then waits for the signer
//
// Prints one JSON object per line: {"uri"}, {"auth"} whenever the user is asked, and at the end {"pubkey", "event", "verified", "decrypted", "refused"}.
import { generateSecretKey, getPublicKey, verifyEvent } from 'nostr-tools/pure'
import { BunkerSigner, createNostrConnectURI, parseBunkerInput } from 'nostr-tools/nip46'
import { SimplePool, useWebSocketImplementation } from 'nostr-tools/pool'
import WebSocket from 'ws'

useWebSocketImplementation(WebSocket)

const say = (message) => console.log(JSON.stringify(message))
const [mode, where] = process.argv.slice(2)
const secretKey = generateSecretKey()
const pool = new SimplePool()
const params = { pool, onauth: (url) => say({ auth: url }) }

async function connected() {
  if (mode === 'offer') {
    const clientPubkey = getPublicKey(secretKey)
    const uri = createNostrConnectURI({ clientPubkey, relays: [where], secret: 'a-secret-of-the-app', name: 'Peer' })
    say({ uri })
    return BunkerSigner.fromURI(secretKey, uri, params, 20_000)
  }
  const signer = BunkerSigner.fromBunker(secretKey, await parseBunkerInput(where), params)
  await signer.connect({ name: 'Peer', url: 'https://peer.example' })
  return signer
}

const refused = async (work) => {
  try {
    await work()
  } catch (error) {
    return String(error)
  }
  return ''
}

const signer = await connected()
await signer.ping()
const pubkey = await signer.getPublicKey()
const template = { kind: 1, content: 'signed by a peer', tags: [['t', 'peer']], created_at: Math.floor(Date.now() / 1000) }
const event = await signer.signEvent(template)
const friend = getPublicKey(generateSecretKey())
const decrypted = await signer.nip44Decrypt(friend, await signer.nip44Encrypt(friend, 'for a friend'))
const denied = await refused(() => signer.signEvent({ ...template, kind: 27235 }))
await signer.logout()
say({ pubkey, event, verified: verifyEvent(event), decrypted, refused: denied })
pool.destroy()
process.exit(0)
