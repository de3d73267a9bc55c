// What every page of charts does with the page around it.

let lastVisit = null; // {visit, token} of the page's script

// A server that has forgotten this page begins a new visit, with a new run: says which run it was, otherwise nothing.
export function rememberVisit({ visit, token }) {
  const before = lastVisit;
  lastVisit = { visit, token };
  return !before || before.visit === visit || before.token === token ? null : { before: before.token };
}

// So that a reload finds the run again. Set here and not by the page's script, which would add a page to the history.
export function nameInAddress(token) {
  const address = new URL(location.href);
  if (address.searchParams.get("run") === token) return;
  address.searchParams.set("run", token);
  history.replaceState(history.state, "", address);
}

// Waits for the styles: a chart measured before them would have the wrong size. Later ones overrule earlier ones.
export function loadStyles(root, addresses) {
  const links = addresses.map((href) => Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
  const loaded = links.map((link) => new Promise((resolve, reject) => {
    link.onload = resolve;
    link.onerror = () => reject(new Error("The styles did not load. Reload the page to try again."));
  }));
  root.prepend(...links);
  return Promise.all(loaded);
}

// What Streamlit calls: `render` when the data or the theme changes, `release` when the component goes.
export function mounting(Page) {
  const instances = new Map();
  return {
    render(component) {
      const { parentElement } = component;
      if (!instances.has(parentElement)) instances.set(parentElement, new Page(component));
      instances.get(parentElement).update(component);
    },
    release(parentElement) {
      instances.get(parentElement)?.dispose();
      instances.delete(parentElement);
    },
  };
}
