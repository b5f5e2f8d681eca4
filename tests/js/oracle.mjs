// Checks whether automerge's JavaScript can read and edit documents, for tests/changes. Saved
// documents are read from standard input, each after its length (32 bits, little-endian). For each
// a line of JSON is written to standard output: the document's heads, or what is wrong with it.
import * as Automerge from '@automerge/automerge';

function judge(bytes) {
  try {
    const doc = Automerge.load(bytes);
    const heads = Automerge.getHeads(doc);
    const edited = Automerge.change(doc, edit => { edit.oracle = 'was here'; });
    const again = Automerge.load(Automerge.save(edited));
    const [expected, found] = [edited, again].map(doc => JSON.stringify(Automerge.getHeads(doc).sort()));
    if (expected !== found) return { error: `an edit is not there after loading: ${expected}, ${found}` };
    return { heads: heads.sort() };
  } catch (error) {
    return { error: String(error?.message ?? error).slice(0, 300) };
  }
}

let pending = Buffer.alloc(0);
for await (const data of process.stdin) {
  pending = Buffer.concat([pending, data]);
  let at = 0;
  while (pending.length - at >= 4) {
    const end = at + 4 + pending.readUInt32LE(at);
    if (pending.length < end) break;
    process.stdout.write(`${JSON.stringify(judge(pending.subarray(at + 4, end)))}\n`);
    at = end;
  }
  pending = pending.subarray(at);
}
