import { Presence, Repo } from '@automerge/automerge-repo';
import { WebSocketClientAdapter } from '@automerge/automerge-repo-network-websocket';

const user = new URLSearchParams(location.search).get('user') ?? 'guest';
const $ = id => document.getElementById(id);
const tell = problem => { $('problem').textContent = problem; };
const pause = state => new Promise(resolve => { $('state').textContent = state; setTimeout(resolve, 1000); });
let relay, token, session, renewal, handle, presence;

/** Uses the current token whenever it connects, and tells why a connection ended. */
class RelayAdapter extends WebSocketClientAdapter {
  connect(peerId, peerMetadata) {
    this.url = `${relay}?token=${encodeURIComponent(token)}`;
    super.connect(peerId, peerMetadata);
    this.socket.addEventListener('close', ({ target, code, reason }) => {
      if (target === this.socket) tell(`disconnected: ${code} ${reason}`);
      if (code === 4401 || code === 4403) renew();
    });
  }
}

/** Gets a token from the backend, asks the relay what it allows, and does so again in time. */
async function renew() {
  let seconds = 5;
  try {
    ({ relay, token } = await ask(`/token?user=${encodeURIComponent(user)}&document=${id}`));
    session = await ask(`${relay.replace('ws', 'http')}/api/session`, { authorization: `Bearer ${token}` });
    seconds = (session.expiresIn ?? 600) / 2;
    if (handle) render();
  } catch (error) { tell(`no session: ${error.message}`); }
  clearTimeout(renewal);
  renewal = setTimeout(renew, 1000 * seconds);
}

async function ask(url, headers) {
  const answer = await fetch(url, { headers }).catch(error => { throw new Error(`${url}: ${error.message}`); });
  if (answer.ok) return answer.json();
  throw new Error(`${answer.status} ${(await answer.json()).error}`);
}

function render() {
  const mayWrite = [session.rights.write].flat().some(one => one === 'all' || one === id);
  const stored = handle.getSyncInfo(session.storageId)?.lastHeads ?? [];
  const isSaved = [...stored].sort().join() === [...handle.heads()].sort().join();
  $('state').textContent = `${user}: ${mayWrite ? '' : 'read only, '}${isSaved ? 'saved' : 'saving...'}`;
  $('others').textContent = Object.values(presence.getPeerStates().value).map(peer => peer.value.name).join(', ');
  $('new').disabled = !mayWrite;
  for (const [index, { text, done }] of handle.doc().items.entries()) {
    const onclick = () => handle.change(doc => { doc.items[index].done = !done; });
    const button = $('list').children[index] ?? $('list').appendChild(document.createElement('button'));
    Object.assign(button, { textContent: `${done ? '☑' : '☐'} ${text}`, onclick, disabled: !mayWrite });
  }
}

const repo = new Repo({ enableRemoteHeadsGossiping: true });
const id = location.hash.slice(1) || repo.create({ items: [] }).documentId;
location.hash = id;
for (await renew(); !session;) await pause('waiting for a session');
repo.networkSubsystem.on('peer', () => tell(''));
repo.networkSubsystem.addNetworkAdapter(new RelayAdapter(relay, 2000));
repo.subscribeToRemotes([session.storageId]);
while (!handle) handle = await repo.find(`automerge:${id}`).catch(error => pause(error.message));
presence = new Presence({ handle });
for (const event of ['snapshot', 'update', 'goodbye', 'pruning']) presence.on(event, render);
for (const event of ['change', 'remote-heads']) handle.on(event, render);
presence.start({ initialState: { name: user }, peerTtlMs: 12_000 });
setInterval(() => presence.broadcast('name', user), 4000);
addEventListener('pagehide', () => presence.stop());
$('new').onchange = ({ target }) => {
  handle.change(doc => { doc.items.push({ text: target.value, done: false }); });
  target.value = '';
};
render();
