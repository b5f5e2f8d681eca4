// The backend of the todo page: serves the page, and signs a token for each user and document.
import { createPrivateKey, generateKeyPairSync, sign } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';

const { PORT = 3000, RELAY = 'ws://127.0.0.1:8081', TOKEN_SECONDS = 300 } = process.env;
const FILES = { '/': ['index.html', 'text/html'], '/bundle.js': ['bundle.js', 'text/javascript'] };

// The relay gets the public key only: its config names public.pem in auth.jwt_keys.
if (!existsSync('private.pem')) {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  writeFileSync('private.pem', privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
  writeFileSync('public.pem', publicKey.export({ type: 'spki', format: 'pem' }));
}
const key = createPrivateKey(readFileSync('private.pem'));

/** Put your sign-in here: it says who sends a request. This one believes what the page says. */
const userOf = (request, query) => query.get('user');

/** Put your rules here: they say what a user may do with a document. */
function scopeFor(user, document) {
  if (user === 'anna' || user === 'ben') return `sync:write:${document}`;
  if (user === 'guest') return `sync:read:${document}`;
  return undefined;
}

function mint(user, scope) {
  const part = object => Buffer.from(JSON.stringify(object)).toString('base64url');
  const exp = Math.floor(Date.now() / 1000) + Number(TOKEN_SECONDS);
  const text = `${part({ alg: 'EdDSA', typ: 'JWT' })}.${part({ sub: user, scope, exp })}`;
  return `${text}.${sign(null, Buffer.from(text), key).toString('base64url')}`;
}

function grant(request, query) {
  const [user, document] = [userOf(request, query), query.get('document') ?? ''];
  // Only an id: scopes are separated by spaces, so a text with a space could ask for more.
  const isId = /^[1-9A-Za-z]{20,28}$/.test(document);
  const scope = isId && scopeFor(user, document);
  if (!scope) return [403, { error: `${user} may not open this document` }];
  return [200, { relay: RELAY, token: mint(user, scope) }];
}

const server = createServer((request, response) => {
  const { pathname, searchParams } = new URL(`http://localhost${request.url}`);
  const send = (status, type, body) =>
    response.writeHead(status, { 'Content-Type': type, 'Cache-Control': 'no-store' }).end(body);
  if (pathname === '/token') {
    const [status, answer] = grant(request, searchParams);
    return send(status, 'application/json', JSON.stringify(answer));
  }
  const [file, type] = FILES[pathname] ?? [];
  return file ? send(200, type, readFileSync(file)) : send(404, 'text/plain', 'not found');
});
server.listen(PORT, '127.0.0.1', () => console.log(`open http://127.0.0.1:${server.address().port}/?user=anna`));
