// Not a module: it runs before the first paint, so that a chosen theme does not flash the other one.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("vbon-theme");
  } catch {
    // A browser that keeps nothing follows the system's theme.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
