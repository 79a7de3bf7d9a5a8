// The shell: which view is shown, the theme, the API key, and whether the server is there.

import { apiEvents, apiKey, setApiKey } from "./api.js";
import { comparison, viewOf } from "./comparison.js";
import { decision } from "./decision.js";
import { el, replace } from "./dom.js";
import { server } from "./server.js";
import { Strip } from "./strip.js";
import * as decide from "./views/decide.js";
import * as distil from "./views/distil.js";
import * as explore from "./views/explore.js";
import * as play from "./views/play.js";
import * as runs from "./views/runs.js";
import * as tune from "./views/tune.js";
import * as vote from "./views/vote.js";

/**
 * By the part behind `#`. A view is a module with `title`, `mount(root, context)` and, if it has something
 * to stop, `unmount()`: mounted in an empty element each time it is shown. What it wants to keep, it keeps.
 */
const VIEWS = { decide, explore, play, vote, runs, distil, tune };
const FIRST = "decide";
// Addresses of earlier versions.
const FORMER = { ask: "play", measure: "runs", frontier: "explore" };

const $ = (id) => document.getElementById(id);
const context = { server, announce };
const strip = new Strip($("strip"));
let shown = null;

/** Says something to who listens to the page instead of looking at it. */
function announce(text) {
  $("announcer").textContent = text;
}

function route() {
  const found = viewOf(location.hash);
  const asked = Object.hasOwn(FORMER, found) ? FORMER[found] : found;
  const name = Object.hasOwn(VIEWS, asked) ? asked : FIRST;
  if (name === shown) return;
  if (shown !== null) VIEWS[shown].unmount?.();
  const moved = shown !== null;
  shown = name;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name].title} · vbon`;
  strip.hide(name === FIRST);
  const root = el("div", { class: "view", data: { view: name } });
  replace($("main"), root);
  VIEWS[name].mount(root, context);
  if (moved) {
    window.scrollTo(0, 0);
    announce(VIEWS[name].title);
  }
}

/** Links keep the comparison. */
function showComparison() {
  for (const link of document.querySelectorAll("nav [data-view]")) link.setAttribute("href", comparison.link(link.dataset.view));
}

// ---- theme

const systemDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemDark.matches;
}

function showTheme() {
  $("theme-button").setAttribute("aria-pressed", String(isDark()));
  document.dispatchEvent(new Event("themechange"));
}

function switchTheme() {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("vbon-theme", next);
  } catch {
    // Kept for this visit alone.
  }
  showTheme();
}

// ---- API key

function askForKey(message) {
  $("key-button").hidden = false;
  $("key-error").textContent = message ?? "";
  $("key-error").hidden = !message;
  $("key-input").value = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function useKey(key) {
  setApiKey(key);
  $("key-dialog").close();
  if (key) server.check();
}

// ---- whether the server is there

const READINESS = {
  connecting: "connecting",
  loading: "models are loading",
  ready: "ready",
  degraded: "partly ready",
  locked: "needs an API key",
  gone: "does not answer",
};

function showServer() {
  const { state, message } = server;
  $("readiness").dataset.state = state;
  $("readiness").querySelector(".words").textContent = READINESS[state];
  $("readiness").title = message;
  const banner = {
    loading: `Not ready yet: ${message}. This page looks again by itself.`,
    degraded: `Not everything can answer: ${message}. What can goes on.`,
    gone: "The server does not answer. Is it still running? This page tries again by itself.",
  }[state];
  $("banner").hidden = banner === undefined;
  $("banner").textContent = banner ?? "";
  $("banner").dataset.state = state;
}

function start() {
  addEventListener("hashchange", route);
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("main").focus();
  });
  $("theme-button").addEventListener("click", switchTheme);
  systemDark.addEventListener("change", showTheme);
  $("key-button").hidden = !apiKey();
  $("key-button").addEventListener("click", () => askForKey());
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey($("key-input").value.trim());
  });
  $("key-forget").addEventListener("click", () => useKey(null));
  apiEvents.addEventListener("failed", ({ detail: error }) => error.status === 401 && askForKey(error.message));
  server.addEventListener("change", showServer);
  comparison.addEventListener("change", showComparison);
  showTheme();
  showComparison();
  route();
  decision.start();
  server.start();
}

start();
