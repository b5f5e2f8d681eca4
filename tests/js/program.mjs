// A process that a test reads the output of.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';

const FAKETIME = spawnSync('sh', ['-c', 'ls /usr/lib/*/faketime/libfaketimeMT.so.1'], { encoding: 'utf8' }).stdout.trim();

/** What gives a program a time of day of its own, with further variables of libfaketime. Undefined if that is missing. */
export const clock = FAKETIME && (more => ({ LD_PRELOAD: FAKETIME, FAKETIME_DONT_FAKE_MONOTONIC: '1', ...more }));

export class Program {
  /** Starts it. `output` is what it has written so far. */
  constructor(command, words, options = {}) {
    this.child = spawn(command, words, options);
    this.output = '';
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.setEncoding('utf8').on('data', text => { this.output += text; });
    }
    // Not 'exit': that may come before the last of its output.
    this.exited = once(this.child, 'close').then(([code, signal]) => (this.ended = { code, signal }));
  }

  async kill(signal = 'SIGKILL') {
    this.child.kill(signal);
    await this.exited;
  }
}
