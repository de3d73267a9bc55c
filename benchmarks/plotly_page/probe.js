// Watches either page from inside, with the browser's own clock. `window.__probeKind` says which page it is.
//
// A drawing is dated by the start of the first frame after the one it was painted in, so that style, layout and paint
// are in every figure. Each page tells in its own way which step it shows: ours publishes it once it has drawn, the
// Plotly page writes it into each chart's title.

{
  const CHARTS = 6;
  const TITLE = /^(.+) · step (\d+) · settings (\d+)$/;
  const drawings = []; // {at, step}: one per frame in which a newer step was first to be seen
  const seen = new Map(); // chart -> [step, settings]
  let firstAt = 0;
  let move = null;
  let landed = null;

  window.__probe = {
    drawings,
    get firstAt() {
      return firstAt;
    },
    newest: () => Math.max(-1, ...[...seen.values()].map(([step]) => step)),
    // The next key pressed or pointer released is a move; `landed` resolves once every chart shows a step under it.
    arm(type) {
      landed = new Promise((resolve) => {
        move = null;
        const settings = Math.max(...[...seen.values()].map(([, version]) => version));
        const took = (event) => (move = { from: event.timeStamp, settings, resolve });
        window.addEventListener(type, took, { capture: true, once: true });
      });
    },
    landed: () => Promise.race([landed, new Promise((resolve) => setTimeout(resolve, 20000, null))]),
  };

  function drawn(charts) {
    for (const [name, facts] of charts) seen.set(name, facts);
    requestAnimationFrame((at) => {
      firstAt ||= at;
      const step = window.__probe.newest();
      if (step > (drawings.at(-1)?.step ?? -1)) drawings.push({ at, step });
      if (move) land(at);
    });
  }

  function land(at) {
    const arrived = [...seen.values()].filter(([, version]) => version > move.settings).length;
    if (arrived && !move.first) move.first = at - move.from;
    if (arrived < CHARTS && seen.size > 1) return;
    if (!arrived) return;
    move.resolve({ first: move.first, all: at - move.from });
    move = null;
  }

  // Ours: set after each drawing of charts, within the frame that it belongs to.
  function watchOurs() {
    let published;
    let count = 0;
    Object.defineProperty(window, "__moeviz", {
      get: () => published,
      set(value) {
        published = value;
        if (value.drawn === count) return;
        count = value.drawn;
        const { store, recorded } = value;
        if (recorded) drawn([["all", [-1, -1]]]); // a chart, but not of this run
        else if (store.count) drawn([["all", [store.lastStep, store.version[store.count - 1]]]]);
      },
    });
  }

  // Theirs: what the titles say in the frame after the page has changed.
  function watchTitles() {
    let asked = false;
    const read = () => {
      asked = false;
      const news = [];
      for (const title of document.querySelectorAll(".gtitle")) {
        const [, name, step, settings] = TITLE.exec(title.textContent) ?? [];
        const facts = [Number(step), Number(settings)];
        if (name && String(seen.get(name)) !== String(facts)) news.push([name, facts]);
      }
      if (news.length) drawn(news);
    };
    const changed = () => {
      if (!asked) requestAnimationFrame(read);
      asked = true;
    };
    new MutationObserver(changed).observe(document, { childList: true, subtree: true, characterData: true });
  }

  if (window.__probeKind === "ours") watchOurs();
  else watchTitles();
}
