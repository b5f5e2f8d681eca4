// Writes app.tonk, a bundle with two documents, and prints its id.
import { writeFileSync } from 'node:fs';
import { Repo } from '@automerge/automerge-repo';
import { strToU8, zipSync } from 'fflate';

const repo = new Repo({});
const notes = repo.create({ text: 'Written by bundle.mjs' });
const root = repo.create({ title: 'My app', notes: notes.url });

const manifest = {
  manifestVersion: 1, version: { major: 1, minor: 0 }, rootId: root.documentId, entrypoints: [], networkUris: [],
};
const files = { 'manifest.json': strToU8(JSON.stringify(manifest)) };
for (const { documentId: id } of [root, notes]) {
  files[`storage/${id.slice(0, 2)}/${id.slice(2)}/snapshot/1`] = await repo.export(id);
}
writeFileSync('app.tonk', zipSync(files));
console.log(root.documentId);
