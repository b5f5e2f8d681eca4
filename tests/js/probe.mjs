// Measures how long GET /livez takes, in a thread of its own so that the test does not delay the
// requests.
import { get } from 'node:http';
import { once } from 'node:events';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';

const TICK = 10;

export class Probe {
  constructor(url) {
    this.worker = new Worker(new URL(import.meta.url), { workerData: { url } });
  }

  /**
   * Ends the measurement once the last request is answered. Returns the time of each request in ms.
   */
  async stop() {
    this.worker.postMessage('stop');
    const [times] = await once(this.worker, 'message');
    return times;
  }
}

if (!isMainThread) {
  let stopped = false;
  parentPort.on('message', () => { stopped = true; });
  // Time in which this thread did not run is not counted.
  let [lost, last] = [0, performance.now()];
  const tick = () => {
    const now = performance.now();
    lost += Math.max(0, now - last - 2 * TICK);
    last = now;
  };
  setInterval(tick, TICK);
  const times = [];
  while (!stopped) {
    tick();
    const [start, lostBefore] = [performance.now(), lost];
    const status = await new Promise(resolve => {
      const request = get(`${workerData.url}/livez`, { agent: false, localAddress: '127.0.0.2', timeout: 30_000 }, response => {
        response.resume();
        response.on('end', () => resolve(response.statusCode));
        response.on('error', error => resolve(error.code));
      });
      request.on('timeout', () => request.destroy());
      request.on('error', error => resolve(error.code));
    });
    tick();
    times.push({ status, ms: performance.now() - start - (lost - lostBefore) });
    await new Promise(resolve => setTimeout(resolve, 25));
  }
  parentPort.postMessage(times);
  process.exit();
}
