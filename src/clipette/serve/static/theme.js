// Before the first paint, so that a chosen theme never flashes. A plain script: modules run later.
try {
  const chosen = localStorage.getItem("clipette-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is blocked: the system's colours hold.
}
