// Asks the server for what is new, again and again, and never asks before the last answer is drawn.
//
// So a slow browser slows itself down instead of falling behind: the next question comes no sooner than twice the
// drawing time after the last one, which leaves the main thread at least half free.

const SHORTEST_MS = 95; // ten updates a second, and a little in hand for the frame that a drawing waits for
const IDLE_MS = 400; // nothing is training
const HIDDEN_MS = 60000; // until woken: a hidden tab asks for nothing
const TIMEOUT_MS = 10000;
const LONGEST_BACKOFF_MS = 5000;

export class Puller {
  // address() -> URL; receive(buffer) -> promise of the drawing time in ms and whether anything is training.
  constructor({ address, receive, trouble, gone, alive }) {
    Object.assign(this, { address, receive, trouble, gone, alive });
    this.turn = 0; // which loop may go on; 0 is none
    this.turns = 0;
    this.failures = 0;
    this.due = 0; // when the next question is due
    this.wake = () => {};
    this.onVisible = () => !document.hidden && this.wake();
    document.addEventListener("visibilitychange", this.onVisible);
  }

  // Starts, or if it is running, asks again at once.
  start() {
    if (!this.turn) this.#loop((this.turn = ++this.turns));
    this.wake();
  }

  stop() {
    this.turn = 0;
    this.abort?.abort();
    this.wake();
  }

  dispose() {
    this.stop();
    document.removeEventListener("visibilitychange", this.onVisible);
  }

  async #loop(turn) {
    while (this.turn === turn && this.alive()) {
      await this.#sleep(document.hidden ? HIDDEN_MS : await this.#pull(turn));
    }
    if (this.turn === turn) this.turn = 0;
  }

  // One question and its answer; returns how long to wait before the next.
  async #pull(turn) {
    try {
      const answer = await this.#ask();
      if (this.turn !== turn) return 0;
      this.failures = 0;
      this.trouble("");
      const { drawMs, busy } = await this.receive(answer);
      return this.#untilNext(Math.max(busy ? SHORTEST_MS : IDLE_MS, 2 * drawMs), drawMs);
    } catch (error) {
      return this.turn === turn ? this.#backOff(error) : 0;
    }
  }

  // On a regular beat from the last question, but never before as long a pause as the drawing took.
  #untilNext(period, drawMs) {
    const now = performance.now();
    this.due = Math.max(this.due + period, now + drawMs);
    if (this.due > now + period) this.due = now + period;
    return this.due - now;
  }

  #backOff(error) {
    this.failures += 1;
    if (error instanceof Gone) this.gone(error.message);
    else this.trouble("The server does not answer; trying again.", error);
    return Math.min(LONGEST_BACKOFF_MS, 250 * 2 ** this.failures);
  }

  // The bytes of the answer.
  async #ask() {
    this.abort = new AbortController();
    const timer = setTimeout(() => this.abort.abort(), TIMEOUT_MS);
    try {
      const answer = await fetch(this.address(), { signal: this.abort.signal, cache: "no-store" });
      if (answer.status === 404 || answer.status === 403) throw new Gone(await sentence(answer));
      if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
      return await answer.arrayBuffer();
    } finally {
      clearTimeout(timer);
    }
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

// There is no such run, or it is not this visitor's. It may be there again, so asking goes on, but less often.
class Gone extends Error {}

async function sentence(answer) {
  try {
    return (await answer.json()).error ?? "";
  } catch {
    return "";
  }
}
