// A process that a test reads the output of.
import { spawn } from 'node:child_process';
import { once } from 'node:events';

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
