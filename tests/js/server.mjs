// automerge-repo's own sync server for the benchmark, set up as by its authors (WebSocket adapter,
// folder storage, announces nothing): node tests/js/server.mjs PORT FOLDER
import { createServer } from 'node:http';
import { Repo } from '@automerge/automerge-repo';
import { WebSocketServerAdapter } from '@automerge/automerge-repo-network-websocket';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import { WebSocketServer } from 'ws';

const [port, folder] = process.argv.slice(2);
const http = createServer((_, response) => response.end());
const repo = new Repo({
  network: [new WebSocketServerAdapter(new WebSocketServer({ server: http }))],
  storage: new NodeFSStorageAdapter(folder),
  peerId: `server-${port}`,
  sharePolicy: async () => false,
});
http.listen(Number(port), '127.0.0.1', () => console.log(`${repo.peerId} listens`));
