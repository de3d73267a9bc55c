// What a saved picture is called, and how it reaches the person who wants it.

// Chart, step and a name for the settings, so that two files of two runs are told apart: moeviz-loss-step-300-1a2b3c.
export function pictureName(chart, store, step) {
  const name = store.recipe && store.knobs ? `-${shortHash(JSON.stringify([store.recipe, store.knobs]))}` : "";
  return `moeviz-${chart}-step-${step}${name}`;
}

// Six hexadecimal digits of a text (FNV-1a, 32 bits): a name, no proof.
export function shortHash(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash.toString(16).padStart(8, "0").slice(-6);
}

export function offer(content, type, name) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000); // a slow disk still reads it
}
