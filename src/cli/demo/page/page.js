// The page of `tonk-relay demo`: a list that everybody shares who opens the same address.
import { Presence, Repo, WebSocketClientAdapter, initializeWasm } from './automerge-repo.js';

const HEARTBEAT_MS = 5000;
const $ = id => document.getElementById(id);
let handle, presence, storageId, drawn, isConnected = false;

/** Tells whether there is a connection; automerge-repo's adapter reconnects by itself. */
class Adapter extends WebSocketClientAdapter {
  connect(...words) {
    super.connect(...words);
    this.socket?.addEventListener('close', () => { isConnected = false; render(); });
  }
}

/** Whether the relay has reported that the document, as it is here, is in its storage. */
function isSaved() {
  const stored = handle.getSyncInfo(storageId)?.lastHeads ?? [];
  return [...stored].sort().join() === [...handle.heads()].sort().join();
}

function render() {
  if (!handle) return;
  $('saved').textContent = !isConnected ? 'not connected' : isSaved() ? 'saved' : 'saving';
  const others = Object.values(presence.getPeerStates().value).map(peer => peer.value.name ?? 'somebody');
  $('others').textContent = others.length ? `here: ${others.sort().join(', ')}` : 'nobody else is here';
  const todos = handle.doc().todos ?? [];
  // Buttons stay while the list does: one that is replaced while it is pressed loses the click.
  if (todos === drawn) return;
  drawn = todos;
  $('todos').replaceChildren(...todos.map((todo, index) => {
    const text = document.createElement('span');
    // Clients may put anything into the list.
    text.textContent = typeof todo === 'string' ? todo : todo?.text ?? JSON.stringify(todo);
    const button = document.createElement('button');
    button.textContent = 'Done';
    button.onclick = () => handle.change(doc => { doc.todos.splice(index, 1); });
    const item = document.createElement('li');
    item.append(text, button);
    return item;
  }));
}

/** The document that the address names, or else a new one. */
async function open(repo) {
  const id = location.hash.slice(1).replace('automerge:', '');
  while (id) {
    try {
      return await repo.find(`automerge:${id}`);
    } catch (error) {
      // Without a connection, a document counts as unavailable after a second.
      $('saved').textContent = isConnected ? error.message : 'not connected';
      await new Promise(resolve => setTimeout(resolve, 1000));
    }
  }
  const created = repo.create({ todos: [] });
  history.replaceState(null, '', `#${created.documentId}`);
  return created;
}

function showLinks() {
  const relay = location.origin.replace('http', 'ws');
  const option = relay === 'ws://127.0.0.1:8081' ? '' : ` --url ${relay}`;
  $('link').href = $('link').textContent = location.href;
  $('command').textContent = `tonk-relay client open ${handle.documentId}${option}`;
}

async function start() {
  await initializeWasm(fetch(new URL('automerge.wasm', import.meta.url)));
  const adapter = new Adapter(location.origin.replace('http', 'ws'), 1000);
  const repo = new Repo({ enableRemoteHeadsGossiping: true });
  repo.networkSubsystem.on('peer', ({ peerMetadata }) => {
    isConnected = true;
    storageId = peerMetadata.storageId;
    if (storageId) repo.subscribeToRemotes([storageId]);
    render();
  });
  repo.networkSubsystem.addNetworkAdapter(adapter);
  handle = await open(repo);
  presence = new Presence({ handle });
  for (const event of ['snapshot', 'update', 'goodbye', 'pruning']) presence.on(event, render);
  for (const event of ['change', 'remote-heads']) handle.on(event, render);
  const name = sessionStorage.getItem('name') ?? `guest ${1 + Math.floor(Math.random() * 99)}`;
  presence.start({ initialState: { name }, heartbeatMs: HEARTBEAT_MS, peerTtlMs: 3 * HEARTBEAT_MS });
  addEventListener('pagehide', () => presence.stop());
  addEventListener('hashchange', () => location.reload());
  $('name').value = name;
  $('name').onchange = () => {
    sessionStorage.setItem('name', $('name').value);
    presence.broadcast('name', $('name').value);
  };
  $('add').onsubmit = event => {
    event.preventDefault();
    const text = $('text').value.trim();
    if (text) handle.change(doc => { (doc.todos ??= []).push(text); });
    $('text').value = '';
  };
  $('text').disabled = false;
  $('text').focus();
  showLinks();
  render();
}

start().catch(error => {
  $('saved').textContent = `this does not work: ${error.message}`;
});
