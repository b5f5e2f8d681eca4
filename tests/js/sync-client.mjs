// A client for trying out the relay: node tests/js/sync-client.mjs [ws://127.0.0.1:8081]
// [automerge:ID] Without an id it creates a document and prints its URL. Every line of input is
// appended to the document's list; every line that arrives is printed.
import { createInterface } from 'node:readline';
import { Repo } from '@automerge/automerge-repo';
import { WebSocketClientAdapter } from '@automerge/automerge-repo-network-websocket';

const url = process.argv.find(argument => /^wss?:/.test(argument)) ?? 'ws://127.0.0.1:8081';
const id = process.argv.find(argument => argument.startsWith('automerge:'));
const repo = new Repo({ network: [new WebSocketClientAdapter(url)] });
const handle = id ? await repo.find(id) : repo.create({ lines: [] });
if (!id) console.log(`in another terminal: node tests/js/sync-client.mjs ${url} ${handle.url}`);
console.log(JSON.stringify(handle.doc()));
handle.on('change', ({ doc }) => console.log(JSON.stringify(doc)));
const input = createInterface({ input: process.stdin });
input.on('line', line => handle.change(doc => { (doc.lines ??= []).push(line); }));
input.on('close', async () => {
  // Waits for the last line to be sent: the adapter sends a moment after an edit.
  await new Promise(resolve => setTimeout(resolve, 500));
  await repo.shutdown();
  process.exit();
});
