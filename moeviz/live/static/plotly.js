// Plotly.js, loaded once per page from the server's own copy, so that the charts work without a network.

let loading = null;

export function loadPlotly(address) {
  if (window.Plotly?.newPlot) return Promise.resolve(window.Plotly);
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      loading = null;
      reject(new Error("The chart library did not load. Reload the page to try again."));
    };
    document.head.append(script);
  });
  return loading;
}
