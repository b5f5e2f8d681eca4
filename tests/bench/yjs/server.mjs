// A server of Yjs, without storage: `node server.mjs y-websocket|hocuspocus PORT`.
const [, , kind, port] = process.argv;

if (kind === 'hocuspocus') {
  const { Server } = await import('@hocuspocus/server');
  await new Server({ address: '127.0.0.1', port: Number(port), quiet: true }).listen();
} else {
  process.env.HOST = '127.0.0.1';
  process.env.PORT = port;
  await import('./node_modules/y-websocket/bin/server.js');
}
